"""Milliseconds from commit to delivery: 100 commits a second, each to 100 subscribers, p50 and p99 of all deliveries.

Counted from the commit time that the revision carries, which PostgreSQL's clock gives under the lock, before the rows
are written and the fsync: so the durable part of the commit is in the figure. ``acknowledged`` is when the writer heard
of its commit, counted the same way; ``from_send`` counts deliveries from the moment the writer sent the call. The
writer keeps its pace whatever the answers do (a late answer does not thin out the load). Each subscriber must see each
commit once, and all in the same order, or there is no figure.

In the path: the entity service, the bus (TLS), the stream service's hub and its transport, NDJSON or gRPC. Not in the
path: sidecars, the edge. The stream service has core 0; PostgreSQL, the entity service, the bus, the writer and the
subscribers (one C program) share core 1: on more cores the tail is shorter. The ceiling is ``fanout``, run in turn.

Wrong to conclude: how many deliveries per second are possible. This is latency at a tenth of any limit.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import orjson
from strandline.entity.v1 import entity_service_pb2, entity_service_pb2_grpc
from strandline.stream.v1 import stream_service_pb2

from benchmarks import figures
from benchmarks import sink as sinks
from benchmarks.fanout import READY
from benchmarks.machine import SUBJECT_CORE, Meter, pin, wait_for_socket
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant, tenant
from services.runtime.upstream import channel

SUBSCRIBERS = 100
PER_SECOND = 100
# About the size of the same commit's line in the feed.
PEER_LINE_BYTES = 700

# Makes one commit that carries the mark; returns its commit time in ns.
Write = Callable[[str], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds in one round: of all deliveries, and until the writer heard of its commits."""

    from_commit: Sequence[float]
    from_send: Sequence[float]
    acknowledged: Sequence[float]


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``delivery.<transport>.p50`` and ``.p99``."""
    if not sinks.installed():
        figures.skip("delivery", sinks.MISSING)
        return
    seconds, rounds = (3, 1) if quick else (10, 2)
    async with tenant(stack, indexed=False) as place, _peer(stack) as (peer_write, peer_pid):
        epoch, folder = await epoch_of(place), stack.layout.run
        write = writer(place.entities, place.type_name, place.metadata)
        watch = stream_service_pb2.WatchRequest(parent=place.parent, now=True).SerializeToString()
        transports = {
            "ndjson": (stack.feeds, sinks.http_hello(f"/v1/{place.parent}:watch?now=true", place.token)),
            "grpc": (
                stack.address("stream"),
                sinks.grpc_hello("/strandline.stream.v1.StreamService/Watch", watch, place.token),
            ),
        }
        for name, (socket, hello) in transports.items():
            ours, theirs = [], []
            meter, peer_meter = Meter(stack.pids), Meter({"peer": peer_pid})
            for _ in range(rounds):
                peer_hello = sinks.http_hello("/", "")
                with peer_meter.running():
                    theirs.append(await round_of(folder, _peer_feed(stack), peer_hello, READY, peer_write, seconds))
                with meter.running():
                    ours.append(await round_of(folder, socket, hello, epoch, write, seconds))
            context = {
                "subscribers": SUBSCRIBERS,
                "commits_per_second": PER_SECOND,
                "seconds": seconds,
                "cores": stack.cores,
                "sidecars": False,
                "smaller_is_better": True,
                "ceiling_cpu": peer_meter.cores(),
            }
            for percent in (50, 99):
                sides = {"": ours, "ceiling_": theirs}
                parts = {
                    f"{side}{part}": _median(percent, [getattr(each, part) for each in latencies])
                    for side, latencies in sides.items()
                    for part in ("from_send", "acknowledged")
                }
                figures.emit(
                    f"delivery.{name}.p{percent}",
                    "ms",
                    [figures.percentile(each.from_commit, percent) for each in ours],
                    [figures.percentile(each.from_commit, percent) for each in theirs],
                    meter.cores(),
                    context | parts,
                )


def _median(percent: int, rounds: Sequence[Sequence[float]]) -> float:
    return round(statistics.median(figures.percentile(each, percent) for each in rounds), 2)


async def round_of(
    folder: Path,
    address: Path | str,
    hello: sinks.Hello,
    ready: str,
    write: Write,
    seconds: int,
    *,
    subscribers: int = SUBSCRIBERS,
    per_second: int = PER_SECOND,
) -> Latencies:
    """*per_second* commits for *seconds*, evenly; what *subscribers* saw of them."""
    count = seconds * per_second
    sent, committed, acknowledged = [0] * count, [0] * count, [0] * count
    async with sinks.sink(folder, address, hello, ready, subscribers=subscribers, expected=count) as there:
        begin = time.monotonic() + 0.1

        async def commit(number: int) -> None:
            await asyncio.sleep(begin + number / per_second - time.monotonic())
            sent[number] = time.time_ns()
            committed[number] = await write(sinks.mark(number))
            acknowledged[number] = time.time_ns()

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(commit(number))
        arrivals = await there.arrivals(patience=10)
    each = list(itertools.chain.from_iterable(moments.items() for moments in arrivals))
    return Latencies(
        [(moment - committed[number]) / 1e6 for number, moment in each],
        [(moment - sent[number]) / 1e6 for number, moment in each],
        [(heard - moment) / 1e6 for heard, moment in zip(acknowledged, committed, strict=True)],
    )


def writer(
    entities: entity_service_pb2_grpc.EntityServiceAsyncStub, type_name: str, metadata: tuple[tuple[str, str], ...]
) -> Write:
    """Creates one entity of *type_name* for each mark."""

    async def write(mark: str) -> int:
        request = entity_service_pb2.CreateEntityRequest(parent=type_name)
        request.entity.data.update({"name": "Municipal Airport", "city": "City", "country": "CH", "mark": mark})
        answer = await entities.CreateEntity(request, metadata=metadata)
        return answer.entity.update_time.ToNanoseconds()

    return write


async def epoch_of(place: Tenant) -> str:
    """The first message of every feed carries it: so a subscriber is known to be served."""
    request = entity_service_pb2.CreateEntityRequest(parent=place.type_name)
    request.entity.data.update({"name": "first", "country": "CH"})
    return (await place.entities.CreateEntity(request, metadata=place.metadata)).epoch


def _peer_feed(stack: Stack) -> Path:
    return stack.layout.run / "fanout-feed.sock"


@asynccontextmanager
async def _peer(stack: Stack) -> AsyncIterator[tuple[Write, int]]:
    address = f"unix:{stack.layout.run / 'fanout.sock'}"
    command = (sys.executable, "-m", "benchmarks.fanout", address, str(_peer_feed(stack)), stack.database("entity"))
    process = await asyncio.create_subprocess_exec(*pin(SUBJECT_CORE), *command)
    try:
        await wait_for_socket(_peer_feed(stack), process)
        async with channel(address) as to:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = to.unary_unary("/benchmarks.Fanout/Write")

            async def write(mark: str) -> int:
                line = orjson.dumps({"mark": mark})
                return int.from_bytes(await call(line.ljust(PEER_LINE_BYTES - 1) + b"\n"), "big")

            yield write, process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
