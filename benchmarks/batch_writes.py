"""Rows per second of ``BatchWrite``: 500 creates a call as ``data_json``, schema checked, three indexes, 4 in flight.

In the path: gRPC on the entity service's own socket, parsing and validating every row, its three index keys, its unit,
version and remembered request, PostgreSQL on the other core with fsync on. The client is this process, on the core of
PostgreSQL: its requests are serialized beforehand, its answers are parsed afterwards, and ``cpu.load`` says how little
it takes. Every answer must say OK for every row.

Where the time goes, in us per row. The entity process (CPU of the stages alone, best of 25 rounds, so without gRPC and
the loop): parse the mutation 6.5, validate, encode and make index keys 11.3, fingerprint 1.8, make the unit 3.8, take
the batch and put its reads together 4.2, decide and encode entity and unit 20, pack arrays for the log 3, for entities
and index entries 6, answer 2.8; 60 together. (Measured before the passes over a batch were made fewer, which took 14 %
off the same stages of an import.) PostgreSQL (elapsed by statement, medians on a busy machine): index entries 46 (three
a row; 11 at best), entities 12, units 6, versions 5, requests 3 (one row for up to 128 writes), everything else below
2.

The ceiling is COPY of the very rows that each round made (see ``copying``). Wrong to conclude: that the ratio could
reach 1; COPY neither parses nor checks anything and does not remember requests for retries. Nor is this the rate of an
import, which reads a file and goes through the edge.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence

import grpc
from strandline.entity.v1 import entity_pb2, entity_service_pb2

from benchmarks import figures
from benchmarks.copying import CopyCeiling
from benchmarks.machine import Meter
from benchmarks.records import Record, records
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant, tenant
from services.runtime.upstream import channel

METHOD = "/strandline.entity.v1.EntityService/BatchWrite"
ROWS = 500
IN_FLIGHT = 4
WARM_UP = 8


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``batch_writes``."""
    rounds, seconds = (2, 1.0) if quick else (5, 3.0)
    copy = CopyCeiling(stack.database("entity"))
    meter = Meter(stack.pids)
    rates: list[float] = []
    ceilings: list[float] = []
    rows = 0
    async with tenant(stack, indexed=True) as place, channel(f"unix:{stack.address('entity')}") as to:
        await copy.create()
        made = records(random.Random(3), itertools.count())
        revision = await newest_revision(place)
        # The first turn warms both up, says how much the others may take, and is thrown away.
        for turn in range(rounds + 1):
            calls = max(IN_FLIGHT, round(rates[0] * seconds / ROWS)) if turn else WARM_UP
            requests = list(requests_of(place, made, calls))
            with meter.running():
                began = time.perf_counter()
                answers = await send(to, requests, place.metadata)
                elapsed = time.perf_counter() - began
            before, revision = revision, check(answers)
            if revision - before != calls * ROWS:
                raise RuntimeError(f"{calls * ROWS} rows made {revision - before} revisions")
            copied = await copy.seconds(place.namespace, before, revision)
            rows += calls * ROWS
            rates.append(calls * ROWS / elapsed)
            ceilings.append(calls * ROWS / copied)
    context = {
        "in_flight": IN_FLIGHT,
        "rows_per_call": ROWS,
        "indexes": 3,
        "cores": stack.cores,
        "sidecars": False,
        "cpu_us_per_row": meter.microseconds(rows),
    }
    figures.emit("batch_writes", "rows/s", rates[1:], ceilings[1:], meter.cores(), context)


async def newest_revision(place: Tenant) -> int:
    """The newest revision, told by a write that is only checked."""
    create = entity_pb2.CreateMutation(
        name=f"{place.type_name}/entities/probe", data_json=b'{"name":"","country":"CH"}'
    )
    probe = entity_service_pb2.TransactRequest(
        parent=place.parent, mutations=[entity_pb2.Mutation(create=create)], validate_only=True
    )
    return (await place.entities.Transact(probe, metadata=place.metadata)).revision


def requests_of(place: Tenant, made: Iterator[Record], count: int) -> Iterator[bytes]:
    """*count* calls that create ``ROWS`` of *made* each."""
    for _ in range(count):
        writes = [
            entity_pb2.Mutation(
                create=entity_pb2.CreateMutation(name=f"{place.type_name}/entities/{record.id}", data_json=record.data)
            )
            for record in itertools.islice(made, ROWS)
        ]
        yield entity_service_pb2.BatchWriteRequest(parent=place.parent, writes=writes).SerializeToString()


async def send(
    to: grpc.aio.Channel,
    requests: Iterable[bytes],
    metadata: tuple[tuple[str, str], ...],
    in_flight: int = IN_FLIGHT,
) -> list[bytes]:
    """The answers to *requests*."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = to.unary_unary(METHOD)
    waiting = iter(requests)
    answers: list[bytes] = []

    async def worker() -> None:
        for request in waiting:
            answers.append(await call(request, metadata=metadata))

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return answers


def check(answers: Sequence[bytes]) -> int:
    """The newest revision; raises unless every row of every answer is OK."""
    newest = 0
    for answer in map(entity_service_pb2.BatchWriteResponse.FromString, answers):
        failed = [result.status for result in answer.results if result.status.code]
        if failed or len(answer.results) != ROWS:
            raise RuntimeError(f"{len(failed)} rows of a batch failed: {failed[:1]}")
        newest = max(newest, answer.revision)
    return newest
