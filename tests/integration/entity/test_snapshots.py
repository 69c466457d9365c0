"""Snapshots for feeds, and the removal of a namespace."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.stream.v1 import log_service_pb2

from services.entity import purge, store
from services.entity.type_changes import TypeChange, TypeOperation
from services.runtime import changelog
from services.runtime.call import Namespace
from services.runtime.database import pipeline
from services.runtime.errors import Unavailable
from tests.integration.entity.conftest import Replica, Shore, error_info, reason, refusal


async def snapshot(
    shore: Shore, revision: int, types: tuple[str, ...] = (), max_bytes: int = 0, ids: tuple[str, ...] = ()
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
            ids=ids,
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
            ids = ("buoy/none", *(f"{type_id}/e{n}" for n in range(0, 30, 3) for type_id in ("whale", "buoy")))
            named = [entity for entity in some if "/".join(entity.name.split("/")[3::2]) in ids]
            for max_bytes in (0, 500):
                assert await snapshot(shore, unit.revision, ("buoy", "whale"), max_bytes, ids) == named


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


async def test_a_snapshot_of_another_life_is_refused(shore: Shore, replica: Replica) -> None:
    await shore.declare()
    other = Shore(replica, Namespace(shore.namespace.id, "0badcafe"), shore.user_id, shore.token)
    failure = await refusal(snapshot(other, 1))
    assert failure.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert error_info(failure).reason == "EPOCH_CHANGED"
    assert error_info(failure).metadata["epoch"] == shore.namespace.epoch


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
    neighbour = replica.shore()
    for each in (shore, neighbour):
        await each.declare(indexes=[{"fields": ["data.n"]}])
        await each.batch(*(each.creating(f"b{n}", {"n": n}) for n in range(250)), request_id="r")
    assert await purge_all(replica, shore.namespace) > 5
    for table in purge.TABLES:
        query = "SELECT count(*) FROM a_table WHERE namespace = %s".replace("a_table", table)
        assert await replica.deployment.rows(query, shore.namespace.id) == [(0,)], table
    assert len(await neighbour.list_ids(order_by="data.n")) == 250
    again = Namespace(shore.namespace.id, "0badcafe")
    replica.deployment.members.namespaces[again.id] = again
    reborn = Shore(replica, again, shore.user_id, shore.token)
    assert (await reborn.declare()).revision == 1
    assert await purge_all(replica, shore.namespace) == 1  # another life is left alone
    assert (await reborn.get_type()).revision == 1


async def test_a_namespace_that_is_being_purged_takes_no_writes(
    shore: Shore, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.purge.STEP_SECONDS", 0.0)
    await shore.declare()
    request = pb.PurgeNamespaceRequest(namespace_id=shore.namespace.id, epoch=shore.namespace.epoch)
    assert not (await replica.entities.PurgeNamespace(request)).done
    assert await reason(shore.create("b1", {})) == "OVERLOADED"
    assert await reason(shore.get("b1")) == "OVERLOADED"


def reborn(shore: Shore, epoch: str) -> Shore:
    """The same namespace in another life, which is the one that access knows from now on."""
    namespace = Namespace(shore.namespace.id, epoch)
    shore.replica.deployment.members.namespaces[namespace.id] = namespace
    return Shore(shore.replica, namespace, shore.user_id, shore.token)


@pytest.mark.parametrize("written", [True, False], ids=["written to", "never written to"])
async def test_a_writer_that_comes_after_the_purge_begins_no_log_for_the_dead_life(
    shore: Shore, replica: Replica, other_replica: Replica, written: bool
) -> None:
    if written:
        await shore.declare()
    await purge_all(replica, shore.namespace)
    for late in (shore, shore.through(other_replica)):
        assert await reason(late.declare()) == "OVERLOADED"
    assert await shore.head() == 0
    second = reborn(shore, "0badcafe")
    assert (await second.declare()).revision == 1
    await purge_all(replica, second.namespace)
    for dead in (shore.namespace.epoch, "0badcafe"):
        assert await reason(reborn(shore, dead).declare()) == "OVERLOADED"
    assert await purge_all(replica, shore.namespace) == 1
    assert (await reborn(shore, "1badcafe").declare()).revision == 1


async def test_a_new_life_begins_while_writers_of_the_dead_one_still_come(
    shore: Shore, replica: Replica, other_replica: Replica
) -> None:
    await shore.declare()
    await purge_all(replica, shore.namespace)
    dead, alive = shore.namespace, Namespace(shore.namespace.id, "0badcafe")
    declared: list[int] = []

    async def write(where: Replica, namespace: Namespace, type_id: str) -> None:
        change = TypeChange(
            actor=shore.user_id,
            method="CreateType",
            request_id=f"{namespace.epoch}{type_id}",
            body_hash=b"",
            exclusive=frozenset({type_id}),
            operation=TypeOperation.CREATE,
            type_id=type_id,
        )
        try:
            declared.append((await where.service.committer.commit(namespace, change)).revision)
        except Unavailable:
            assert namespace is dead
        else:
            assert namespace is alive

    places = [(where, life) for where in (replica, other_replica) for life in (dead, alive)]
    await asyncio.gather(*(write(*place, f"t{n}") for n, place in enumerate(places * 10)))
    assert sorted(declared) == list(range(1, 21))


async def test_a_step_on_an_index_that_is_under_way_leaves_nothing_in_a_purged_namespace(
    shore: Shore, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare()
    monkeypatch.setattr("services.entity.purge.STEP_SECONDS", 0.0)
    request = pb.PurgeNamespaceRequest(namespace_id=shore.namespace.id, epoch=shore.namespace.epoch)
    assert not (await replica.entities.PurgeNamespace(request)).done
    async with replica.service.database.connection() as connection, connection.transaction():
        await connection.execute(changelog.LOCK_HEAD, (shore.namespace.id,))
        purging = asyncio.create_task(purge_all(replica, shore.namespace))
        await asyncio.sleep(0.3)
        await pipeline(connection, store.fill_entries(shore.namespace.id, [(1, False, b"key", "b1")]))
    await purging
    left = "SELECT count(*) FROM index_entries WHERE namespace = %s"
    assert await replica.deployment.rows(left, shore.namespace.id) == [(0,)]
