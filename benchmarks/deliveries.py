"""Deliveries per second: changes of about 200 bytes by ``BatchWrite``, each to every watcher of the namespace.

Counted is revisions times watchers, from the first message that carries one to the last, while the writer still writes
and until everybody has everything. Every watcher checks that each message begins where the one before ended: a lost or
doubled revision ends the run. Watchers are one C program, so they are not the limit.

In the path: the entity service, the bus (TLS), the stream service's hub and its transport. Not in the path: sidecars,
the edge. The stream service has core 0; the writer, the entity service, PostgreSQL, the bus and the watchers share core
1, which is what limits a hundred watchers (``cpu``).

The ceiling is ``blast``: as many messages of the same size, by the same transport (WebSocket: as chunks of HTTP), made
before anybody asks. Wrong to conclude: latency; watchers that are behind get larger messages.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from strandline.stream.v1 import stream_service_pb2

from benchmarks import figures
from benchmarks.batch_writes import ROWS, check, newest_revision, requests_of, send
from benchmarks.machine import SUBJECT_CORE, Meter, pin, wait_for_socket
from benchmarks.records import Record, records
from benchmarks.sink import Hello, grpc_hello, http_hello
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant, tenant
from benchmarks.watchers import MISSING, Counted, Feed, installed, watchers
from services.runtime.upstream import channel

IN_FLIGHT = 2
PATIENCE_SECONDS = 120.0
METHOD = "/strandline.stream.v1.StreamService/Watch"


@dataclass(frozen=True, slots=True)
class Case:
    """How many watchers over what, and how many calls of ``BatchWrite``: enough for some seconds."""

    transport: str
    watchers: int
    calls: int


CASES = [Case("grpc", 100, 120), Case("grpc", 1000, 30), Case("websocket", 1000, 20), Case("sse", 1000, 20)]


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``deliveries.<transport>.<watchers>``."""
    if not installed():
        figures.skip("deliveries", MISSING)
        return
    rounds = 1 if quick else 3
    async with tenant(stack, indexed=False) as place, channel(f"unix:{stack.address('entity')}") as to:
        made = records(random.Random(3), itertools.count())
        for case in CASES:
            meter = Meter(stack.pids)
            rates, ceilings, sizes = [], [], []
            calls = max(2, case.calls // 4) if quick else case.calls
            for _ in range(rounds):
                counted = await round_of(stack, place, to, made, meter, case, calls)
                deliveries = calls * ROWS * case.watchers
                rates.append(deliveries / counted.seconds)
                sizes.append(deliveries / counted.messages)
                blasted = await _blasted(stack, case, counted, calls * ROWS)
                ceilings.append(deliveries / blasted.seconds)
            context = {
                "watchers": case.watchers,
                "revisions_per_message": round(sum(sizes) / len(sizes), 1),
                "in_flight": IN_FLIGHT,
                "cores": stack.cores,
                "sidecars": False,
            }
            name = f"deliveries.{case.transport}.{case.watchers}"
            figures.emit(name, "deliveries/s", rates, ceilings, meter.cores(), context)


async def round_of(
    stack: Stack,
    place: Tenant,
    to: grpc.aio.Channel,
    made: Iterator[Record],
    meter: Meter,
    case: Case,
    calls: int,
) -> Counted:
    """Write *calls* batches; what all watchers got of them."""
    requests = list(requests_of(place, made, calls))
    feed = _feed(stack, place, case.transport)
    before = await newest_revision(place)
    async with watchers(stack.layout.run, feed, count=case.watchers, revisions=calls * ROWS) as there:
        with meter.running():
            answers = await send(to, requests, place.metadata, IN_FLIGHT)
            counted = await there.counted(PATIENCE_SECONDS)
    if check(answers) - before != calls * ROWS:
        raise RuntimeError("somebody else wrote, or rows were lost")
    return counted


def _feed(stack: Stack, place: Tenant, transport: str) -> Feed:
    if transport == "grpc":
        request = stream_service_pb2.WatchRequest(parent=place.parent, now=True).SerializeToString()
        return Feed("grpc", str(stack.address("stream")), grpc_hello(METHOD, request, place.token))
    path = f"/v1/{place.parent}:watch?now=true"
    first = http_hello(path, place.token).first
    more = {
        "sse": b"accept: text/event-stream\r\n\r\n",
        "websocket": b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: c3RyYW5kbGluZS1iZW5jaA==\r\n\r\n",
    }
    return Feed("json", str(stack.feeds), Hello(first.removesuffix(b"\r\n") + more[transport]))


async def _blasted(stack: Stack, case: Case, seen: Counted, revisions: int) -> Counted:
    messages = max(1, round(seen.messages / case.watchers))
    size = seen.bytes // max(1, seen.messages)
    async with _blast(stack, messages, size, revisions) as (grpc_socket, feed_socket, go):
        if case.transport == "grpc":
            feed = Feed("grpc", str(grpc_socket), grpc_hello("/benchmarks.Blast/Watch", b"", ""))
        else:
            feed = Feed("json", str(feed_socket), http_hello("/", ""))
        async with watchers(stack.layout.run, feed, count=case.watchers, revisions=revisions) as there:
            go.touch()
            return await there.counted(PATIENCE_SECONDS)


@asynccontextmanager
async def _blast(stack: Stack, messages: int, size: int, revisions: int) -> AsyncIterator[tuple[Path, Path, Path]]:
    run = stack.layout.run
    sockets = run / "blast.sock", run / "blast-feed.sock", run / "blast-feed.sock.go"
    for path in sockets:
        path.unlink(missing_ok=True)
    command = (sys.executable, "-m", "benchmarks.blast", f"unix:{sockets[0]}", str(sockets[1]))
    process = await asyncio.create_subprocess_exec(
        *pin(SUBJECT_CORE), *command, str(messages), str(size), str(revisions)
    )
    try:
        await wait_for_socket(sockets[1], process)
        yield sockets
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
