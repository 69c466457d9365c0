"""Snapshots for feeds, and the removal of a namespace."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta

import pytest
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.stream.v1 import log_service_pb2

from services.entity import purge
from services.runtime.call import Namespace
from tests.integration.entity.conftest import Replica, Shore, reason


async def snapshot(
    shore: Shore, revision: int, types: tuple[str, ...] = (), max_bytes: int = 0
) -> list[entity_pb2.Entity]:
    """All pages."""
    entities: list[entity_pb2.Entity] = []
    after = ("", "")
    while True:
        request = log_service_pb2.ReadSnapshotRequest(
            namespace_id=shore.namespace.id,
            epoch=shore.namespace.epoch,
            revision=revision,
            types=types,
            after_type=after[0],
            after_id=after[1],
            max_bytes=max_bytes,
        )
        page = await shore.replica.log.ReadSnapshot(request)
        entities += map(entity_pb2.Entity.FromString, page.entities)
        after = (page.next_type, page.next_id)
        if after == ("", ""):
            return entities


async def test_a_snapshot_is_the_state_at_its_revision_whatever_comes_after(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.snapshots.MAX_WALKED", 7)
    rng = random.Random(3)
    for type_id in ("buoy", "whale", "ship"):
        await shore.declare(type_id)
    for _ in range(40):
        writes = []
        for entity_id in rng.sample(range(30), 5):
            type_id = rng.choice(("buoy", "whale", "ship"))
            name = f"e{entity_id}"
            if rng.random() < 0.3:
                writes.append(shore.deleting(name, type_id, allow_missing=True))
            else:
                writes.append(shore.updating(name, {"n": rng.random()}, type_id, allow_missing=True))
        await shore.batch(*writes)
    units = await shore.units()
    state: dict[str, entity_pb2.Entity] = {}
    for unit in units:
        for change in unit.changes:
            if change.entity.HasField("delete_time"):
                del state[change.entity.name]
            elif change.HasField("entity"):
                state[change.entity.name] = change.entity
        if unit.revision % 17 == 0 or unit.revision == units[-1].revision:
            ordered = sorted(state.values(), key=lambda entity: entity.name.split("/")[3::2])
            assert await snapshot(shore, unit.revision) == ordered
            assert await snapshot(shore, unit.revision, max_bytes=500) == ordered
            some = [entity for entity in ordered if entity.type in ("whale", "buoy")]
            assert await snapshot(shore, unit.revision, types=("whale", "nothing", "buoy")) == some


async def test_a_snapshot_is_complete_while_writes_go_on(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.entity.snapshots.MAX_WALKED", 10)
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:03}", {"n": n}) for n in range(200)))
    revision = await shore.head()

    async def write() -> None:
        for n in range(0, 200, 3):
            await shore.batch(
                shore.deleting(f"b{n:03}"), shore.updating(f"b{n + 1:03}", {"n": -1}), shore.creating(f"a{n:03}", {})
            )

    writing = asyncio.create_task(write())
    entities = await snapshot(shore, revision)
    await writing
    assert [entity.data["n"] for entity in entities] == list(range(200))


async def test_a_snapshot_of_the_future_is_refused(shore: Shore) -> None:
    await shore.declare()
    assert await reason(snapshot(shore, 2)) == "FUTURE_REVISION"


async def purge_all(replica: Replica, namespace: Namespace) -> int:
    """Purge to the end; how many calls it took."""
    request = pb.PurgeNamespaceRequest(namespace_id=namespace.id, epoch=namespace.epoch)
    for calls in range(1, 200):
        if (await replica.entities.PurgeNamespace(request)).done:
            return calls
        await asyncio.sleep(0.02)
    raise AssertionError("the purge does not end")


async def test_a_purge_leaves_nothing_and_a_new_life_begins_at_one(
    shore: Shore, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.purge.STEP_SECONDS", 0.0)
    monkeypatch.setattr("services.entity.purge.ROWS_AT_ONCE", 100)
    monkeypatch.setattr("services.entity.purge.GRACE", timedelta(seconds=0.1))
    neighbour = replica.shore()
    for each in (shore, neighbour):
        await each.declare(indexes=[{"fields": ["data.n"]}])
        await each.batch(*(each.creating(f"b{n}", {"n": n}) for n in range(250)), request_id="r")
    assert await purge_all(replica, shore.namespace) > 5
    for table in (*purge._TABLES, "heads"):
        query = "SELECT count(*) FROM a_table WHERE namespace = %s".replace("a_table", table)
        assert await replica.deployment.rows(query, shore.namespace.id) == [(0,)], table
    assert len(await neighbour.list_ids(order_by="data.n")) == 250
    again = Namespace(shore.namespace.id, "0badcafe")
    replica.deployment.members.namespaces[again.id] = again
    reborn = Shore(replica, again, shore.user_id, shore.token)
    assert (await reborn.declare()).revision == 1
    assert await purge_all(replica, shore.namespace) == 1  # another life is left alone
    assert (await reborn.get_type()).revision == 1


async def test_a_namespace_that_is_being_purged_takes_no_writes(shore: Shore, replica: Replica) -> None:
    await shore.declare()
    request = pb.PurgeNamespaceRequest(namespace_id=shore.namespace.id, epoch=shore.namespace.epoch)
    assert not (await replica.entities.PurgeNamespace(request)).done
    assert await reason(shore.create("b1", {})) == "OVERLOADED"
    assert await reason(shore.get("b1")) == "OVERLOADED"
