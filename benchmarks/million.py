"""Lists and counts at 100,000 and at 1,000,000 entities, and with 2,000 types in 200 namespaces.

One caller, one request at a time: a page of 50 by the index (country, elevation), from a random elevation on, with a
residual filter that half of the rows pass, ordered by the index; and the count of an index range of 10,000 rows. Each
through the service's own socket and through the edge as REST, the whole platform running, nothing pinned, caches warm.
The entities come in through the service, as anybody's do; then the tables are vacuumed, as autovacuum would do it some
time later. ``page_of_50_in_service`` is the service's own histogram over the pages that were asked for directly and
through the edge; ``entity_us_by_part`` is of another replica, with clocks in it (``anatomy``).

The peer, asked in turn with them, is the same page by hand-written SQL: a table of this type alone with an expression
index, analysed, without row-level security or history, over one connection with prepared statements and with the plan
that would ruin it forbidden (fetching the whole country and sorting it). Wrong to
conclude: anything about many callers at once; that is what ``point_reads`` and ``batch_writes`` are for.

``python -m benchmarks --only million`` takes about ten minutes, ``--quick`` (20,000 and 100,000) one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import grpc
import psutil
import psycopg
from strandline.entity.v1 import entity_pb2, entity_service_pb2, entity_service_pb2_grpc
from strandline_cli.api import Api
from strandline_cli.tokens import administrator_token

from benchmarks import figures, tenant
from benchmarks.anatomy import anatomy
from benchmarks.machine import Meter
from benchmarks.records import COUNTRIES, MAX_ELEVATION, Record, records
from benchmarks.service_times import Counts, ServiceTimes, quantile, share_within
from benchmarks.whole_platform import Platform, platform
from services.runtime.upstream import channel

NAMESPACE = "million"
ROWS_PER_CALL = 500
IN_FLIGHT = 4
NAMESPACES, TYPES_EACH = 200, 10
PEER = """
CREATE SCHEMA IF NOT EXISTS peer;
CREATE TABLE peer.airports (id text COLLATE "C" PRIMARY KEY, data jsonb NOT NULL);
CREATE INDEX ON peer.airports ((data->>'country'), ((data->>'elevation')::float8), id)
"""
PEER_PAGE = """SELECT id, data::text FROM peer.airports WHERE data->>'country' = %s
    AND (data->>'elevation')::float8 > %s AND data->>'open' = 'true'
    ORDER BY (data->>'elevation')::float8, id LIMIT 50"""

LIST = "/strandline.entity.v1.EntityService/ListEntities"
BAR_SECONDS = 0.005
"""What a page may take in the service."""

Ask = Callable[[], Awaitable[int]]


async def run(*, quick: bool) -> None:
    """Print the figures of each size."""
    sizes = (20_000, 100_000) if quick else (100_000, 1_000_000)
    asked = 200 if quick else 1000
    async with platform() as running, callers(running) as to:
        meter = Meter(running.pids)
        to.declare(NAMESPACE, tenant.TYPE)
        made = records(random.Random(7), itertools.count())
        pages: list[list[float]] = []
        in_service: list[Counts] = []
        times = ServiceTimes(running.run / "entity-metrics.sock", LIST)
        for size in sizes:
            began = time.perf_counter()
            await to.load([NAMESPACE], itertools.islice(made, size - to.size), lambda _: tenant.TYPE)
            loading = (size - to.size) / (time.perf_counter() - began)
            to.size = size
            await to.fill_peer()
            await to.vacuum()
            context: dict[str, object] = {
                "entities": size,
                "rows_per_second_loaded": round(loading),
                "pss_mb": to.memory(),
            }
            with meter.running():
                timed = await measure(
                    {"direct": to.page_directly, "edge": to.page_over_the_edge, "peer": to.page_by_sql},
                    asked,
                    times.begin,
                )
            counts = await times.end()
            for name in ("direct", "edge"):
                emit(f"page_of_50_{name}", timed[name], timed["peer"], meter, context)
            pages.append(timed["direct"])
            parts = await anatomy(running.layout, "ListEntities", to.page_by_page(asked), asked // 5)
            noted = {**context, "within_5_ms": round(share_within(counts, BAR_SECONDS), 4), "entity_us_by_part": parts}
            for percent in (50, 99):
                peer = 1000 * figures.percentile(timed["peer"], percent)
                figures.emit(
                    f"page_of_50_in_service_p{percent}",
                    "ms",
                    [1000 * quantile(counts, percent)],
                    [peer],
                    meter.cores(),
                    noted,
                )
            in_service.append(counts)
            with meter.running():
                timed = await measure({"count": to.count_directly, "peer": to.page_by_sql}, max(20, asked // 10))
            emit("count_of_10000", timed["count"], timed["peer"], meter, context)
        for percent in (50, 99):
            grown = {"from": sizes[0], "to": sizes[1]}
            small, large = (1000 * figures.percentile(timed, percent) for timed in pages)
            figures.emit(f"page_growth_p{percent}", "ms", [large], [small], meter.cores(), grown)
            small, large = (1000 * quantile(counts, percent) for counts in in_service)
            figures.emit(f"page_growth_in_service_p{percent}", "ms", [large], [small], meter.cores(), grown)
        await _index_build(to, meter)
        await _many_types(to, meter, sizes[1] // 5, asked)


async def _index_build(to: Callers, meter: Meter) -> None:
    """Add an index to the large type: how long that takes, and what one write after the other waits meanwhile."""
    before = await to.write_for(asyncio.create_task(asyncio.sleep(5)))
    began = time.perf_counter()
    with meter.running():
        during = await to.write_for(asyncio.create_task(to.build_index(["data.kind", "data.name"])))
    seconds = time.perf_counter() - began
    context: dict[str, object] = {
        "entities": to.size,
        "build_seconds": round(seconds, 1),
        "longest_ms": [round(1000 * max(before), 1), round(1000 * max(during), 1)],
    }
    emit("write_during_index_build", during, before, meter, context)


async def _many_types(to: Callers, meter: Meter, size: int, asked: int) -> None:
    """The same with 2,000 types in 200 namespaces beside them."""
    namespaces = [f"tenant-{number}" for number in range(NAMESPACES)]
    types = [f"{tenant.TYPE}{number}" for number in range(TYPES_EACH)]
    for namespace in namespaces:
        await asyncio.to_thread(to.declare, namespace, *types)
    made = itertools.islice(records(random.Random(8), itertools.count()), size)
    await to.load(namespaces, made, lambda number: types[number % TYPES_EACH])

    async def anywhere() -> int:
        return await to.page_directly(random.choice(namespaces), random.choice(types), least=0)

    with meter.running():
        timed = await measure({"direct": anywhere, "peer": to.page_by_sql}, asked)
    context: dict[str, object] = {
        "namespaces": NAMESPACES,
        "types": NAMESPACES * TYPES_EACH,
        "entities": size,
        "pss_mb": to.memory(),
    }
    emit("page_of_50_many_types", timed["direct"], timed["peer"], meter, context)


async def measure(
    asks: dict[str, Ask], count: int, warmed_up: Callable[[], Awaitable[None]] | None = None
) -> dict[str, list[float]]:
    """Seconds of each of *count* answers, all asked in turn, after a fifth as many for warming up."""
    timed: dict[str, list[float]] = {name: [] for name in asks}
    for turn in range(count + count // 5):
        if turn == count // 5 and warmed_up is not None:
            await warmed_up()
        for name, ask in asks.items():
            began = time.perf_counter()
            await ask()
            if turn >= count // 5:
                timed[name].append(time.perf_counter() - began)
    return timed


def emit(name: str, ours: Sequence[float], peer: Sequence[float], meter: Meter, context: dict[str, object]) -> None:
    """Print p50 and p99 in milliseconds."""
    for percent in (50, 99):
        values = [1000 * figures.percentile(ours, percent)]
        figures.emit(
            f"{name}_p{percent}", "ms", values, [1000 * figures.percentile(peer, percent)], meter.cores(), context
        )


@dataclass
class Callers:
    """Everything that asks."""

    running: Platform
    token: str
    entities: entity_service_pb2_grpc.EntityServiceAsyncStub
    batch: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
    session: aiohttp.ClientSession
    database: psycopg.AsyncConnection[tuple[object, ...]]
    size: int = 0
    """Entities in the large namespace."""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)

    def memory(self) -> int:
        """Megabytes (PSS) of the entity service."""
        return round(psutil.Process(self.running.pids["entity"]).memory_full_info().pss / 1e6)

    def declare(self, namespace: str, *types: str) -> None:
        """Make a namespace with *types*, each with the three indexes."""
        api = Api(self.running.rest, self.token)
        api.call("POST", f"/v1/namespaces?namespaceId={namespace}", {"massChangeGuard": "OFF"})
        declared = {"schema": tenant.SCHEMA, "indexes": [{"fields": list(fields)} for fields in tenant.INDEXES]}
        for name in types:
            api.call("POST", f"/v1/namespaces/{namespace}/types?typeId={name}", declared)

    async def load(self, namespaces: Sequence[str], made: Iterator[Record], type_of: Callable[[int], str]) -> None:
        """Create *made*, in turn in each of *namespaces*."""
        waiting = self._requests(namespaces, made, type_of)

        async def worker() -> None:
            for request in waiting:
                self.token = await asyncio.to_thread(administrator_token, self.running.home, self.running.rest)
                raw = await self.batch(request.SerializeToString(), metadata=self.metadata)
                answer = entity_service_pb2.BatchWriteResponse.FromString(raw)
                if failed := [result.status for result in answer.results if result.status.code]:
                    raise RuntimeError(f"{len(failed)} rows failed: {failed[0]}")

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))

    def _requests(
        self, namespaces: Sequence[str], made: Iterator[Record], type_of: Callable[[int], str]
    ) -> Iterator[entity_service_pb2.BatchWriteRequest]:
        places = itertools.cycle(namespaces)
        while rows := list(itertools.islice(made, ROWS_PER_CALL)):
            parent = f"namespaces/{next(places)}"
            names = (f"{parent}/types/{type_of(number)}/entities/{row.id}" for number, row in enumerate(rows))
            creates = (
                entity_pb2.CreateMutation(name=name, data_json=row.data) for name, row in zip(names, rows, strict=True)
            )
            yield entity_service_pb2.BatchWriteRequest(
                parent=parent, writes=[entity_pb2.Mutation(create=create) for create in creates]
            )

    async def write_for(self, other: asyncio.Task[None]) -> list[float]:
        """Write one entity after the other until *other* is done; how long each took."""
        timed: list[float] = []
        name = f"namespaces/{NAMESPACE}/types/{tenant.TYPE}/entities/written"
        while not other.done():
            request = entity_service_pb2.UpdateEntityRequest(allow_missing=True, update_mask=["*"])
            request.entity.name = name
            request.entity.data.update({"name": f"n{len(timed)}", "country": "CH"})
            began = time.perf_counter()
            await self.entities.UpdateEntity(request, metadata=self.metadata)
            timed.append(time.perf_counter() - began)
        await other
        return timed

    async def build_index(self, fields: Sequence[str]) -> None:
        """Add an index to the large type and wait until it is READY."""
        self.token = administrator_token(self.running.home, self.running.rest)
        api = Api(self.running.rest, self.token)
        path = f"/v1/namespaces/{NAMESPACE}/types/{tenant.TYPE}"
        indexes = [{"fields": list(each)} for each in (*tenant.INDEXES, fields)]
        await asyncio.to_thread(api.call, "PATCH", path, {"indexes": indexes})
        while True:
            type_ = await asyncio.to_thread(api.call, "GET", path)
            if all(index["state"] == "READY" for index in type_["indexes"]):
                return
            await asyncio.sleep(0.2)

    async def fill_peer(self) -> None:
        """Copy the entities into the peer's table."""
        await self.database.execute("DROP SCHEMA IF EXISTS peer CASCADE")
        for statement in PEER.split(";"):
            await self.database.execute(statement.encode())
        await self.database.execute(
            "INSERT INTO peer.airports SELECT id, data FROM public.entities WHERE namespace = %s", (NAMESPACE,)
        )
        await self.database.execute("VACUUM ANALYZE peer.airports")

    async def vacuum(self) -> None:
        """Do what autovacuum would do after such a load: walks of an index need not look at the table then."""
        await self.database.execute("VACUUM entities, index_entries, units, versions, requests")

    async def page_by_sql(self) -> int:
        cursor = await self.database.execute(
            PEER_PAGE, (random.choice(COUNTRIES), random.random() * MAX_ELEVATION * 0.7), prepare=True
        )
        return len(await cursor.fetchall())

    async def page_directly(self, namespace: str = NAMESPACE, type_id: str = tenant.TYPE, least: int = 50) -> int:
        answer = await self.entities.ListEntities(
            entity_service_pb2.ListEntitiesRequest(
                parent=f"namespaces/{namespace}/types/{type_id}", filter=_filter(), order_by="data.elevation"
            ),
            metadata=self.metadata,
        )
        if len(answer.entities) < least:
            raise RuntimeError(f"a page holds {len(answer.entities)} entities")
        return len(answer.entities)

    def page_by_page(self, count: int) -> Callable[[Path], Awaitable[None]]:
        """What asks a replica's socket for *count* pages, one after the other, and a fifth as many before."""

        async def load(socket: Path) -> None:
            async with channel(f"unix:{socket}") as to:
                replica = replace(self, entities=entity_service_pb2_grpc.EntityServiceStub(to))
                for _ in range(count + count // 5):
                    await replica.page_directly()

        return load

    async def page_over_the_edge(self) -> int:
        params = {"filter": _filter(), "order_by": "data.elevation"}
        path = f"/v1/namespaces/{NAMESPACE}/types/{tenant.TYPE}/entities"
        headers = {"authorization": f"Bearer {self.token}"}
        async with self.session.get(path, params=params, headers=headers) as response:
            content = await response.read()
            if response.status != 200:
                raise RuntimeError(content.decode()[:300])
        return len(json.loads(content)["entities"])

    async def count_directly(self) -> int:
        share = min(1.0, 10_000 / (self.size / len(COUNTRIES)))
        low = random.random() * (1 - share) * MAX_ELEVATION
        answer = await self.entities.CountEntities(
            entity_service_pb2.CountEntitiesRequest(
                parent=f"namespaces/{NAMESPACE}/types/{tenant.TYPE}",
                filter=f'data.country = "{random.choice(COUNTRIES)}" AND data.elevation >= {low} '
                f"AND data.elevation < {low + share * MAX_ELEVATION}",
            ),
            metadata=self.metadata,
        )
        return int(answer.count)


def _filter() -> str:
    elevation = round(random.random() * MAX_ELEVATION * 0.7, 3)
    return f'data.country = "{random.choice(COUNTRIES)}" AND data.elevation > {elevation} AND data.open = true'


@asynccontextmanager
async def callers(running: Platform) -> AsyncIterator[Callers]:
    """Connections to the service's own socket, to the edge and to the database."""
    token = administrator_token(running.home, running.rest)
    async with (
        channel(f"unix:{running.run / 'entity.sock'}") as to,
        aiohttp.ClientSession(running.rest) as session,
        await psycopg.AsyncConnection.connect(
            running.database("entity"), autocommit=True, options="-c enable_bitmapscan=off"
        ) as database,
    ):
        batch: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = to.unary_unary(
            "/strandline.entity.v1.EntityService/BatchWrite"
        )
        yield Callers(running, token, entity_service_pb2_grpc.EntityServiceStub(to), batch, session, database)
