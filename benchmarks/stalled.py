"""What one watcher that stops reading costs the others: their p99 from commit to delivery, with it as ratio to without.

In turn, 100 commits a second of 20 kB each to 50 subscribers; in every second round one more opens the same feed, takes
its first message and then reads nothing. It falls off the ring (8 MiB), because ten seconds are 20 MB. At the end it
reads, and must get every revision once and in order, from the log; ``stream_mb`` is what the stream process grew by in
rounds with it, ``without_mb`` in rounds without.

In the path and pinned as in ``delivery``, over NDJSON; counted from the commit's stamp.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from strandline.entity.v1 import entity_service_pb2

from benchmarks import figures
from benchmarks import sink as sinks
from benchmarks.batch_writes import newest_revision
from benchmarks.delivery import PER_SECOND, Stamp, Write, epoch_of, round_of
from benchmarks.machine import Meter
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant, tenant

SUBSCRIBERS = 50
PADDING = "." * 20_000


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``stalled``."""
    if not sinks.installed():
        figures.skip("stalled", sinks.MISSING)
        return
    seconds, rounds = (5, 1) if quick else (10, 3)
    process = psutil.Process(stack.pids["stream"])
    meter = Meter(stack.pids)
    grown: dict[bool, int] = {False: 0, True: 0}
    p99s: dict[bool, list[float]] = {False: [], True: []}
    async with tenant(stack, indexed=False) as place:
        hello = sinks.http_hello(f"/v1/{place.parent}:watch?now=true", place.token)
        epoch = await epoch_of(place)
        # The first round makes the ring as large as it gets, and is thrown away.
        for number, with_it in enumerate([False, *([False, True] * rounds)]):
            began = await newest_revision(place)
            before = process.memory_info().rss
            with _stalled(stack.feeds, hello, with_it) as stalled, meter.running():
                latencies = await round_of(
                    stack.layout.run, stack.feeds, hello, epoch, _writer(place), seconds, subscribers=SUBSCRIBERS
                )
                if number:
                    p99s[with_it].append(figures.percentile(latencies.from_stamp, 99))
                    grown[with_it] = max(grown[with_it], process.memory_info().rss - before)
                if stalled is not None:
                    await asyncio.to_thread(_catch_up, stalled, began, began + seconds * PER_SECOND)
    context = {
        "subscribers": SUBSCRIBERS,
        "commits_per_second": PER_SECOND,
        "bytes": len(PADDING),
        "stream_mb": round(grown[True] / 1e6, 1),
        "without_mb": round(grown[False] / 1e6, 1),
        "cores": stack.cores,
        "sidecars": False,
        "smaller_is_better": True,
    }
    figures.emit("stalled", "ms", p99s[True], p99s[False], meter.cores(), context)


def _writer(place: Tenant) -> Write:
    async def write(mark: str) -> Stamp:
        request = entity_service_pb2.CreateEntityRequest(parent=place.type_name)
        request.entity.data.update({"name": "Airport", "country": "CH", "city": PADDING[:200], "mark": mark + PADDING})
        answer = await place.entities.CreateEntity(request, metadata=place.metadata)
        return Stamp(answer.entity.update_time.ToNanoseconds(), answer.revision)

    return write


@contextmanager
def _stalled(feeds: Path, hello: sinks.Hello, wanted: bool) -> Iterator[socket.socket | None]:
    """A watcher that has asked; None if none is *wanted*."""
    if not wanted:
        yield None
        return
    with socket.socket(socket.AF_UNIX) as watcher:
        watcher.settimeout(30)
        watcher.connect(str(feeds))
        watcher.sendall(hello.first)
        watcher.recv(1, socket.MSG_PEEK)
        yield watcher


def _catch_up(watcher: socket.socket, after: int, until: int) -> None:
    """Read what waits: every revision in ``(after, until]`` once and in order, or RuntimeError."""
    with watcher.makefile("rb") as lines:
        reached = after
        for line in lines:
            if not line.startswith(b"{"):
                continue  # heads of HTTP and of its chunks
            message = json.loads(line)
            if int(message["afterRevision"]) != reached:
                raise RuntimeError(f"a message begins at {message['afterRevision']}, the one before ended at {reached}")
            reached = int(message["revision"])
            found = [int(unit["revision"]) for unit in message.get("units", {}).get("units", [])]
            if found != list(itertools.islice(itertools.count(reached - len(found) + 1), len(found))):
                raise RuntimeError("a revision is missing, twice, or out of order")
            if reached >= until:
                return
    raise RuntimeError(f"the feed ended at {reached} of {until}")
