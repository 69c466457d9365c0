"""Transact and batchWrite: many mutations in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.entity.ledger import MAX_READ_BYTES
from services.entity.writes import PREPARED_AT_ONCE
from services.runtime import committer
from services.runtime.database import Row, Statement
from tests.integration.entity.conftest import Replica, Shore, error_info, info_in, pointers, reason, refusal

Change = feed_pb2.Change


async def test_a_transaction_is_one_revision_and_one_unit(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    await shore.create("b2", {"n": 1})
    await shore.create("b3", {"n": 1})
    await shore.delete("b3")
    answer = await shore.transact(
        shore.creating("b4", {"n": 4}),
        shore.updating("b1", {"m": 2}),
        shore.deleting("b2"),
        shore.undeleting("b3"),
        shore.deleting("b9", allow_missing=True),
        shore.updating("b1x", {"m": 2}, allow_missing=True),
    )
    assert (answer.revision, answer.epoch) == (6, shore.namespace.epoch)
    assert [result.name for result in answer.results] == [
        shore.name(entity_id) for entity_id in ("b4", "b1", "b2", "b3", "b9", "b1x")
    ]
    assert [result.etag for result in answer.results] == ['"6"', '"6"', '"6"', '"6"', "", '"6"']
    (unit,) = await shore.units(5)
    assert [change.kind for change in unit.changes] == [
        Change.CREATED,
        Change.UPDATED,
        Change.DELETED,
        Change.UNDELETED,
        Change.CREATED,
    ]
    assert unit.changes[1].previous.data["n"] == 1
    assert json_format.MessageToDict(unit.changes[1].entity.data) == {"n": 1, "m": 2}
    assert {change.entity.revision for change in unit.changes} == {6}
    assert unit.actor == shore.user_id


async def test_a_transaction_is_all_or_nothing_and_names_the_mutation(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b2", {})
    failure = await refusal(shore.transact(shore.creating("b1", {}), shore.creating("b2", {})))
    assert error_info(failure).reason == "ALREADY_EXISTS"
    assert error_info(failure).metadata["mutation"] == "1"
    assert await reason(shore.get("b1")) == "NOT_FOUND"
    assert await shore.head() == 2


async def test_a_transaction_that_changes_nothing_takes_no_revision(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    answer = await shore.transact(shore.updating("b1", {"n": 1}))
    assert (answer.revision, answer.results[0].etag) == (2, '"2"')
    assert await shore.head() == 2


async def test_an_entity_cannot_be_named_twice_in_a_transaction(shore: Shore) -> None:
    await shore.declare()
    assert await reason(shore.transact(shore.creating("b1", {}), shore.deleting("b1"))) == "INVALID_FIELD"


@pytest.mark.parametrize("call", ["transact", "batch"])
async def test_more_than_500_mutations_are_refused(shore: Shore, call: str) -> None:
    await shore.declare()
    mutations = [shore.creating(f"b{n}", {}) for n in range(501)]
    assert await reason(getattr(shore, call)(*mutations)) == "INVALID_FIELD"
    assert len((await getattr(shore, call)(*mutations[:500])).results) == 500


async def test_names_of_another_namespace_are_refused(shore: Shore, replica: Replica) -> None:
    await shore.declare()
    other = replica.shore()
    await other.declare()
    assert await reason(shore.transact(other.creating("b1", {}))) == "INVALID_FIELD"
    (result,) = (await shore.batch(other.creating("b1", {}))).results
    assert info_in(result.status).reason == "INVALID_FIELD"
    assert await reason(other.get("b1")) == "NOT_FOUND"


async def test_a_transaction_sent_twice_is_one_revision_and_one_answer(shore: Shore) -> None:
    await shore.declare()
    mutations = [shore.creating("b1", {"n": 1}), shore.deleting("b9", allow_missing=True)]
    first = await shore.transact(*mutations, request_id="t")
    await shore.update("b1", {"n": 2})
    assert await shore.transact(*mutations, request_id="t") == first
    failure = await refusal(shore.transact(*reversed(mutations), request_id="t"))
    assert (error_info(failure).reason, pointers(failure)) == ("REQUEST_ID_REUSED", ["request_id"])


async def test_a_unit_that_would_be_too_large_for_the_feed_is_refused(shore: Shore) -> None:
    await shore.declare()
    text = "x" * 250_000
    fits = [shore.creating(f"b{n}", {"t": text}) for n in range(12)]
    await shore.transact(*fits)
    failure = await refusal(shore.transact(*(shore.updating(f"b{n}", {"t": text + "y"}) for n in range(7))))
    assert error_info(failure).reason == "UNIT_TOO_LARGE"
    assert error_info(failure).metadata["limit"] == str(3 * 2**20)
    assert pointers(failure) == ["mutations"]


async def test_each_write_of_a_batch_has_its_own_outcome(shore: Shore) -> None:
    await shore.declare(schema={"type": "object", "properties": {"n": {"type": "integer"}}})
    await shore.create("b2", {"n": 2})
    answer = await shore.batch(
        shore.creating("b1", {"n": 1}),
        shore.creating("b2", {"n": 1}),
        shore.creating("b3", {"n": "x"}),
        shore.updating("b2", {"n": 3}),
        entity_pb2.Mutation(create=entity_pb2.CreateMutation(name="nonsense", data_json=b"{}")),
        entity_pb2.Mutation(create=entity_pb2.CreateMutation(name=shore.name("b4"), data_json=b"{")),
        shore.creating("b5", {"n": 5}, type_id="whale"),
        shore.updating("b6", {"n": 6}, allow_missing=True),
    )
    reasons = [info_in(result.status).reason if result.status.code else "" for result in answer.results]
    assert reasons == [
        "",
        "ALREADY_EXISTS",
        "SCHEMA_VIOLATION",
        "",
        "INVALID_FIELD",
        "INVALID_FIELD",
        "NOT_FOUND",
        "",
    ]
    revisions = [result.revision for result in answer.results]
    assert [bool(revision) for revision in revisions] == [not reason for reason in reasons]
    assert sorted(filter(None, revisions)) == [3, 4, 5]
    assert answer.revision == 5
    assert answer.results[5].name == shore.name("b4")
    assert [unit.revision for unit in await shore.units()] == [1, 2, 3, 4, 5]


async def test_a_batch_of_failures_still_says_where_the_namespace_is(shore: Shore) -> None:
    await shore.declare()
    answer = await shore.batch(shore.deleting("b1"))
    assert (answer.results[0].status.code, answer.revision) == (5, 1)


async def test_rows_that_cannot_be_submitted_do_not_hide_what_became_of_the_others(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare()
    monkeypatch.setattr(committer, "MAX_WAITING_UNITS", PREPARED_AT_ONCE - 1)
    answer = await shore.batch(*(shore.creating(f"b{n:03}", {}) for n in range(PREPARED_AT_ONCE + 40)))
    refused, written = answer.results[:PREPARED_AT_ONCE], answer.results[PREPARED_AT_ONCE:]
    assert {info_in(result.status).reason for result in refused} == {"OVERLOADED"}
    assert [result.revision for result in written] == list(range(2, 42))
    assert len(await shore.list_ids()) == 40


async def test_large_entities_that_a_batch_updates_are_read_in_several_statements(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"], "unique": True}])
    names = [f"b{n:02}" for n in range(70)]
    for start in range(0, 70, 10):
        writes = (shore.creating(name, {"n": name, "s": "x" * 250_000}) for name in names[start : start + 10])
        assert not any(result.status.code for result in (await shore.batch(*writes)).results)
    database = shore.replica.service.database
    read, sizes = database.read, []

    async def weighed(namespace: str, *statements: Statement) -> list[list[Row]]:
        answer = await read(namespace, *statements)
        sizes.append(sum(len(value) for rows in answer for row in rows for value in row if isinstance(value, bytes)))
        return answer

    monkeypatch.setattr(database, "read", weighed)
    answer = await shore.batch(*(shore.updating(name, {"n": f"new {name}"}) for name in names))
    assert all(result.revision for result in answer.results)
    assert sum(sizes) > MAX_READ_BYTES >= max(sizes)
    sizes.clear()
    assert await reason(shore.transact(*(shore.updating(name, {"n": name}) for name in names))) == "UNIT_TOO_LARGE"
    assert sum(sizes) <= MAX_READ_BYTES


async def test_writes_to_one_name_apply_in_the_given_order(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"], "unique": True}])
    answer = await shore.batch(
        shore.creating("b1", {"n": 0}),
        shore.creating("b2", {"m": 0}),
        *(shore.updating("b1", {"n": n}) for n in range(1, 20)),
        shore.deleting("b1"),
        shore.creating("b1", {"n": 99}),
    )
    revisions = [result.revision for result in answer.results]
    assert all(revisions)
    assert [revisions[0], *revisions[2:]] == sorted([revisions[0], *revisions[2:]])
    assert (await shore.get("b1")).data["n"] == 99


async def test_a_refused_row_names_the_fields_of_its_content_as_filters_do(shore: Shore) -> None:
    number = {"type": "number"}
    schema = {
        "type": "object",
        "properties": {
            "port": {"type": "object", "properties": {"size": number, "odd key": number}},
            "tags": {"type": "array", "items": number},
            "code": {"type": "string"},
        },
    }
    await shore.declare(schema=schema, indexes=[{"fields": ["data.code"]}])
    rows: list[dict[str, Any]] = [
        {"port": {"size": "x"}},
        {"port": {"odd key": "x"}},
        {"tags": [1, "x"]},
        {"code": "x" * 1025},
    ]
    answer = await shore.batch(*(shore.creating(f"b{n}", row) for n, row in enumerate(rows)))
    assert [field_of(result.status) for result in answer.results] == [
        "data.port.size",
        "data.port.`odd key`",
        "data.tags[1]",
        "data.code",
    ]


def field_of(status: Any) -> str:
    """Where the first violation of a refused row is."""
    request = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(request)
    return str(request.field_violations[0].field)


async def test_a_row_that_is_too_large_says_which_and_its_neighbour_is_written(shore: Shore) -> None:
    await shore.declare()
    fits, too_large = (await shore.batch(shore.creating("b1", {}), shore.creating("b2", {"t": "x" * 262_200}))).results
    assert fits.revision
    assert (info_in(too_large.status).reason, field_of(too_large.status)) == (
        "ENTITY_TOO_LARGE",
        "writes[1].create.data_json",
    )


async def test_an_indexed_string_that_is_too_long_is_pointed_at(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.a.`b/c`"]}])
    failure = await refusal(shore.create("b1", {"a": {"b/c": "x" * 1025}}))
    assert pointers(failure) == ["/a/b~1c"]


async def test_a_batch_sent_twice_writes_each_row_once(shore: Shore) -> None:
    await shore.declare()
    writes = [shore.creating(f"b{n}", {"n": n}) for n in range(10)]
    first = await shore.batch(*writes[:5], request_id="r")
    again = await shore.batch(*writes, request_id="r")
    assert list(again.results)[:5] == list(first.results)
    assert again.revision == 11
    assert await shore.head() == 11
    changed = await shore.batch(shore.creating("b0", {"n": 7}), request_id="r")
    refused = changed.results[0].status
    assert (info_in(refused).reason, field_of(refused)) == ("REQUEST_ID_REUSED", "request_id")


async def test_a_row_is_remembered_by_its_number_however_many_came_with_it(
    shore: Shore, other_replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare()
    writes = [shore.creating(f"b{n:03}", {"n": n}) for n in range(300)]
    first = await shore.batch(*writes[:200], request_id="r")
    # Remembered in other portions, and asked for in others again, elsewhere.
    monkeypatch.setattr(committer, "PART_UNITS", 7)
    longer = await shore.batch(*writes, request_id="r")
    assert list(longer.results)[:200] == list(first.results)
    again = await shore.through(other_replica).batch(*writes, request_id="r")
    assert list(again.results) == list(longer.results)
    assert await shore.head() == 301
    for start in range(0, 300, 60):
        # The same rows under other numbers are another request: they are decided anew, and exist.
        moved = await shore.batch(*writes[start : start + 5], request_id=f"r{start}")
        assert {info_in(result.status).reason for result in moved.results} == {"ALREADY_EXISTS"}


async def test_a_batch_row_cannot_be_taken_for_another_request(shore: Shore) -> None:
    await shore.declare()
    await shore.batch(shore.creating("b0", {}), request_id="r")
    assert await reason(shore.create("b1", {}, request_id="r.0")) == "INVALID_FIELD"


async def test_struct_and_json_of_the_same_values_are_the_same_request(shore: Shore) -> None:
    await shore.declare()
    first = await shore.transact(shore.creating("b1", {"a": 5, "b": {"c": [1, None]}}), request_id="t")
    create = entity_pb2.CreateMutation(name=shore.name("b1"))
    create.data.update({"b": {"c": [1.0, None]}, "a": 5.0})
    assert await shore.transact(entity_pb2.Mutation(create=create), request_id="t") == first


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"data_json": b'{"a": 1, "a": 2}'},
        {"data_json": b'{"a": NaN}'},
        {"data_json": b'{"a": 9007199254740993}'},
        {"data_json": b'{"a": 1e400}'},
        {"data_json": b'{"a": "\\u0000"}'},
        {"data_json": b'{"a": "\\ud800"}'},
        {"data_json": b'{"a": "\xff"}'},
        {"data_json": b"[1]"},
        {"data_json": b"[" * 10_000},
        {"data_json": b'{"a":' * 40 + b"1" + b"}" * 40},
    ],
)
async def test_content_that_is_no_json_object_of_ours_is_refused(shore: Shore, content: dict[str, Any]) -> None:
    await shore.declare()
    mutation = entity_pb2.Mutation(create=entity_pb2.CreateMutation(name=shore.name("b1"), **content))
    assert await reason(shore.transact(mutation)) == "INVALID_FIELD"


async def test_concurrent_batches_and_transactions_leave_a_dense_log(shore: Shore, other_replica: Replica) -> None:
    await shore.declare()
    elsewhere = shore.through(other_replica)
    calls: list[Coroutine[Any, Any, Any]] = []
    for n in range(10):
        side = shore if n % 2 else elsewhere
        calls.append(side.batch(*(side.updating(f"b{k}", {"n": n}, allow_missing=True) for k in range(20))))
        calls.append(side.transact(*(side.updating(f"c{k}", {"n": n}, allow_missing=True) for k in range(20))))
    await asyncio.gather(*calls)
    units = await shore.units()
    assert [unit.revision for unit in units] == list(range(1, len(units) + 1))
    state = {
        change.entity.name: change.entity for unit in units for change in unit.changes if change.HasField("entity")
    }
    for name, entity in state.items():
        assert await shore.get(name.rsplit("/", 1)[1]) == entity


async def test_each_write_says_what_it_made_of_its_entity_also_when_it_is_repeated(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    await shore.create("b2", {"n": 1})
    await shore.create("b3", {"n": 1})
    await shore.delete("b3")
    writes = [
        shore.creating("b4", {}),
        shore.updating("b1", {"n": 2}),
        shore.updating("b2", {"n": 1}),
        shore.deleting("b2"),
        shore.undeleting("b3"),
        shore.deleting("b9", allow_missing=True),
        shore.updating("b8", {}),
    ]
    names = ["CREATED", "UPDATED", "UNCHANGED", "DELETED", "UNDELETED", "UNCHANGED", "OUTCOME_UNSPECIFIED"]
    made = [entity_pb2.Mutation.Outcome.Value(name) for name in names]
    first = await shore.batch(*writes, request_id="once")
    assert [result.outcome for result in first.results] == made
    again = await shore.batch(*writes, request_id="once")
    assert [result.outcome for result in again.results] == made
    transacted = [await shore.transact(shore.updating("b8", {}, allow_missing=True), request_id="t") for _ in range(2)]
    assert [answer.results[0].outcome for answer in transacted] == [entity_pb2.Mutation.CREATED] * 2
