"""Entities that expire: when, once, and what they leave."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.stream.v1 import feed_pb2

from services.entity import expiry
from services.entity.decisions import Effect, Prepared, decide
from services.entity.model import EntityKey
from services.entity.mutations import Kind
from services.entity.purge import Purger
from services.entity.writes import Writer, Writing, Written
from services.runtime.database import Connection, Statement, pipeline
from services.runtime.errors import FailedPrecondition, Unavailable
from tests.integration.entity.conftest import Replica, Shore, eventually, pointers, reason, refusal
from tests.integration.entity.expiring import nobody_looks, soon

EXPIRED = feed_pb2.Change.EXPIRED


def moment(seconds: float) -> Timestamp:
    """The moment so many seconds from now, to the microsecond."""
    stamp = Timestamp()
    stamp.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return stamp


async def create(shore: Shore, entity_id: str, seconds: float, **data: Any) -> entity_pb2.Entity:
    request = pb.CreateEntityRequest(parent=f"{shore.parent}/types/buoy", entity_id=entity_id)
    request.entity.data.SetInParent()
    request.entity.data.update(data)
    request.entity.expire_time.CopyFrom(moment(seconds))
    answer: pb.CreateEntityResponse = await shore.replica.entities.CreateEntity(request, metadata=shore.metadata())
    return answer.entity


async def update(
    shore: Shore,
    entity_id: str,
    expire_time: Timestamp | None,
    mask: tuple[str, ...],
    data: dict[str, Any] | None = None,
) -> entity_pb2.Entity:
    request = pb.UpdateEntityRequest(update_mask=mask)
    request.entity.name = shore.name(entity_id)
    if data is not None:
        request.entity.data.SetInParent()
        request.entity.data.update(data)
    if expire_time is not None:
        request.entity.expire_time.CopyFrom(expire_time)
    answer: pb.UpdateEntityResponse = await shore.replica.entities.UpdateEntity(request, metadata=shore.metadata())
    return answer.entity


def writing(shore: Shore, entity_id: str, seconds: float) -> entity_pb2.Mutation:
    create_ = entity_pb2.CreateMutation(name=shore.name(entity_id), data_json=b"{}", expire_time=moment(seconds))
    return entity_pb2.Mutation(create=create_)


async def expired_changes(shore: Shore) -> list[feed_pb2.Change]:
    return [change for unit in await shore.units() for change in unit.changes if change.kind == EXPIRED]


async def waited_for(shore: Shore) -> int:
    query = "SELECT count(*) FROM expirations WHERE namespace = %s"
    ((count,),) = await shore.replica.deployment.rows(query, shore.namespace.id)
    return int(count)


async def until_due(shore: Shore, count: int) -> None:
    """Return when so many may expire."""

    async def due() -> bool:
        query = "SELECT count(*) FROM expirations WHERE namespace = %s AND due_time <= now()"
        return await shore.replica.deployment.rows(query, shore.namespace.id) == [(count,)]

    await eventually(due)


async def test_an_entity_expires_after_its_time_as_a_unit_of_the_service(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.mmsi"], "unique": True}])
    made = await soon(partial(create, shore, "b1", mmsi=7))

    async def gone() -> bool:
        return (await shore.get("b1")).HasField("delete_time")

    await eventually(gone)
    entity = await shore.get("b1")
    assert entity.expire_time == made.expire_time
    assert entity.updated_by == "service:entity"
    unit = (await shore.units())[-1]
    (change,) = unit.changes
    assert (unit.actor, change.kind) == ("service:entity", EXPIRED)
    assert change.entity == entity
    assert change.previous == made
    assert unit.commit_time.ToDatetime() >= made.expire_time.ToDatetime()
    assert await shore.list_ids() == []
    assert (await shore.create("b2", {"mmsi": 7})).entity.data["mmsi"] == 7, "its unique values are free"


async def test_a_time_is_set_moved_kept_and_cleared(shore: Shore) -> None:
    await shore.declare()
    first = await create(shore, "b1", 3600, n=1)
    assert (await shore.update("b1", {"n": 2})).entity.expire_time == first.expire_time
    assert (await update(shore, "b1", None, ("data",), {"n": 3})).expire_time == first.expire_time
    later = moment(7200)
    moved = await update(shore, "b1", later, ("expire_time",))
    assert moved.expire_time == later
    assert moved.data["n"] == 3
    unchanged = await update(shore, "b1", later, ("expire_time",), {"n": 4})
    assert unchanged == moved, "what the mask does not name is not taken, and nothing new takes no revision"
    given = await update(shore, "b1", first.expire_time, (), {"n": 5})
    assert (given.expire_time, given.data["n"]) == (first.expire_time, 5)
    assert await waited_for(shore) == 1
    assert not (await update(shore, "b1", None, ("expire_time",))).HasField("expire_time")
    assert (await update(shore, "b1", later, ("expireTime",))).HasField("expire_time")
    assert not (await update(shore, "b1", None, ("*",), {"n": 6})).HasField("expire_time")
    assert await waited_for(shore) == 0
    await shore.batch(
        shore.updating("b1", {}, update_mask=["expire_time"], expire_time=later),
        shore.updating("b2", {}, allow_missing=True, expire_time=later),
        writing(shore, "b3", 3600),
    )
    assert {(await shore.get(entity_id)).HasField("expire_time") for entity_id in ("b1", "b2", "b3")} == {True}
    without_content = entity_pb2.UpdateMutation(name=shore.name("b2"), update_mask=["expire_time"])
    await shore.transact(entity_pb2.Mutation(update=without_content), shore.deleting("b3"))
    assert not (await shore.get("b2")).HasField("expire_time")
    assert await waited_for(shore) == 1


@pytest.mark.parametrize("seconds", [-0.001, -1e9])
async def test_a_time_that_has_passed_is_refused(shore: Shore, seconds: float) -> None:
    await shore.declare()
    failure = await refusal(create(shore, "b1", seconds))
    assert pointers(failure) == ["entity.expire_time"]
    assert await reason(shore.transact(writing(shore, "b1", seconds))) == "INVALID_FIELD"
    never = pb.CreateEntityRequest(parent=f"{shore.parent}/types/buoy", entity_id="b1")
    never.entity.data.SetInParent()
    never.entity.expire_time.seconds = 2**60
    assert await reason(shore.replica.entities.CreateEntity(never, metadata=shore.metadata())) == "INVALID_FIELD"
    assert await shore.head() == 1


async def test_undeleting_clears_a_time_that_has_passed_and_keeps_one_to_come(shore: Shore) -> None:
    await shore.declare()
    kept = await create(shore, "kept", 3600)
    await shore.delete("kept")
    assert await waited_for(shore) == 0
    assert (await shore.undelete("kept")).entity.expire_time == kept.expire_time
    assert await waited_for(shore) == 1
    await soon(partial(create, shore, "gone"))

    async def expired() -> bool:
        return bool(await expired_changes(shore))

    await eventually(expired)
    back = (await shore.undelete("gone")).entity
    assert not back.HasField("expire_time")
    assert not back.HasField("delete_time")


async def test_a_repeated_request_asks_for_the_same_time(shore: Shore) -> None:
    await shore.declare()
    mutation = writing(shore, "b1", 3600)
    first = await shore.transact(mutation, request_id="r")
    assert await shore.transact(mutation, request_id="r") == first
    assert await reason(shore.transact(writing(shore, "b1", 7200), request_id="r")) == "REQUEST_ID_REUSED"


async def test_what_was_given_more_time_while_it_was_due_stays(shore: Shore) -> None:
    await shore.declare()
    await create(shore, "b1", 3600)
    # A look that found it due, and comes too late.
    await shore.replica.service.expirer._expire(shore.namespace, [EntityKey("buoy", "b1"), EntityKey("buoy", "none")])
    assert await shore.head() == 2
    assert not (await shore.get("b1")).HasField("delete_time")


async def test_ten_thousand_that_are_due_at_once_go_once_each(
    shore: Shore, other_replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert other_replica.service is not shore.replica.service
    await shore.declare(indexes=[{"fields": ["data.n"]}])

    async def write(seconds: float, start: int) -> None:
        await shore.transact(*(writing(shore, f"b{n:05}", seconds) for n in range(start, start + 500)))

    with nobody_looks(monkeypatch):
        for start in range(0, 10_000, 500):
            await soon(partial(write, start=start))
        await until_due(shore, 10_000)
        assert await expired_changes(shore) == []

    async def all_gone() -> bool:
        return await waited_for(shore) == 0

    await eventually(all_gone)
    units = [unit for unit in await shore.units() if unit.actor == expiry.ACTOR]
    gone = Counter(change.entity.name for unit in units for change in unit.changes if change.kind == EXPIRED)
    assert len(gone) == 10_000
    assert set(gone.values()) == {1}
    assert max(len(unit.changes) for unit in units) == expiry.UNIT_SIZE


async def test_one_that_must_not_go_stays_and_is_tried_again_later_and_the_others_go(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare()

    def refuse_b3(prepared: Prepared, *rest: Any) -> Effect:
        if prepared.mutation.kind == Kind.EXPIRE and prepared.mutation.key.id == "b3":
            raise FailedPrecondition("REFERENCED", "others refer to it")
        return decide(prepared, *rest)

    monkeypatch.setattr("services.entity.ledger.decide", refuse_b3)
    await soon(lambda seconds: shore.transact(*(writing(shore, f"b{n}", seconds) for n in range(7))))

    async def others_gone() -> bool:
        return len(await expired_changes(shore)) == 6

    await eventually(others_gone)

    async def tried_twice() -> bool:
        query = "SELECT attempts FROM expirations WHERE namespace = %s"
        ((attempts,),) = await shore.replica.deployment.rows(query, shore.namespace.id)
        return int(attempts) >= 2

    await eventually(tried_twice)
    assert await shore.list_ids() == ["b3"]
    monkeypatch.undo()

    async def gone() -> bool:
        return await waited_for(shore) == 0

    await eventually(gone)


async def test_one_that_is_deleted_while_it_is_put_off_is_waited_for_no_more(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare()
    await create(shore, "b1", 3600)
    await shore.replica.deployment.rows(
        "UPDATE expirations SET due_time = now() WHERE namespace = %s RETURNING 1", shore.namespace.id
    )

    async def delete_before_the_commit(connection: Connection, *statements: Statement) -> object:
        *update, commit = statements
        await pipeline(connection, *update)
        deleting = asyncio.create_task(shore.delete("b1"))
        await asyncio.sleep(0.3)
        assert not deleting.done(), "it waits for this transaction"
        await pipeline(connection, commit)
        return await deleting

    monkeypatch.setattr("services.entity.expiry.pipeline", delete_before_the_commit)
    await shore.replica.service.expirer._postpone(shore.namespace, [EntityKey("buoy", "b1")])
    assert await waited_for(shore) == 0


async def test_what_cannot_be_committed_now_is_not_looked_at_again_at_once(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare()
    expirer = shore.replica.service.expirer
    keys = [EntityKey("buoy", f"b{n}") for n in range(3)]
    assert await expirer._expire(shore.namespace, keys) == 3

    async def overloaded(*_: object) -> None:
        raise Unavailable("OVERLOADED", "too many writes wait in this namespace; retry")

    monkeypatch.setattr(Writer, "transact", overloaded)
    assert await expirer._expire(shore.namespace, keys) == 0


async def test_a_namespace_that_takes_no_writes_is_in_nobodys_way(
    shore: Shore, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "BUSY_SECONDS", 3600)
    other = replica.shore()
    transact = Writer.transact

    async def overloaded(self: Writer, writing: Writing, *rest: Any, **more: Any) -> Written:
        if writing.namespace.id == shore.namespace.id and writing.method == "Expire":
            raise Unavailable("OVERLOADED", "too many writes wait in this namespace; retry")
        return await transact(self, writing, *rest, **more)

    monkeypatch.setattr(Writer, "transact", overloaded)
    for one in (shore, other):
        await one.declare()
    for one in (shore, other):
        await soon(partial(create, one, "b1"))
    one_at_a_time = Statement(expiry._SELECT_DUE.sql, (1,))
    monkeypatch.setattr(expiry, "_SELECT_DUE", one_at_a_time)

    async def gone() -> bool:
        return await waited_for(other) == 0

    await eventually(gone)
    query = "SELECT attempts FROM expirations WHERE namespace = %s AND due_time > now() + interval '1 minute'"
    assert await shore.replica.deployment.rows(query, shore.namespace.id) == [(0,)]


async def test_what_waits_in_a_namespace_that_is_purged_goes_first(shore: Shore) -> None:
    await shore.declare()
    await create(shore, "b1", 3600)
    purger = Purger(shore.replica.service.database)
    removed: list[int] = []

    async def first_step(namespace: str, statement: Statement) -> list[tuple[object, ...]]:
        rows = await Purger._in_transaction(purger, namespace, statement)
        if "DELETE" in statement.sql:
            removed.append(await waited_for(shore))
        return rows

    purger._in_transaction = first_step  # type: ignore[method-assign]
    while not await purger.purge(shore.namespace.id, shore.namespace.epoch):
        pass
    assert removed[0] == 0


async def test_units_that_would_be_too_large_are_made_smaller(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> None:
    await shore.declare()

    async def write(seconds: float, entity_id: str) -> None:
        create_ = entity_pb2.CreateMutation(name=shore.name(entity_id), data_json=b'{"s": "%s"}' % (b"x" * 250_000))
        create_.expire_time.CopyFrom(moment(seconds))
        await shore.transact(entity_pb2.Mutation(create=create_))

    with nobody_looks(monkeypatch):
        for n in range(9):
            await soon(partial(write, entity_id=f"b{n}"))
        await until_due(shore, 9)

    async def gone() -> bool:
        return await waited_for(shore) == 0

    await eventually(gone)
    assert len(await expired_changes(shore)) == 9
