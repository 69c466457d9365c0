"""Microseconds of the stream process for a commit that one of 1,000 filtered watchers gets, and one of ten.

Every watcher has an equality of its own (``data.mark = "m7"``) over gRPC, and each commit, a ``CreateEntity`` by
itself, matches one of the first ten: as much is delivered in both cases, and what differs is finding out whom it
concerns. What watchers cost by being there (their clock is looked at every second, their ``Progress`` sent every three)
is measured before, while nobody writes, and subtracted; ``idle_cores`` says how much it was.

The value is the cost with 1,000, the ceiling that with ten. Every watcher must get exactly the commits that it asked
for, or there is no figure. Wrong to conclude: what a filter costs that demands no equality; such ones are evaluated
once for each that is different.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from strandline.entity.v1 import entity_service_pb2
from strandline.stream.v1 import stream_service_pb2, stream_service_pb2_grpc

from benchmarks import figures
from benchmarks.machine import Meter
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant, tenant
from services.runtime.upstream import channel

FEW, MANY = 10, 1000
PER_SECOND = 150
PATIENCE_SECONDS = 30.0


class Watcher:
    """One reader of one mark; counts the units that it gets."""

    def __init__(self, stub: stream_service_pb2_grpc.StreamServiceAsyncStub, place: Tenant, mark: str) -> None:
        request = stream_service_pb2.WatchRequest(parent=place.parent, now=True, filter=f'data.mark = "{mark}"')
        self._call = stub.Watch(request, metadata=place.metadata)
        self._moved = asyncio.Event()
        self._revision = -1
        self.units = 0

    async def read(self) -> None:
        async for message in self._call:
            self.units += len(message.units.units)
            self._revision = message.revision
            self._moved.set()

    async def pass_by(self, revision: int) -> None:
        """Wait until everything up to *revision* was covered."""
        while self._revision < revision:
            self._moved.clear()
            await self._moved.wait()


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``filtered``."""
    seconds, rounds = (3, 1) if quick else (8, 2)
    many, few, idle = [], [], []
    meter = Meter(stack.pids)
    async with tenant(stack, indexed=False) as place:
        for _ in range(rounds):
            few.append((await _cost(stack, place, meter, FEW, seconds))[0])
            cost, cores = await _cost(stack, place, meter, MANY, seconds)
            many.append(cost)
            idle.append(cores)
    context = {
        "watchers": [MANY, FEW],
        "commits_per_second": PER_SECOND,
        "idle_cores": round(sum(idle) / rounds, 3),
        "cores": stack.cores,
        "sidecars": False,
        "smaller_is_better": True,
    }
    figures.emit("filtered", "us/commit", many, few, meter.cores(), context)


async def _cost(stack: Stack, place: Tenant, meter: Meter, count: int, seconds: int) -> tuple[float, float]:
    """Microseconds a commit, and the cores that *count* watchers take while nobody writes."""
    async with _watching(stack, place, count) as watchers:
        quiet, busy = Meter(stack.pids), Meter(stack.pids)
        with meter.running(), quiet.running():
            await asyncio.sleep(seconds)
        commits = seconds * PER_SECOND
        with meter.running(), busy.running():
            last = await _write(place, commits)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(watcher.pass_by(last) for watcher in watchers))
        expected = [commits // FEW if number < FEW else 0 for number in range(count)]
        if [watcher.units for watcher in watchers] != expected:
            raise RuntimeError("somebody got what was not theirs, or missed what was")
    resting, working = quiet.microseconds(1)["stream"], busy.microseconds(1)["stream"]
    return (working - resting) / commits, resting / seconds / 1e6


@contextlib.asynccontextmanager
async def _watching(stack: Stack, place: Tenant, count: int) -> AsyncIterator[list[Watcher]]:
    async with channel(f"unix:{stack.address('stream')}") as to, asyncio.TaskGroup() as group:
        stub: stream_service_pb2_grpc.StreamServiceAsyncStub = stream_service_pb2_grpc.StreamServiceStub(to)
        watchers = [Watcher(stub, place, f"m{number}") for number in range(count)]
        reading = [group.create_task(watcher.read()) for watcher in watchers]
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.gather(*(watcher.pass_by(0) for watcher in watchers))
        yield watchers
        for task in reading:
            task.cancel()


async def _write(place: Tenant, commits: int) -> int:
    """Commits at an even pace, each of its own; the newest revision."""
    begin = asyncio.get_running_loop().time()

    async def write(number: int) -> int:
        await asyncio.sleep(begin + number / PER_SECOND - asyncio.get_running_loop().time())
        request = entity_service_pb2.CreateEntityRequest(parent=place.type_name)
        request.entity.data.update({"name": "Airport", "country": "CH", "mark": f"m{number % FEW}"})
        return (await place.entities.CreateEntity(request, metadata=place.metadata)).revision

    return max(await asyncio.gather(*map(write, range(commits))))
