"""Rows per second that two entity processes write to one namespace; the ceiling is one process with the same load.

Both processes share the core that is the one process's otherwise, so this is about what the second one costs: waiting
for the other's lock, smaller batches, caches. The load is that of ``batch_writes``: 4 calls of 500 rows in flight, two
at each process. One process and two take turns. After each turn the log must be dense and its times must rise with its
revisions, or there is no figure.

Wrong to conclude: what a second process on a second core brings.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext

import grpc
import psycopg

from benchmarks import figures
from benchmarks.batch_writes import IN_FLIGHT, ROWS, WARM_UP, check, newest_revision, requests_of, send
from benchmarks.machine import Meter
from benchmarks.records import records
from benchmarks.stack import Stack, second_replica
from benchmarks.tenant import Tenant, tenant
from services.runtime.upstream import channel


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``replicas``."""
    rounds, seconds = (2, 1.0) if quick else (5, 3.0)
    async with (
        second_replica(stack) as (process, socket),
        tenant(stack, indexed=True) as place,
        channel(f"unix:{stack.address('entity')}") as first,
        channel(f"unix:{socket}") as second,
    ):
        meter = Meter({**stack.pids, "entity-2": process.pid})
        made = records(random.Random(5), itertools.count())
        rates: dict[int, list[float]] = {1: [], 2: []}
        calls = WARM_UP
        for turn in range(rounds + 1):
            for targets in ([first], [first, second]):
                # As many calls for both, so that the tables grow alike.
                requests = list(requests_of(place, made, calls))
                with meter.running() if len(targets) == 2 else nullcontext():
                    elapsed = await _write(targets, place, requests)
                rates[len(targets)].append(calls * ROWS / elapsed)
            if not turn:
                calls = max(WARM_UP, round(rates[1][0] * seconds / ROWS) // 2 * 2)
        head = await newest_revision(place)
        await _check_log(stack, place, head)
    context = {
        "in_flight": IN_FLIGHT,
        "rows_per_call": ROWS,
        "indexes": 3,
        "cores": {**stack.cores, "entity-2": stack.cores.get("entity", "any")},
        "sidecars": False,
        "revisions": head,
    }
    figures.emit("replicas", "rows/s", rates[2][1:], rates[1][1:], meter.cores(), context)


async def _write(targets: Sequence[grpc.aio.Channel], place: Tenant, requests: Sequence[bytes]) -> float:
    """Send each target its share; the seconds that it took."""
    shares = [requests[n :: len(targets)] for n in range(len(targets))]
    began = time.perf_counter()
    answers = await asyncio.gather(
        *(
            send(target, share, place.metadata, IN_FLIGHT // len(targets))
            for target, share in zip(targets, shares, strict=True)
        )
    )
    elapsed = time.perf_counter() - began
    for answered in answers:
        check(answered)
    return elapsed


async def _check_log(stack: Stack, place: Tenant, head: int) -> None:
    async with await psycopg.AsyncConnection.connect(stack.database("entity")) as connection:
        cursor = await connection.execute(
            """SELECT count(*), min(revision), max(revision), count(*) FILTER (WHERE commit_time <= earlier)
            FROM (SELECT revision, commit_time, lag(commit_time) OVER (ORDER BY revision) AS earlier
                FROM units WHERE namespace = %s) log""",
            (place.namespace,),
        )
        found = await cursor.fetchone()
    if found != (head, 1, head, 0):
        raise RuntimeError(f"the log is not dense or not in order: {found}, its head is {head}")
