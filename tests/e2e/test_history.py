"""The real history, written once, seen five times, while everything under it is killed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import psutil
import pytest
from strandline.stream.v1 import feed_pb2
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_cli.replay import KINDS, Change, Key, State, Watcher, apply, mutation
from strandline_client import Client, Start

from .local_platform import Platform
from .real_data import needs_data, read_units
from .rest import Rest

TYPES = ("country", "region", "navaid", "runway", "airport_frequency")
ALL_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
UNITS = 2117
FINAL_ENTITIES = 93_768
# Which part dies before which unit.
KILLS = {300: "entity", 1000: "stream", 1300: "nats", 1700: "postgres"}
# What the stream process may reside in, whatever is written: its ring of 8 MiB, segments of the log, five feeds.
MAX_STREAM_BYTES = 300 * 2**20
# The runways with lights; some get theirs, some lose them, and all of them are deleted once and made again.
LIGHTED = 'data.lighted = "1"'

Seen = list[tuple[int, str, Key]]
"""Revision, kind of change, and entity."""


@pytest.fixture
async def namespace(platform: Platform) -> AsyncIterator[str]:
    """A new namespace without the mass-change guard, with the types of the history."""
    rest = Rest(platform.rest, platform.token())
    made = f"history-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {"massChangeGuard": "OFF"}, params={"namespace_id": made})
    for name in TYPES:
        await rest.ok("POST", f"/v1/namespaces/{made}/types", {"schema": ALL_STRINGS}, params={"type_id": name})
    yield made
    await rest.close()


@needs_data
@pytest.mark.timeout(900)
async def test_every_watcher_rebuilds_the_real_history_through_four_kills(platform: Platform, namespace: str) -> None:
    """Batch 1043 of it deletes 91,875 entities; the next one makes them again."""
    units = [
        [Change(event.key, event.row, creates=event.operation == "create") for event in unit] for unit in read_units()
    ]
    assert len(units) == UNITS
    expected: State = {}
    expected_lighted: Seen = []
    revisions: list[int] = []
    memory: list[int] = []
    async with Running.in_home(Home(platform.home)).client(patience=120) as client:
        watchers = [Watcher(client, namespace, kind) for kind in KINDS]
        following = [asyncio.create_task(watcher.follow()) for watcher in watchers]
        lighted = LightedWatcher(client, namespace)
        following.append(asyncio.create_task(lighted.follow()))
        try:
            for number, unit in enumerate(units):
                if part := KILLS.get(number):
                    await asyncio.to_thread(platform.kill, part)
                mutations = [mutation(namespace, change, orjson.dumps) for change in unit]
                answer = await client.transact(namespace, mutations, request_id=f"unit-{number}")
                revisions.append(answer.revision)
                expected_lighted += lighted_changes(answer.revision, unit, expected)
                apply(expected, unit)
                if number % 20 == 0:
                    memory += resident_bytes(platform, "stream")
                failed = [task for task in following if task.done()]
                assert not failed, [task.exception() for task in failed]
            await reached(watchers, following, revisions[-1])
            await asyncio.wait_for(lighted.reach(len(expected_lighted)), 60)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        await asyncio.to_thread(platform.wait_until_ready)

    # No acknowledged write is missing and none is doubled: the log holds the types and then each unit once.
    first = len(TYPES) + 1
    assert revisions == list(range(first, first + UNITS))
    assert len(expected) == FINAL_ENTITIES
    for watcher in watchers:
        # The client has verified that ranges join up and that each unit of a range came once.
        assert (watcher.kind, watcher.revision, watcher.units) == (watcher.kind, revisions[-1], revisions[-1])
        assert watcher.state == expected, watcher.kind
    assert lighted.seen == expected_lighted
    assert {kind for _, kind, _ in expected_lighted} == {"CREATED", "UPDATED", "DELETED", "ENTERED", "LEFT"}
    assert max(memory) < MAX_STREAM_BYTES


@dataclass
class LightedWatcher:
    """Notes what it is told about the lighted runways."""

    client: Client
    namespace: str
    seen: Seen = field(default_factory=list)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self) -> None:
        """Read for as long as the task lives."""
        start = Start(after_revision=0)
        async for unit in self.client.watch(self.namespace, start, types=["runway"], filter=LIGHTED):
            for change in unit.changes:
                if change.HasField("entity"):
                    _, _, _, kind, _, identifier = change.entity.name.split("/")
                    self.seen.append((unit.revision, feed_pb2.Change.Kind.Name(change.kind), (kind, identifier)))
            self._moved.set()

    async def reach(self, count: int) -> None:
        """Wait until it was told of *count* changes."""
        while len(self.seen) < count:
            self._moved.clear()
            await self._moved.wait()


def lighted_changes(revision: int, unit: list[Change], before: State) -> Seen:
    """The same in plain Python: what *unit* does to them, from the state *before* it."""
    seen: Seen = []
    for change in unit:
        if change.key[0] != "runway" or change.data == before.get(change.key):
            continue
        was = before.get(change.key, {}).get("lighted") == "1"
        now = change.data is not None and change.data.get("lighted") == "1"
        if change.key not in before:
            kind = "CREATED"
        elif change.data is None:
            kind = "DELETED"
        else:
            kind = "UPDATED" if was and now else "ENTERED" if now else "LEFT"
        if was or now:
            seen.append((revision, kind, change.key))
    return seen


def resident_bytes(platform: Platform, part: str) -> list[int]:
    """What the process of *part* resides in; nothing while it is being started again."""
    state = Home(platform.home).load_state()
    try:
        pid = state.pids[part] if state else None
        return [psutil.Process(pid).memory_info().rss] if pid else []
    except psutil.NoSuchProcess:
        return []


async def reached(watchers: list[Watcher], following: list[asyncio.Task[None]], revision: int) -> None:
    """Wait until all *watchers* have come to *revision*; a watcher that fails fails the test."""
    arrivals: asyncio.Future[Any] = asyncio.gather(*(watcher.reach(revision) for watcher in watchers))
    done, _ = await asyncio.wait({arrivals, *following}, timeout=180, return_when=asyncio.FIRST_COMPLETED)
    for task in done - {arrivals}:
        await task
    assert arrivals in done, {watcher.kind: watcher.revision for watcher in watchers}
