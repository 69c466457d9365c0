"""``make bench-peers``: deliveries per second beside etcd's watch, in turn, in one run.

Each side has core 0 for what delivers, and core 1 for what writes and for the watchers, the same C program. So etcd's
core also commits (it is one process), while ours has the entity service and PostgreSQL on core 1, where they share with
the watchers. Both write values of about 200 bytes and fsync before they answer: etcd by single puts, 100 in flight on
two connections, the stream service's source by ``BatchWrite``, because that is how each is meant to be written to fast.

Counted as in ``deliveries``. Wrong to conclude: that one writes faster than the other; puts and rows are not the same.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from benchmarks import figures
from benchmarks.batch_writes import ROWS
from benchmarks.deliveries import PATIENCE_SECONDS, Case, round_of
from benchmarks.machine import LOAD_CORE, PINNED, SUBJECT_CORE, Meter, pin
from benchmarks.records import records
from benchmarks.sink import grpc_hello
from benchmarks.stack import stack
from benchmarks.tenant import tenant
from benchmarks.watchers import MISSING, Counted, Feed, installed, watchers
from services.runtime import wire
from services.runtime.upstream import channel

CASES = [Case("grpc", 100, 80), Case("grpc", 1000, 20)]
ROUNDS = 3
VALUE = b"." * 200
CONNECTIONS, IN_FLIGHT = 2, 50
_WATCH, _PUT = "/etcdserverpb.Watch/Watch", "/etcdserverpb.KV/Put"
_PREFIX, _PREFIX_END = b"bench/", b"bench0"


async def run() -> None:
    """Print ``deliveries.etcd.<watchers>``: the stream service's rate, with etcd's as its ceiling."""
    if shutil.which("etcd") is None:
        figures.skip("deliveries.etcd", "there is no etcd: apt-get install etcd-server")
        return
    if not installed():
        figures.skip("deliveries.etcd", MISSING)
        return
    async with stack(("user", "entity", "stream"), subject="stream") as ours, _etcd() as (port, pid):  # noqa: SIM117
        async with tenant(ours, indexed=False) as place, channel(f"unix:{ours.address('entity')}") as to:
            made = records(random.Random(5), itertools.count())
            for case in CASES:
                meter, peer_meter = Meter(ours.pids), Meter({"etcd": pid})
                rates, theirs = [], []
                revisions = case.calls * ROWS
                for _ in range(ROUNDS):
                    with peer_meter.running():
                        counted = await _etcd_round(ours.layout.run, port, case.watchers, revisions // 4)
                    theirs.append(revisions // 4 * case.watchers / counted.seconds)
                    counted = await round_of(ours, place, to, made, meter, case, case.calls)
                    rates.append(revisions * case.watchers / counted.seconds)
                context = {"watchers": case.watchers, "cores": ours.cores, "ceiling_cpu": peer_meter.cores()}
                figures.emit(f"deliveries.etcd.{case.watchers}", "deliveries/s", rates, theirs, meter.cores(), context)


async def _etcd_round(folder: Path, port: int, count: int, puts: int) -> Counted:
    create = wire.delimited(1, _PREFIX) + wire.delimited(2, _PREFIX_END)
    hello = grpc_hello(_WATCH, wire.delimited(1, create), "", half_close=False)
    feed = Feed("etcd", f"127.0.0.1:{port}", hello)
    async with watchers(folder, feed, count=count, revisions=puts) as there:
        waiting = iter(range(puts))

        async def worker(put: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
            for number in waiting:
                await put(wire.delimited(1, _PREFIX + b"%d" % (number % 1000)) + wire.delimited(2, VALUE))

        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                to = channel(f"127.0.0.1:{port}")
                for _ in range(IN_FLIGHT):
                    group.create_task(worker(to.unary_unary(_PUT)))
        return await there.counted(PATIENCE_SECONDS)


@asynccontextmanager
async def _etcd() -> AsyncIterator[tuple[int, int]]:
    """A server with an empty folder, fsync on: its client port and pid."""
    with tempfile.TemporaryDirectory(prefix="sl-etcd-") as folder:
        port, peer = _free_ports()
        url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
        process = await asyncio.create_subprocess_exec(
            *pin(SUBJECT_CORE),
            *("etcd", "--name", "peer", "--data-dir", folder, "--log-level", "error"),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"peer={peer_url}"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(20), channel(f"127.0.0.1:{port}") as to:
                put: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = to.unary_unary(_PUT)
                await put(wire.delimited(1, b"ready"), wait_for_ready=True)
            yield port, process.pid
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


if __name__ == "__main__":
    if PINNED:
        os.sched_setaffinity(0, {LOAD_CORE})
    asyncio.run(run())
