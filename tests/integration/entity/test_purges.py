"""Purging an entity: what goes, what stays, and who may."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.rpc.v1 import access_pb2
from strandline.stream.v1 import feed_pb2

from services.entity.as_of import select_states, state_of
from services.entity.model import EntityKey
from services.entity.purges import Purges
from services.entity.writes import Writer
from services.runtime.call import Namespace
from tests.integration.entity.conftest import Replica, Shore, error_info, eventually, reason, refusal
from tests.integration.entity.test_snapshots import snapshot
from tests.integration.entity.test_types import remove_type

Change = feed_pb2.Change


def secret_of(shore: Shore) -> str:
    """What nobody else in the database has."""
    return f"the wreck of the {shore.namespace.id}"


async def purge(shore: Shore, entity_id: str, type_id: str = "buoy", **more: str | bool) -> pb.PurgeEntityResponse:
    request = pb.PurgeEntityRequest(name=shore.name(entity_id, type_id), **more)  # type: ignore[arg-type]
    answer: pb.PurgeEntityResponse = await shore.replica.entities.PurgeEntity(request, metadata=shore.metadata())
    return answer


async def places_of(shore: Shore, secret: str) -> set[str]:
    """Tables of the whole database that hold *secret*, as text or as bytes."""
    rows = shore.replica.deployment.rows
    found = set()
    for (table,) in await rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        columns = await rows(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = %s", table
        )
        for column, kind in columns:
            text = f"encode({column}, 'escape')" if kind == "bytea" else f"{column}::text"
            query = f"SELECT count(*) FROM {table} WHERE strpos({text}, %s) > 0"  # noqa: S608
            if (await rows(query, secret))[0][0]:
                found.add(f"{table}.{column}")
    return found


async def live_with_a_secret(shore: Shore) -> None:
    """Two lives of b1, its neighbours in units and in an index."""
    await shore.declare(indexes=[{"fields": ["data.where"]}, {"fields": ["data.n"], "unique": True}])
    await shore.create("b1", {"where": secret_of(shore), "n": 1})
    await shore.transact(
        shore.creating("a1", {"n": 2}), shore.updating("b1", {"note": secret_of(shore)}), shore.creating("c1", {"n": 3})
    )
    await shore.delete("b1")
    await shore.create("b1", {"where": secret_of(shore) + "!", "n": 1}, request_id="r")
    await shore.batch(shore.updating("b1", {"note": 1}), shore.updating("a1", {"n": 5}))


async def test_nothing_of_a_purged_entity_can_be_found_anywhere(shore: Shore) -> None:
    await live_with_a_secret(shore)
    before = await shore.units()
    assert await places_of(shore, secret_of(shore)) == {
        "entities.data",
        "entities.message",
        "index_entries.key",
        "units.body",
    }
    answer = await purge(shore, "b1")
    assert (answer.name, answer.epoch) == (shore.name("b1"), shore.namespace.epoch)
    assert await places_of(shore, secret_of(shore)) == set()
    after = await shore.units()
    *old, deleted, purged = after
    assert (deleted.changes[0].kind, purged.changes[0].kind) == (Change.DELETED, Change.PURGED)
    assert answer.revision == purged.revision
    tombstone = purged.changes[0].entity
    last = before[-2].changes[0].entity
    assert (tombstone.name, tombstone.uid) == (last.name, last.uid)
    assert tombstone.revision == purged.revision
    assert not tombstone.HasField("data")
    for was, now in zip(before, old, strict=True):
        for change in was.changes:
            if change.entity.name == shore.name("b1"):
                change.entity.ClearField("data")
                if change.HasField("previous"):
                    change.previous.ClearField("data")
        now.DiscardUnknownFields()
        assert now == was


async def test_a_purged_entity_is_gone_at_every_revision_and_its_name_free(shore: Shore) -> None:
    await live_with_a_secret(shore)
    uid = (await shore.get("b1")).uid
    head = await shore.head()
    await purge(shore, "b1")
    assert await reason(shore.get("b1")) == "NOT_FOUND"
    assert await reason(shore.undelete("b1")) == "NOT_FOUND"
    assert await reason(purge(shore, "b1")) == "NOT_FOUND"
    assert await shore.list_ids(order_by="data.n", show_deleted=True) == ["c1", "a1"]
    for again in (False, True):
        if again:
            made = await shore.create("b1", {"n": 1})
            assert made.entity.uid != uid
        for revision in range(head + 1):
            state = select_states(shore.namespace.id, [("buoy", "b1")], revision, 2**20, show_deleted=True)
            (rows,) = await shore.replica.service.database.read(shore.namespace.id, state)
            assert state_of(rows[0]) == (("buoy", "b1"), None)
            assert "b1" not in {entity.name.rsplit("/", 1)[1] for entity in await snapshot(shore, revision)}
    assert await shore.list_ids() == ["a1", "b1", "c1"]
    await purge(shore, "b1")
    assert await shore.list_ids(show_deleted=True) == ["a1", "c1"]


async def test_a_deleted_entity_is_purged_by_one_unit(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"where": secret_of(shore)})
    await shore.delete("b1")
    head = await shore.head()
    assert (await purge(shore, "b1")).revision == head + 1


async def test_only_an_owner_purges(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {})
    editor = shore.replica.member(shore.namespace, access_pb2.Access.EDITOR)
    assert await reason(purge(editor, "b1")) == "ROLE_INSUFFICIENT"
    stranger = shore.replica.member(shore.namespace, 0)
    assert await reason(purge(stranger, "b1")) == "NOT_FOUND"
    assert await shore.head() == 2


async def test_an_etag_of_another_version_protects_and_the_right_one_lets_through(shore: Shore) -> None:
    await shore.declare()
    first = (await shore.create("b1", {})).entity.etag
    second = (await shore.update("b1", {"n": 1})).entity.etag
    failure = await refusal(purge(shore, "b1", etag=first))
    assert failure.code() == grpc.StatusCode.ABORTED
    assert error_info(failure).metadata["etag"] == second
    await shore.delete("b1")
    assert await reason(purge(shore, "b1", etag=second, request_id="r")) == "ETAG_MISMATCH"
    await shore.undelete("b1")
    assert await shore.head() == 5
    await purge(shore, "b1", etag=(await shore.get("b1")).etag)


async def test_a_repeated_purge_answers_as_the_first_time_and_goes_on_where_it_was_cut_off(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare()
    etag = (await shore.create("b1", {"where": secret_of(shore)})).entity.etag
    write_one = Writer.write_one

    async def cut_off(self: Writer, *rest: object) -> object:
        await write_one(self, *rest)  # type: ignore[arg-type]
        raise RuntimeError("the process ends here")

    with monkeypatch.context() as patched:
        patched.setattr(Writer, "write_one", cut_off)
        with pytest.raises(grpc.aio.AioRpcError):
            await purge(shore, "b1", etag=etag, request_id="r")
    assert (await shore.get("b1")).HasField("delete_time")
    done = await purge(shore, "b1", etag=etag, request_id="r")
    assert await purge(shore, "b1", etag=etag, request_id="r") == done
    assert await shore.head() == done.revision
    assert await reason(purge(shore, "b1", request_id="r")) == "REQUEST_ID_REUSED"


async def test_a_rehearsal_changes_nothing(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"where": secret_of(shore)})
    for _ in range(2):
        head = await shore.head()
        assert (await purge(shore, "b1", validate_only=True)).revision == head
        assert await shore.head() == head
        assert (await shore.get("b1")).data["where"] == secret_of(shore)
        await shore.delete("b1", allow_missing=True)
    assert await reason(purge(shore, "none", validate_only=True)) == "NOT_FOUND"


async def test_a_long_history_is_blanked_in_steps(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.entity.purge_changes.MAX_CHANGES", 7)
    monkeypatch.setattr("services.entity.purge_changes.MAX_BYTES", 2000)
    await shore.declare()
    for n in range(40):
        await shore.batch(
            shore.updating("b1", {"n": n, "where": secret_of(shore) + "." * (10 * n)}, allow_missing=True),
            shore.updating("b2", {"n": n}, allow_missing=True),
        )
    head = await shore.head()
    assert (await purge(shore, "b1")).revision == head + 2
    assert await places_of(shore, secret_of(shore)) == set()
    assert [
        change.entity.data["n"] for unit in await shore.units() for change in unit.changes if "b2" in change.entity.name
    ] == list(range(40))


async def test_what_is_blanked_at_once_is_bound_by_the_units_that_are_written_anew(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.purge_changes.MAX_BYTES", 100_000)
    blanked: list[int] = []
    real = Purges._blank

    async def blank(self: Purges, namespace: Namespace, key: EntityKey, after: int) -> int:
        last = await real(self, namespace, key, after)
        blanked.append(last - after)
        return last

    monkeypatch.setattr(Purges, "_blank", blank)
    await shore.declare()
    for n in range(12):
        await shore.transact(
            shore.updating("b1", {"n": n, "where": secret_of(shore)}, allow_missing=True),
            shore.creating(f"big{n}", {"s": "x" * 30_000}),
        )
    await purge(shore, "b1")
    assert blanked
    assert max(blanked[1:], default=0) <= 3
    assert await places_of(shore, secret_of(shore)) == set()


async def test_a_purge_frees_what_it_counted_for(shore: Shore) -> None:
    async def usage() -> list[tuple[int, int]]:
        query = "SELECT entities, bytes FROM usage WHERE namespace = %s ORDER BY type"
        return [tuple(row) for row in await shore.replica.deployment.rows(query, shore.namespace.id)]

    await shore.declare()
    await shore.create("a1", {})
    before = await usage()
    await shore.create("b1", {"where": secret_of(shore)})
    await purge(shore, "b1")
    assert await usage() == before


async def test_an_entity_of_a_type_that_is_no_more_can_be_purged(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.where"]}])
    await shore.create("b1", {"where": secret_of(shore)})
    await shore.delete("b1")
    await remove_type(shore)
    await purge(shore, "b1")

    async def gone() -> bool:
        return not await places_of(shore, secret_of(shore))

    await eventually(gone)


async def test_purges_and_writes_of_many_at_once_are_each_decided(shore: Shore, other_replica: Replica) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"], "unique": True}])
    await shore.batch(*(shore.creating(f"b{n}", {"n": n, "where": secret_of(shore)}) for n in range(30)))
    other = shore.through(other_replica)
    outcomes = await asyncio.gather(
        *(purge(shore if n % 2 else other, f"b{n}") for n in range(30)),
        *(shore.update(f"b{n}", {"where": "elsewhere"}) for n in range(0, 30, 3)),
        return_exceptions=True,
    )
    assert {type(outcome) for outcome in outcomes[:30]} == {pb.PurgeEntityResponse}
    assert await shore.list_ids(show_deleted=True) == []
    assert await places_of(shore, secret_of(shore)) == set()
    units = await shore.units()
    assert [unit.revision for unit in units] == list(range(1, len(units) + 1))
