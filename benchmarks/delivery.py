"""Milliseconds from commit to delivery: 100 commits a second, each to 100 subscribers, p50 and p99 of all deliveries.

Counted from PostgreSQL's record of the commit (``track_commit_timestamp``), which it makes before the fsync: so the
durable part of the commit is in the figure, and the work before it is not. ``from_stamp`` counts from the commit time
that the revision carries, which the same clock gives under the lock, before the unit is decided and written;
``from_send`` from the moment the writer sent the call. ``acknowledged`` is when the writer heard of its commit, counted
from the stamp. The writer keeps its pace whatever the answers do (a late answer does not thin out the load). Each
subscriber must see each commit once, and all in the same order, or there is no figure.

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
from functools import partial
from pathlib import Path
from typing import Any, Final, LiteralString, NamedTuple

import grpc
import orjson
import psycopg
from strandline.entity.v1 import entity_service_pb2, entity_service_pb2_grpc
from strandline.stream.v1 import stream_service_pb2

from benchmarks import figures
from benchmarks import sink as sinks
from benchmarks.fanout import ANSWER, READY
from benchmarks.machine import SUBJECT_CORE, Meter, pin, wait_for_socket
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant, tenant
from services.runtime.upstream import channel

SUBSCRIBERS = 100
PER_SECOND = 100
# About the size of the same commit's line in the feed.
PEER_LINE_BYTES = 700


class Stamp(NamedTuple):
    """What a writer is told of its commit: its time in ns, and its number in the log."""

    time: int
    revision: int


# Makes one commit that carries the mark.
Write = Callable[[str], Awaitable[Stamp]]
# When PostgreSQL committed each of these revisions, in ns.
Records = Callable[[Sequence[int]], Awaitable[Sequence[int]]]

_OURS: Final[LiteralString] = """
    SELECT revision, extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1e6 FROM units
    WHERE namespace = %(namespace)s AND revision = ANY (%(revisions)s)"""
_PEERS: Final[LiteralString] = """
    SELECT id, extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1e6 FROM ceiling.lines
    WHERE id = ANY (%(revisions)s)"""


@dataclass(frozen=True, slots=True)
class Latencies:
    """Milliseconds in one round: of all deliveries, and until the writer heard of its commits.

    ``from_commit`` is empty where PostgreSQL was not asked for its records.
    """

    from_commit: Sequence[float]
    from_stamp: Sequence[float]
    from_send: Sequence[float]
    acknowledged: Sequence[float]


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``delivery.<transport>.p50`` and ``.p99``."""
    if not sinks.installed():
        figures.skip("delivery", sinks.MISSING)
        return
    seconds, rounds = (3, 1) if quick else (10, 2)
    database = stack.database("entity")
    async with (
        tenant(stack, indexed=False) as place,
        _peer(stack) as (peer_write, peer_pid),
        await psycopg.AsyncConnection.connect(database, autocommit=True) as connection,
    ):
        records = partial(_records, connection, _OURS, place.namespace)
        peer_records = partial(_records, connection, _PEERS, "")
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
                    theirs.append(
                        await round_of(
                            folder, _peer_feed(stack), peer_hello, READY, peer_write, seconds, records=peer_records
                        )
                    )
                with meter.running():
                    ours.append(await round_of(folder, socket, hello, epoch, write, seconds, records=records))
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
                    for part in ("from_stamp", "from_send", "acknowledged")
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
    records: Records | None = None,
) -> Latencies:
    """*per_second* commits for *seconds*, evenly; what *subscribers* saw of them."""
    count = seconds * per_second
    sent, stamps, acknowledged = [0] * count, [Stamp(0, 0)] * count, [0] * count
    async with sinks.sink(folder, address, hello, ready, subscribers=subscribers, expected=count) as there:
        begin = time.monotonic() + 0.1

        async def commit(number: int) -> None:
            await asyncio.sleep(begin + number / per_second - time.monotonic())
            sent[number] = time.time_ns()
            stamps[number] = await write(sinks.mark(number))
            acknowledged[number] = time.time_ns()

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(commit(number))
        arrivals = await there.arrivals(patience=10)
    each = list(itertools.chain.from_iterable(moments.items() for moments in arrivals))
    committed = await records([stamp.revision for stamp in stamps]) if records else ()
    return Latencies(
        [(moment - committed[number]) / 1e6 for number, moment in each] if committed else (),
        [(moment - stamps[number].time) / 1e6 for number, moment in each],
        [(moment - sent[number]) / 1e6 for number, moment in each],
        [(heard - stamp.time) / 1e6 for heard, stamp in zip(acknowledged, stamps, strict=True)],
    )


def writer(
    entities: entity_service_pb2_grpc.EntityServiceAsyncStub, type_name: str, metadata: tuple[tuple[str, str], ...]
) -> Write:
    """Creates one entity of *type_name* for each mark."""

    async def write(mark: str) -> Stamp:
        request = entity_service_pb2.CreateEntityRequest(parent=type_name)
        request.entity.data.update({"name": "Municipal Airport", "city": "City", "country": "CH", "mark": mark})
        answer = await entities.CreateEntity(request, metadata=metadata)
        return Stamp(answer.entity.update_time.ToNanoseconds(), answer.revision)

    return write


async def epoch_of(place: Tenant) -> str:
    """The first message of every feed carries it: so a subscriber is known to be served."""
    request = entity_service_pb2.CreateEntityRequest(parent=place.type_name)
    request.entity.data.update({"name": "first", "country": "CH"})
    return (await place.entities.CreateEntity(request, metadata=place.metadata)).epoch


async def _records(
    connection: psycopg.AsyncConnection[Any], query: LiteralString, namespace: str, revisions: Sequence[int]
) -> Sequence[int]:
    """When each of *revisions* was committed, as PostgreSQL recorded it; ns."""
    cursor = await connection.execute(query, {"namespace": namespace, "revisions": list(revisions)})
    found = {revision: int(microseconds) * 1000 for revision, microseconds in await cursor.fetchall()}
    return [found[revision] for revision in revisions]


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

            async def write(mark: str) -> Stamp:
                line = orjson.dumps({"mark": mark})
                return Stamp(*ANSWER.unpack(await call(line.ljust(PEER_LINE_BYTES - 1) + b"\n")))

            yield write, process.pid
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
