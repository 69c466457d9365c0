"""``strandline demo``: a history is written while four watchers follow it and the processes under it are killed.

Everything happens on the running platform, in a namespace of its own that is removed at the end. What it shows: no
acknowledged write is lost or doubled, and every watcher comes to the same state, whatever was killed meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
import uuid
from collections.abc import Iterator

import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text
from strandline_client import Client

from strandline_cli.platform import Running
from strandline_cli.replay import KINDS, Change, State, Watcher, apply, mutation

UNITS = 400
SEED = 7
# Which part dies after which share of the units.
KILLS = {0.2: "entity", 0.4: "stream", 0.6: "nats", 0.8: "postgres"}
_TYPES = ("buoy", "vessel", "berth")
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "depth": {"type": "number"}, "moored": {"type": "boolean"}},
    "required": ["name"],
}
_REFRESHES_PER_SECOND = 8
_CATCH_UP_SECONDS = 60.0


def history(units: int, seed: int) -> Iterator[list[Change]]:
    """Units of 1 to 60 creates, updates and deletes that are all valid one after the other."""
    chance = random.Random(seed)
    state: State = {}
    for _ in range(units):
        unit: dict[tuple[str, str], Change] = {}
        for _ in range(chance.randint(1, 60)):
            key = (chance.choice(_TYPES), f"n{chance.randrange(2000)}")
            if key in unit:
                continue
            if key in state and chance.random() < 0.2:
                unit[key] = Change(key, None)
            else:
                data = {"name": f"{key[1]}-{chance.randrange(10**6)}", "depth": chance.randrange(400) / 4}
                unit[key] = Change(key, data | {"moored": chance.random() < 0.5}, creates=key not in state)
        apply(state, unit.values())
        yield list(unit.values())


class Demo:
    """One run: the writer, the watchers, the kills, and the picture of it."""

    def __init__(self, running: Running, client: Client, namespace: str) -> None:
        self._running = running
        self._client = client
        self._namespace = namespace
        self._watchers = [Watcher(client, namespace, kind) for kind in KINDS]
        self._expected: State = {}
        self._acknowledged: list[int] = []
        self._slowest = 0.0
        self._complete = False
        self._events: list[str] = []
        self._began = time.monotonic()

    async def run(self, live: Live) -> bool:
        """Whether everything held."""
        following = [asyncio.create_task(watcher.follow()) for watcher in self._watchers]
        picture = asyncio.create_task(self._draw(live))
        try:
            await self._write()
            self._complete = True
            self._note(f"written: {len(self._acknowledged)} units, the slowest took {self._slowest:.1f} s")
            arrivals = asyncio.gather(*(watcher.reach(self._acknowledged[-1]) for watcher in self._watchers))
            await asyncio.wait_for(arrivals, _CATCH_UP_SECONDS)
        finally:
            picture.cancel()
            for task in following:
                task.cancel()
            await asyncio.gather(picture, *following, return_exceptions=True)
            live.update(self._picture(), refresh=True)
        first, last = self._acknowledged[0], self._acknowledged[-1]
        dense = self._acknowledged == list(range(first, last + 1))
        return dense and all(self._agrees(watcher) for watcher in self._watchers)

    def _agrees(self, watcher: Watcher) -> bool:
        return watcher.units == watcher.revision == self._acknowledged[-1] and watcher.state == self._expected

    async def _write(self) -> None:
        kills = {int(share * UNITS): part for share, part in KILLS.items()}
        for number, unit in enumerate(history(UNITS, SEED)):
            if part := kills.get(number):
                self._kill(part)
            began = time.monotonic()
            mutations = [mutation(self._namespace, change, orjson.dumps) for change in unit]
            answer = await self._client.transact(self._namespace, mutations, request_id=f"demo-{number}")
            self._slowest = max(self._slowest, time.monotonic() - began)
            apply(self._expected, unit)
            self._acknowledged.append(answer.revision)
            await asyncio.sleep(0.01)  # slow enough to be watched

    def _kill(self, part: str) -> None:
        pid = self._running.pid(part)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            self._note(f"kill -9 {pid}: {part}")

    def _note(self, text: str) -> None:
        self._events.append(f"{time.monotonic() - self._began:5.1f} s  {text}")

    async def _draw(self, live: Live) -> None:
        while True:
            live.update(self._picture())
            await asyncio.sleep(1 / _REFRESHES_PER_SECOND)

    def _picture(self) -> Group:
        table = Table("", "revision", "units", "entities", "", box=None, pad_edge=False)
        written = str(self._acknowledged[-1]) if self._acknowledged else "-"
        table.add_row("writer", written, str(len(self._acknowledged)), str(len(self._expected)), "")
        for watcher in self._watchers:
            verdict = "= the writer" if self._complete and self._agrees(watcher) else ""
            row = (str(watcher.revision), str(watcher.units), str(len(watcher.state)))
            table.add_row(f"watch {watcher.kind}", *row, Text(verdict, style="green"))
        return Group(*(Text(event, style="dim") for event in self._events), table)


async def demo(running: Running, console: Console) -> bool:
    """Run it on *running*; whether everything held.

    Raises:
        ApiError, OSError: the platform refused something, or went away for longer than a minute.
    """
    namespace = f"demo-{uuid.uuid4().hex[:8]}"
    api = running.api()
    api.call("POST", f"/v1/namespaces?namespace_id={namespace}", {"massChangeGuard": "OFF"})
    for name in _TYPES:
        body = {"schema": _SCHEMA, "indexes": [{"fields": ["data.depth desc"]}]}
        api.call("POST", f"/v1/namespaces/{namespace}/types?type_id={name}", body)
    killed = ", ".join(KILLS.values())
    console.print(
        f"Writing {UNITS} units to {namespace}, watched over gRPC, NDJSON, SSE and WebSocket; killed: {killed}"
    )
    try:
        async with running.client() as client:
            with Live(console=console, auto_refresh=True, refresh_per_second=_REFRESHES_PER_SECOND) as live:
                held = await Demo(running, client, namespace).run(live)
    finally:
        with contextlib.suppress(OSError):
            running.api().call("DELETE", f"/v1/namespaces/{namespace}")
    return held


def verdict(held: bool) -> str:
    """What was shown."""
    if held:
        return "Held: every acknowledged unit is in every feed once, in order, and all five states are equal."
    return "NOT held: see the table. Please keep the logs (strandline logs entity, strandline logs stream)."
