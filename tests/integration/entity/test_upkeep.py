"""Work behind the writes goes on when a part of it fails."""

from __future__ import annotations

import json

import psycopg
import pytest

from services.entity import type_store
from services.entity.upkeep import forget_everywhere
from services.runtime.database import INDEX_WALKS_ONLY
from tests.integration.entity.building import only_builder
from tests.integration.entity.conftest import Deployment, Replica, Shore, eventually, ready


async def answer_long_ago(deployment: Deployment, shore: Shore, count: int) -> None:
    """Leave *count* answered requests of the day before yesterday."""
    await deployment.rows(
        """INSERT INTO requests (namespace, principal, method, request_id, body_hash, revision, answer, create_time)
        SELECT %s, 'ann', 'Write', n::text, '', 1, '', now() - interval '48 hours' FROM generate_series(1, %s) n
        RETURNING 1""",
        shore.namespace.id,
        count,
    )


async def remembered(deployment: Deployment, shore: Shore) -> int:
    ((count,),) = await deployment.rows("SELECT count(*) FROM requests WHERE namespace = %s", shore.namespace.id)
    return int(count)


async def test_old_requests_are_forgotten_in_parts_and_young_ones_kept(
    shore: Shore, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runtime.request_ids.FORGET_AT_ONCE", 10)
    await shore.declare()
    await answer_long_ago(replica.deployment, shore, 35)
    await forget_everywhere(replica.service.database)
    assert await remembered(replica.deployment, shore) == 1


async def test_a_namespace_whose_requests_cannot_be_forgotten_does_not_keep_others_from_it(
    replica: Replica, deployment: Deployment
) -> None:
    shores = sorted((replica.shore() for _ in range(3)), key=lambda shore: shore.namespace.id)
    for shore in shores:
        await shore.declare()
        await answer_long_ago(deployment, shore, 3)
    for statement in (
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''refused''; END'",
        f"""CREATE TRIGGER refuse BEFORE DELETE ON requests FOR EACH ROW
        WHEN (old.namespace = '{shores[0].namespace.id}') EXECUTE FUNCTION refuse()""",
    ):
        await deployment.execute(statement)
    try:
        await forget_everywhere(replica.service.database)
    finally:
        await deployment.execute("DROP FUNCTION refuse CASCADE")
    assert [await remembered(deployment, shore) for shore in shores] == [4, 1, 1]


async def test_work_on_an_index_that_fails_keeps_no_other_index_waiting(
    replica: Replica,
    other_replica: Replica,
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken, sound = sorted((replica.shore() for _ in range(2)), key=lambda shore: shore.namespace.id)
    for shore in (broken, sound):
        await shore.declare()
        await shore.create("b1", {"n": 1})
    async with only_builder(replica, other_replica) as builder:
        await broken.change_type(indexes=[{"fields": ["data.n"]}])
        query = "SELECT indexes::text FROM types WHERE namespace = %s"
        ((indexes,),) = await deployment.rows(query, broken.namespace.id)
        remember = "UPDATE types SET indexes = '[{}]' WHERE namespace = %s RETURNING 1"
        await deployment.rows(remember, broken.namespace.id)  # what no code of ours expects
        # Whoever is kept waiting by the broken one waits for an hour.
        monkeypatch.setattr("services.entity.index_builds.REST_SECONDS", 3600.0)
        monkeypatch.setattr("services.entity.index_builds.LOOK_SECONDS", 3600.0)
        builder.start()

        async def failed() -> bool:
            return f"of {broken.namespace.id} waits 3600 s after a failure" in caplog.text

        await eventually(failed)
        await sound.change_type(indexes=[{"fields": ["data.n"]}])
        await ready(sound)
        monkeypatch.undo()
        restore = "UPDATE types SET indexes = %s::json WHERE namespace = %s RETURNING 1"
        await deployment.rows(restore, json.dumps(json.loads(indexes)), broken.namespace.id)
        builder._resting.clear()

    async def finished() -> bool:
        jobs = await deployment.rows("SELECT 1 FROM index_jobs WHERE namespace = %s", broken.namespace.id)
        return not jobs

    await eventually(finished)
    assert await broken.list_ids(order_by="data.n") == ["b1"]


async def test_whether_a_type_has_live_entities_does_not_depend_on_how_many_are_deleted(
    shore: Shore, deployment: Deployment
) -> None:
    await shore.declare()
    await deployment.rows(
        """INSERT INTO entities (namespace, type, id, uid, revision, create_time, delete_time, created_by, data,
            message)
        SELECT %s, 'buoy', 'b' || n, '', 1, now(), now(), '', '{}', '' FROM generate_series(1, 20000) n RETURNING 1""",
        shore.namespace.id,
    )
    statement = type_store.select_populated(shore.namespace.id, ["buoy"])
    async with await psycopg.AsyncConnection.connect(deployment.app_url, options=INDEX_WALKS_ONLY) as connection:
        await connection.execute("SELECT set_config('app.namespace', %s, true)", (shore.namespace.id,))
        cursor = await connection.execute(b"EXPLAIN (ANALYZE, FORMAT JSON) " + statement.sql.encode(), statement.params)
        row = await cursor.fetchone()
    assert row is not None
    assert "Rows Removed by Filter" not in json.dumps(row[0])
