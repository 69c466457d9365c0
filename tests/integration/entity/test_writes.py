"""Single writes, as a caller sees them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf import json_format
from strandline.entity.v1 import entity_pb2, type_service_pb2
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.stream.v1 import feed_pb2

from tests.integration.entity.conftest import Replica, Shore, error_info, eventually, info_in, reason, refusal

Change = feed_pb2.Change


async def test_a_created_entity_is_returned_as_it_is_stored(shore: Shore) -> None:
    await shore.declare()
    answer = await shore.create("b1", {"depth": 5.0, "tags": ["a", None], "at": {"lat": 1.5}})
    entity = answer.entity
    assert entity.name == shore.name("b1")
    assert (entity.type, entity.revision, entity.etag) == ("buoy", 2, '"2"')
    assert (answer.revision, answer.epoch) == (2, shore.namespace.epoch)
    assert entity.create_time == entity.update_time
    assert not entity.HasField("delete_time")
    assert entity.created_by == entity.updated_by == shore.user_id
    assert json_format.MessageToDict(entity.data) == {"depth": 5, "tags": ["a", None], "at": {"lat": 1.5}}
    assert await shore.get("b1") == entity


async def test_a_left_out_id_becomes_a_uuidv7(shore: Shore) -> None:
    await shore.declare()
    entity = (await shore.create("", {})).entity
    assert entity.name.rsplit("/", 1)[1][14] == "7"


async def test_answers_to_rest_carry_their_position_and_a_create_its_location_in_headers(shore: Shore) -> None:
    await shore.declare()
    request = pb.CreateEntityRequest(parent=f"{shore.parent}/types/buoy", entity_id="b1")
    request.entity.data.SetInParent()
    call = shore.replica.entities.CreateEntity(request, metadata=shore.metadata(x_strandline_rest="1"))
    headers = dict(await call.initial_metadata())
    assert headers["strandline-revision"] == f"{shore.namespace.epoch}.2"
    assert headers["location"] == f"/v1/{shore.name('b1')}"


async def test_an_update_without_a_mask_replaces_the_top_level_keys_that_it_carries(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1, "b": {"x": 1, "y": 2}})
    answer = await shore.update("b1", {"b": {"x": 3}, "c": None})
    assert json_format.MessageToDict(answer.entity.data) == {"a": 1, "b": {"x": 3}, "c": None}
    assert answer.revision == 3


async def test_a_masked_update_replaces_and_removes_what_the_mask_names(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1, "b": {"x": 1, "y": 2}, "odd key": 1})
    answer = await shore.update("b1", {"b": {"x": 3}}, update_mask=["data.b.x", "data.b.z", "data.a", "data.`odd key`"])
    assert json_format.MessageToDict(answer.entity.data) == {"b": {"x": 3, "y": 2}}


@pytest.mark.parametrize("mask", ["*", "data"])
async def test_a_star_replaces_everything(shore: Shore, mask: str) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1, "b": 2})
    answer = await shore.update("b1", {"c": 3}, update_mask=[mask])
    assert json_format.MessageToDict(answer.entity.data) == {"c": 3}


async def test_a_mask_with_commas_is_refused_with_what_to_do_instead(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1})
    advice = "a mask takes no commas: repeat the parameter for each field"
    type_ = type_service_pb2.UpdateTypeRequest(
        type=entity_pb2.EntityType(name=f"{shore.parent}/types/buoy"), update_mask=["schema,indexes"]
    )
    for call in (
        shore.update("b1", {"a": 2}, update_mask=["data.a,data.b"]),
        shore.get("b1", read_mask=["data.a,data.b"]),
        shore.replica.types.UpdateType(type_, metadata=shore.metadata()),
    ):
        refused = await refusal(call)
        assert error_info(refused).reason == "INVALID_FIELD"
        assert advice in (refused.details() or "")
    assert advice not in ((await refusal(shore.get("b1", read_mask=["data."]))).details() or "")


async def test_an_update_that_changes_nothing_takes_no_revision(shore: Shore) -> None:
    await shore.declare()
    created = (await shore.create("b1", {"a": 1, "b": True})).entity
    for data, mask in (({"a": 1}, []), ({"b": True, "a": 1.0}, ["*"]), ({}, ["data.zzz"])):
        answer = await shore.update("b1", data, update_mask=mask)
        assert (answer.entity, answer.revision) == (created, 2)
    assert await shore.head() == 2


async def test_true_and_one_are_different_values(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1})
    assert (await shore.update("b1", {"a": True})).revision == 3


async def test_a_taken_name_is_refused_and_a_deleted_one_is_given_away(shore: Shore) -> None:
    await shore.declare()
    first = (await shore.create("b1", {"a": 1})).entity
    assert await reason(shore.create("b1", {"a": 2})) == "ALREADY_EXISTS"
    await shore.delete("b1")
    second = (await shore.create("b1", {"a": 2})).entity
    assert second.uid != first.uid
    assert second.create_time == second.update_time
    unit = (await shore.units(3))[0]
    assert [change.kind for change in unit.changes] == [Change.CREATED]
    assert not unit.changes[0].HasField("previous")


async def test_a_deleted_entity_can_be_read_and_brought_back(shore: Shore) -> None:
    await shore.declare()
    created = (await shore.create("b1", {"a": 1})).entity
    deleted = (await shore.delete("b1")).entity
    assert deleted.HasField("delete_time")
    assert await shore.get("b1") == deleted
    assert await reason(shore.update("b1", {"a": 2})) == "NOT_FOUND"
    assert await reason(shore.delete("b1")) == "NOT_FOUND"
    back = (await shore.undelete("b1")).entity
    assert not back.HasField("delete_time")
    assert (back.uid, back.create_time, back.data) == (created.uid, created.create_time, created.data)
    assert await reason(shore.undelete("b1")) == "ALREADY_EXISTS"
    kinds = [change.kind for unit in await shore.units(1) for change in unit.changes]
    assert kinds == [Change.CREATED, Change.DELETED, Change.UNDELETED]


async def test_what_never_existed_is_not_found(shore: Shore) -> None:
    await shore.declare()
    assert await reason(shore.get("b1")) == "NOT_FOUND"
    assert await reason(shore.update("b1", {})) == "NOT_FOUND"
    assert await reason(shore.delete("b1")) == "NOT_FOUND"
    assert await reason(shore.undelete("b1")) == "NOT_FOUND"
    assert await reason(shore.create("b1", {}, type_id="whale")) == "NOT_FOUND"
    assert await reason(shore.page("whale")) == "NOT_FOUND"


async def test_allow_missing_makes_an_update_an_upsert(shore: Shore) -> None:
    await shore.declare()
    assert (await shore.update("b1", {"a": 1}, update_mask=["data.b"], allow_missing=True)).entity.data["a"] == 1
    await shore.delete("b1")
    again = await shore.update("b1", {"b": 2}, allow_missing=True)
    assert json_format.MessageToDict(again.entity.data) == {"b": 2}
    stale = shore.update("b9", {"b": 2}, allow_missing=True, etag='"7"')
    assert await reason(stale) == "ETAG_MISMATCH"


async def test_allow_missing_makes_a_delete_of_nothing_no_error(shore: Shore) -> None:
    await shore.declare()
    answer = await shore.delete("b1", allow_missing=True)
    assert not answer.HasField("entity")
    assert answer.revision == 1
    assert await shore.head() == 1


async def test_a_stale_etag_is_refused_with_the_current_one(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1})
    await shore.update("b1", {"a": 2}, etag='"2"')
    failure = await refusal(shore.update("b1", {"a": 3}, etag='"2"'))
    assert error_info(failure).reason == "ETAG_MISMATCH"
    assert error_info(failure).metadata["etag"] == '"3"'
    assert "strandline-http-status" not in dict(failure.trailing_metadata() or ())
    assert await reason(shore.delete("b1", etag='"2"')) == "ETAG_MISMATCH"
    assert (await shore.get("b1")).data["a"] == 2


async def test_an_etag_from_if_match_is_answered_with_412(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1})
    failure = await refusal(shore.update("b1", {"a": 3}, headers={"if_match": '"9"'}))
    assert dict(failure.trailing_metadata() or ())["strandline-http-status"] == "412"
    assert (await shore.update("b1", {"a": 3}, headers={"if_match": '"2"'})).revision == 3


async def test_the_entitys_own_etag_counts_when_there_is_no_other(shore: Shore) -> None:
    await shore.declare()
    entity = (await shore.create("b1", {"a": 1})).entity
    await shore.update("b1", {"a": 2})
    call = shore.replica.entities.UpdateEntity(pb.UpdateEntityRequest(entity=entity), metadata=shore.metadata())
    assert await reason(call) == "ETAG_MISMATCH"


async def test_validate_only_checks_everything_and_changes_nothing(shore: Shore) -> None:
    await shore.declare(schema={"type": "object", "properties": {"a": {"type": "integer"}}})
    answer = await shore.create("b1", {"a": 1}, validate_only=True)
    assert (answer.entity.name, answer.revision) == (shore.name("b1"), 1)
    assert await reason(shore.create("b1", {"a": "x"}, validate_only=True)) == "SCHEMA_VIOLATION"
    assert await reason(shore.get("b1")) == "NOT_FOUND"
    assert await shore.head() == 1


async def test_a_request_sent_twice_is_one_revision_and_one_answer(shore: Shore) -> None:
    await shore.declare()
    first = await shore.create("b1", {"a": 1, "b": [1.0]}, request_id="r-1")
    await shore.update("b1", {"a": 2})
    again = await shore.create("b1", {"b": [1], "a": 1}, request_id="r-1")
    assert again == first
    assert await shore.head() == 3
    other_body = shore.create("b1", {"a": 7}, request_id="r-1")
    assert await reason(other_body) == "REQUEST_ID_REUSED"


async def test_every_kind_of_write_can_be_repeated(shore: Shore) -> None:
    await shore.declare()
    created = await shore.create("", {"a": 1}, request_id="c")
    entity_id = created.entity.name.rsplit("/", 1)[1]
    updated = await shore.update(entity_id, {"a": 2}, request_id="u")
    unchanged = await shore.update(entity_id, {"a": 2}, request_id="n")
    deleted = await shore.delete(entity_id, request_id="d")
    restored = await shore.undelete(entity_id, request_id="r")
    missing = await shore.delete("nobody", request_id="m", allow_missing=True)
    assert await shore.create("", {"a": 1}, request_id="c") == created
    assert await shore.update(entity_id, {"a": 2}, request_id="u") == updated
    assert await shore.update(entity_id, {"a": 2}, request_id="n") == unchanged
    assert await shore.delete(entity_id, request_id="d") == deleted
    assert await shore.undelete(entity_id, request_id="r") == restored
    assert await shore.delete("nobody", request_id="m", allow_missing=True) == missing
    assert await shore.head() == 5


async def test_the_header_idempotency_key_counts_when_the_field_is_empty(shore: Shore) -> None:
    await shore.declare()
    first = await shore.create("b1", {"a": 1}, headers={"idempotency_key": "k-1"})
    assert await shore.create("b1", {"a": 1}, headers={"idempotency_key": "k-1"}) == first
    malformed = shore.create("b2", {"a": 1}, headers={"idempotency_key": "k.1"})
    assert await reason(malformed) == "INVALID_FIELD"


async def test_of_fifty_concurrent_creates_of_one_id_one_wins(shore: Shore, other_replica: Replica) -> None:
    await shore.declare()
    elsewhere = shore.through(other_replica)
    calls = [(shore if n % 2 else elsewhere).create("b1", {"n": n}) for n in range(50)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    winners = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
    assert len(winners) == 1
    assert {error_info(loser).reason for loser in outcomes if isinstance(loser, BaseException)} == {"ALREADY_EXISTS"}
    assert await shore.get("b1") == winners[0].entity
    assert await shore.head() == 2


async def test_of_two_replicas_with_one_stale_etag_one_wins(shore: Shore, other_replica: Replica) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 0})
    for round_ in range(20):
        etag = (await shore.get("b1")).etag
        calls = [
            shore.update("b1", {"n": f"{round_} here"}, etag=etag),
            shore.through(other_replica).update("b1", {"n": f"{round_} there"}, etag=etag),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        assert [error_info(failure).reason for failure in refused] == ["ETAG_MISMATCH"]
    assert await shore.head() == 22


async def test_concurrent_writers_on_two_replicas_leave_a_dense_log(shore: Shore, other_replica: Replica) -> None:
    await shore.declare()
    elsewhere = shore.through(other_replica)
    calls = [(shore if n % 2 else elsewhere).create(f"b{n}", {"n": n}) for n in range(200)]
    answers = await asyncio.gather(*calls)
    assert sorted(answer.revision for answer in answers) == list(range(2, 202))
    units = await shore.units()
    assert [unit.revision for unit in units] == list(range(1, 202))
    times = [unit.commit_time.ToNanoseconds() for unit in units]
    assert times == sorted(set(times))
    for unit in units[1:]:
        assert unit.changes[0].entity.revision == unit.revision


async def test_concurrent_masked_updates_lose_nothing(shore: Shore, other_replica: Replica) -> None:
    await shore.declare()
    await shore.create("b1", {})
    elsewhere = shore.through(other_replica)
    calls = [(shore if n % 2 else elsewhere).update("b1", {f"k{n}": n}) for n in range(40)]
    await asyncio.gather(*calls)
    data = json_format.MessageToDict((await shore.get("b1")).data)
    assert data == {f"k{n}": n for n in range(40)}


async def test_a_write_without_an_etag_that_loses_every_race_may_simply_be_repeated(
    shore: Shore, other_replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare(indexes=[{"fields": ["data.x", "data.y"], "unique": True}])
    await shore.create("b1", {"x": 0, "y": 0})
    elsewhere = shore.through(other_replica)

    async def update(by: Shore, field: str, n: int) -> str:
        try:
            await by.update("b1", {field: n})
        except grpc.aio.AioRpcError as failure:
            return f"{failure.code().name} {error_info(failure).reason}"
        return ""

    async def update_in_batch(by: Shore, field: str, n: int) -> str:
        (result,) = (await by.batch(by.updating("b1", {field: n}))).results
        status = result.status
        return f"{grpc_code(status.code)} {info_in(status).reason}" if status.code else ""

    for n, write in enumerate((update, update_in_batch), start=1):
        # The second to get the lock was prepared before the first changed what its unique value is made of.
        first, second = await both_prepared(shore, write(shore, "x", n), write(elsewhere, "y", n))
        assert (first, second) == ("", "")
        with monkeypatch.context() as patch:
            patch.setattr("services.entity.writes.MAX_ATTEMPTS", 1)
            answers = await both_prepared(shore, write(shore, "x", -n), write(elsewhere, "y", -n))
            assert sorted(answers) == ["", "UNAVAILABLE OVERLOADED"]


async def both_prepared(shore: Shore, *writes: Coroutine[Any, Any, str]) -> list[str]:
    """The answers to writes through different replicas that are all prepared before one of them is decided."""
    deployment = shore.replica.deployment
    waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with await psycopg.AsyncConnection.connect(deployment.superuser_url) as holder:
        await holder.execute("SELECT FROM heads WHERE namespace = %s FOR UPDATE", (shore.namespace.id,))
        answers = asyncio.gather(*writes)

        async def all_wait() -> bool:
            return len(await deployment.rows(waiting)) == len(writes)

        await eventually(all_wait)
    return await answers


def grpc_code(number: int) -> str:
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)
