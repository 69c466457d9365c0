"""1,000 readers that resume 10,000 revisions behind at once, while 50 others watch what is committed.

The figure is the live watchers' p99 from the commit's stamp to delivery while the crowd catches up, with the p99 before
it as its ceiling. ``seconds`` is how long it took from the first connection until the last of the crowd had 10,000
revisions, in ranges that join up; ``log_read`` is how many bytes of units the stream service read from their owner, as
a share of the log (1: everything once), in ``log_reads`` calls.

The stream service has nothing of the 10,000 in memory when the first of them comes: nobody watched while they were
written. In the path and pinned as in ``delivery``, over gRPC: the stream service has core 0, and PostgreSQL, the entity
service, the bus, the writer (20 commits a second) and all readers (two C programs) share core 1.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time

import psycopg
from strandline.stream.v1 import stream_service_pb2

from benchmarks import figures
from benchmarks import sink as sinks
from benchmarks.batch_writes import ROWS, check, requests_of, send
from benchmarks.deliveries import METHOD
from benchmarks.delivery import Write, epoch_of, round_of, writer
from benchmarks.machine import Meter
from benchmarks.records import records
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant, tenant
from benchmarks.watchers import MISSING, Feed, installed, watchers
from services.runtime.upstream import channel

REVISIONS = 10_000
READERS = 1_000
LIVE = 50
PER_SECOND = 20
PATIENCE_SECONDS = 120.0


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``resume``."""
    if not installed():
        figures.skip("resume", MISSING)
        return
    readers = READERS // 10 if quick else READERS
    async with tenant(stack, indexed=False) as place, channel(f"unix:{stack.address('entity')}") as to:
        made = records(random.Random(4), itertools.count())
        check(await send(to, list(requests_of(place, made, REVISIONS // ROWS)), place.metadata))
        size = await _log_bytes(stack, place)
        epoch = await epoch_of(place)
        write = writer(place.entities, place.type_name, place.metadata)
        before = await _live(stack, place, epoch, write, seconds=3 if quick else 10)
        reads = await _log_reads(stack)
        meter = Meter(stack.pids)
        during: list[float] = []
        with meter.running():
            crowd = asyncio.create_task(_crowd(stack, place, readers))
            while not crowd.done():
                during += await _live(stack, place, epoch, write, seconds=1)
        read = [now - then for now, then in zip(await _log_reads(stack), reads, strict=True)]
    context = {
        "seconds": round(crowd.result(), 1),
        "readers": readers,
        "revisions": REVISIONS,
        "log_read": round(read[1] / size, 2),
        "log_reads": int(read[0]),
        "live": LIVE,
        "commits_per_second": PER_SECOND,
        "cores": stack.cores,
        "sidecars": False,
        "smaller_is_better": True,
    }
    p99s = [figures.percentile(each, 99) for each in (during, before)]
    figures.emit("resume", "ms", p99s[:1], p99s[1:], meter.cores(), context)


async def _crowd(stack: Stack, place: Tenant, readers: int) -> float:
    """Let *readers* resume after revision 0; the seconds until all have caught up."""
    request = stream_service_pb2.WatchRequest(parent=place.parent, after_revision=0).SerializeToString()
    feed = Feed("grpc", str(stack.address("stream")), sinks.grpc_hello(METHOD, request, place.token))
    began = time.perf_counter()
    async with watchers(stack.layout.run, feed, count=readers, revisions=REVISIONS) as there:
        await there.counted(PATIENCE_SECONDS)
        return time.perf_counter() - began


async def _live(stack: Stack, place: Tenant, epoch: str, write: Write, *, seconds: int) -> list[float]:
    """Milliseconds from commit to delivery, of each delivery."""
    request = stream_service_pb2.WatchRequest(parent=place.parent, now=True).SerializeToString()
    hello = sinks.grpc_hello(METHOD, request, place.token)
    address = stack.address("stream")
    latencies = await round_of(
        stack.layout.run, address, hello, epoch, write, seconds, subscribers=LIVE, per_second=PER_SECOND
    )
    return list(latencies.from_stamp)


async def _log_bytes(stack: Stack, place: Tenant) -> int:
    async with await psycopg.AsyncConnection.connect(stack.database("entity")) as connection:
        query = "SELECT sum(octet_length(body)) FROM units WHERE namespace = %s"
        row = await (await connection.execute(query, (place.namespace,))).fetchone()
    assert row is not None
    return int(row[0])


async def _log_reads(stack: Stack) -> list[float]:
    """Runs of units, and bytes of them, that the stream service has read so far, as its metrics say."""
    reader, out = await asyncio.open_unix_connection(str(stack.layout.run / "stream-metrics.sock"))
    out.write(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    out.close()
    names = ("strandline_stream_log_reads_total", "strandline_stream_log_read_bytes_total")
    found = [re.search(rf"^{name} (\S+)$", text, re.MULTILINE) for name in names]
    return [float(match[1]) if match else 0.0 for match in found]
