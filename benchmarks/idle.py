"""Memory of a watcher that has nothing to do: kB of the stream process for each of 10,000.

All at the head of one namespace in which nothing happens; every one has its first message and gets progress. Over gRPC
they share ten connections, as they do behind a sidecar; as NDJSON each has its own. Counted is what the process resides
in, after less before, divided by the watchers, in a process of its own for each transport, because one keeps the memory
that it once had. The ceiling is the 40 kB that one may take.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import psutil
from strandline.stream.v1 import stream_service_pb2, stream_service_pb2_grpc

from benchmarks import figures
from benchmarks.machine import Meter
from benchmarks.sink import http_hello
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant, tenant
from benchmarks.watchers import MISSING, Feed, installed, watchers
from services.runtime.upstream import channel

WATCHERS = 10_000
CONNECTIONS = 10
# Calls that are on their way before the first of them is waited for.
AT_ONCE = 100
ALLOWED_KB = 40.0
SECONDS = 10.0
# So many revisions never come: the watchers stay.
NEVER = 10**9


async def run_grpc(stack: Stack, *, quick: bool) -> None:
    """Print ``idle.grpc``."""

    @asynccontextmanager
    async def watching(place: Tenant, count: int) -> AsyncIterator[None]:
        request = stream_service_pb2.WatchRequest(parent=place.parent, now=True)
        channels = [channel(f"unix:{stack.address('stream')}") for _ in range(CONNECTIONS)]
        stubs = [stream_service_pb2_grpc.StreamServiceStub(each) for each in channels]
        calls = []
        for number in range(count):
            calls.append(stubs[number % CONNECTIONS].Watch(request, metadata=place.metadata))
            if number % AT_ONCE == 0:
                await calls[-1].read()
        for call in calls:
            await call.read()
        yield
        for each in channels:
            await each.close()

    await _run(stack, "grpc", watching, WATCHERS // 10 if quick else WATCHERS)


async def run_ndjson(stack: Stack, *, quick: bool) -> None:
    """Print ``idle.ndjson``."""
    if not installed():
        figures.skip("idle.ndjson", MISSING)
        return

    @asynccontextmanager
    async def watching(place: Tenant, count: int) -> AsyncIterator[None]:
        feed = Feed("json", str(stack.feeds), http_hello(f"/v1/{place.parent}:watch?now=true", place.token))
        async with watchers(stack.layout.run, feed, count=count, revisions=NEVER):
            yield

    await _run(stack, "ndjson", watching, WATCHERS // 10 if quick else WATCHERS)


async def _run(
    stack: Stack, name: str, watching: Callable[[Tenant, int], AbstractAsyncContextManager[None]], count: int
) -> None:
    process = psutil.Process(stack.pids["stream"])
    meter = Meter(stack.pids)
    async with tenant(stack, indexed=False) as place:
        # The first watchers make the process load what all need.
        async with watching(place, 10):
            before = process.memory_info().rss
        async with watching(place, count):
            with meter.running():
                await asyncio.sleep(SECONDS)
            taken = process.memory_info().rss - before
    context = {"watchers": count, "cores": stack.cores, "sidecars": False, "smaller_is_better": True}
    figures.emit(f"idle.{name}", "kB", [taken / count / 1000], [ALLOWED_KB], meter.cores(), context)
