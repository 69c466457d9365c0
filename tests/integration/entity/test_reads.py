"""Point reads: many at a time in one statement, each from one moment."""

from __future__ import annotations

import asyncio

import grpc
import psycopg
import pytest
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import entity_service_pb2 as pb

from services.entity import store
from services.entity.model import EntityKey
from services.entity.reads import MAX_BYTES_TOGETHER, Reader
from services.runtime.database import INDEX_WALKS_ONLY, Row, Statement
from tests.integration.entity.conftest import Deployment, Shore


async def test_an_entity_and_the_revision_beside_it_are_of_one_moment(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 0})
    writing = asyncio.create_task(write(shore, 60))
    reads = 0
    while not writing.done():
        request = pb.GetEntityRequest(name=shore.name("b1"))
        calls = [shore.replica.entities.GetEntity(request, metadata=shore.metadata()) for _ in range(8)]
        for answer in await asyncio.gather(*calls):
            # Nothing else is written in this namespace.
            assert answer.entity.revision == answer.revision
            reads += 1
    await writing
    assert reads


async def write(shore: Shore, times: int) -> None:
    for number in range(times):
        await shore.update("b1", {"n": number + 1})


async def test_reads_that_go_together_are_each_answered_with_their_own(shore: Shore) -> None:
    for type_id in ("buoy", "ship"):
        await shore.declare(type_id)
        await shore.batch(*(shore.creating(f"e{n}", {"n": n}, type_id) for n in range(20)))
    await shore.delete("e3")

    async def read(type_id: str, number: int) -> None:
        if number >= 20:
            with pytest.raises(grpc.aio.AioRpcError) as missing:
                await shore.get(f"e{number}", type_id)
            assert missing.value.code() == grpc.StatusCode.NOT_FOUND
            return
        entity = await shore.get(f"e{number}", type_id)
        assert (entity.name, entity.data["n"]) == (shore.name(f"e{number}", type_id), number)
        assert entity.HasField("delete_time") is ((type_id, number) == ("buoy", 3))

    await asyncio.gather(
        *(read(type_id, number) for _ in range(3) for number in range(24) for type_id in ("buoy", "ship"))
    )


async def test_large_entities_that_are_read_together_take_several_statements(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare()
    large, small = [f"l{n:03}" for n in range(70)], [f"s{n:03}" for n in range(70)]
    for start in range(0, 70, 10):
        await shore.batch(*(shore.creating(name, {"s": "x" * 250_000}) for name in large[start : start + 10]))
    await shore.batch(*(shore.creating(name, {}) for name in small))
    database = shore.replica.service.database
    read_one, statements = database.read_one, []

    async def read(statement: Statement) -> list[Row]:
        rows = await read_one(statement)
        statements.append(sum(len(row[4]) for row in rows if row[4] is not None))
        return rows

    monkeypatch.setattr(database, "read_one", read)
    reader = Reader(database)
    names = [*large, "none", *small, *large]
    answers = await asyncio.gather(*(reader.get(shore.namespace, EntityKey("buoy", name)) for name in names))
    found = [entity_pb2.Entity.FromString(message).name if message else "" for _, message in answers]
    assert found == [shore.name(name) if name != "none" else "" for name in names]
    assert max(statements) <= MAX_BYTES_TOGETHER


async def test_a_caller_who_goes_away_takes_nobody_along(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 0})
    for _ in range(20):
        request = pb.GetEntityRequest(name=shore.name("b1"))
        calls = [shore.replica.entities.GetEntity(request, metadata=shore.metadata()) for _ in range(6)]
        await asyncio.sleep(0)
        calls[0].cancel()
        answers = await asyncio.gather(*calls[1:])
        assert [answer.entity.name for answer in answers] == [shore.name("b1")] * 5


async def test_a_read_looks_at_what_it_asks_for_and_nothing_else(shore: Shore, deployment: Deployment) -> None:
    await shore.declare()
    await deployment.rows(
        """INSERT INTO entities (namespace, type, id, uid, revision, create_time, created_by, data, message)
        SELECT %s, 'buoy', 'b' || n, '', 1, now(), '', '{}', 'm' FROM generate_series(1, 20000) n RETURNING 1""",
        shore.namespace.id,
    )
    statement = store.read_entities(shore.namespace.id, [EntityKey("buoy", f"b{n}") for n in (1, 2, 30000)], 2**20)
    looked_at = "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::int FROM pg_stat_xact_user_tables"
    async with await psycopg.AsyncConnection.connect(deployment.app_url, options=INDEX_WALKS_ONLY) as connection:
        before = await (await connection.execute(looked_at)).fetchone()
        rows = await (await connection.execute(statement.sql, statement.params)).fetchall()
        after = await (await connection.execute(looked_at)).fetchone()
    assert [row[4] for row in sorted(rows, key=lambda row: row[3])] == [b"m", b"m", None]
    assert before is not None
    assert after is not None
    assert after[0] - before[0] == 3  # the head and two entities


async def test_a_read_sees_no_other_namespace(shore: Shore, deployment: Deployment) -> None:
    await shore.declare()
    await shore.create("b1", {})
    statement = store.read_entities("nobody", [EntityKey("buoy", "b1")], 2**20)
    async with await psycopg.AsyncConnection.connect(deployment.app_url, options=INDEX_WALKS_ONLY) as connection:
        assert await (await connection.execute(statement.sql, statement.params)).fetchall() == []
