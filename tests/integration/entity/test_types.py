"""Types: what may be declared, how it may change, and the building of indexes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf import json_format
from strandline.entity.v1 import entity_pb2, type_service_pb2
from strandline.stream.v1 import feed_pb2

from services.entity.type_store import select_live, select_unindexed
from tests.integration.entity.building import only_builder
from tests.integration.entity.conftest import (
    ANY,
    Replica,
    Shore,
    error_info,
    eventually,
    pointers,
    ready,
    reason,
    refusal,
)

BUOY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "country": {"type": "string"},
        "depth": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["country"],
}
Index = entity_pb2.Index


async def remove_type(shore: Shore, **more: Any) -> Any:
    request = type_service_pb2.DeleteTypeRequest(name=f"{shore.parent}/types/buoy", **more)
    return await shore.replica.types.DeleteType(request, metadata=shore.metadata())


async def test_a_declared_type_is_in_the_log_and_can_be_read(shore: Shore) -> None:
    type_ = await shore.declare(schema=BUOY, indexes=[{"fields": ["data.country", "data.depth desc"]}])
    assert type_.name == f"{shore.parent}/types/buoy"
    assert (type_.schema_version, type_.etag, type_.revision) == (1, '"1"', 1)
    assert type_.compatibility == entity_pb2.EntityType.BACKWARD
    assert json_format.MessageToDict(type_.schema) == BUOY
    assert [(list(index.fields), index.state) for index in type_.indexes] == [
        (["data.country", "data.depth desc"], Index.READY)
    ]
    assert await shore.get_type() == type_
    (unit,) = await shore.units()
    (change,) = unit.changes
    assert (change.kind, change.type, change.HasField("previous_type")) == (
        feed_pb2.Change.SCHEMA_CHANGED,
        type_,
        False,
    )


async def test_a_taken_id_is_refused_and_a_repetition_is_not(shore: Shore) -> None:
    request = type_service_pb2.CreateTypeRequest(parent=shore.parent, type_id="buoy", request_id="r")
    json_format.ParseDict({"schema": BUOY}, request.type)
    first = await shore.replica.types.CreateType(request, metadata=shore.metadata())
    assert await shore.replica.types.CreateType(request, metadata=shore.metadata()) == first
    assert await reason(shore.declare()) == "ALREADY_EXISTS"


async def test_types_are_listed_by_id_in_pages(shore: Shore) -> None:
    names = [f"t{n:02}" for n in range(7)]
    for type_id in reversed(names):
        await shore.declare(type_id)
    seen: list[str] = []
    token = ""
    while True:
        request = type_service_pb2.ListTypesRequest(parent=shore.parent, page_size=3, page_token=token)
        page = await shore.replica.types.ListTypes(request, metadata=shore.metadata())
        seen += [type_.name.rsplit("/", 1)[1] for type_ in page.types]
        token = page.next_page_token
        if not token:
            break
    assert seen == names
    tampered = type_service_pb2.ListTypesRequest(parent=shore.parent, page_token="A" * 40)
    assert await reason(shore.replica.types.ListTypes(tampered, metadata=shore.metadata())) == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "string"}, "/type"),
        ({"properties": {}}, "/type"),
        ({"type": "object", "properties": {"a": {"type": "text"}}}, "/properties/a/type"),
        ({"type": "object", "properties": {"a": {"pattern": "("}}}, "/properties/a/pattern"),
        ({"type": "object", "properties": {"a": {"pattern": "(?=x)"}}}, "/properties/a/pattern"),
        ({"type": "object", "$ref": "https://example.com/schema"}, "type.schema"),
        ({"type": "object", "$ref": "#"}, "type.schema"),
        ({"type": "object", "$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema"),
        ({"type": "object", "description": "x" * 70_000}, "type.schema"),
    ],
)
async def test_what_is_no_schema_of_a_type_is_refused(shore: Shore, schema: dict[str, Any], pointer: str) -> None:
    failure = await refusal(shore.declare(schema=schema))
    assert error_info(failure).reason == "INVALID_FIELD"
    assert pointers(failure) == [pointer]
    assert await shore.head() == 0


@pytest.mark.parametrize(
    "indexes",
    [
        [{"fields": []}],
        [{"fields": ["country"]}],
        [{"fields": ["data.country", "data.country desc"]}],
        [{"fields": ["data.tags", "data.marks"]}],
        [{"fields": ["data.country"]}, {"fields": ["data.country"]}],
        [{"fields": [f"data.f{n}"]} for n in range(33)],
    ],
)
async def test_what_is_no_index_is_refused(shore: Shore, indexes: list[dict[str, Any]]) -> None:
    arrays = {"tags": {"type": "array"}, "marks": {"type": "array"}, "country": {"type": "string"}}
    declared = shore.declare(schema={"type": "object", "properties": arrays}, indexes=indexes)
    assert await reason(declared) == "INVALID_FIELD"


async def test_data_that_does_not_fit_is_refused_with_every_place(shore: Shore) -> None:
    await shore.declare(schema=BUOY)
    failure = await refusal(shore.create("b1", {"depth": "deep", "tags": ["a", 1], "colour": "red"}))
    assert error_info(failure).reason == "SCHEMA_VIOLATION"
    assert sorted(pointers(failure)) == ["/colour", "/country", "/depth", "/tags/1"]
    await shore.create("b1", {"country": "CH", "depth": 5})
    masked = shore.update("b1", {}, update_mask=["data.country"])
    assert await reason(masked) == "SCHEMA_VIOLATION"


async def test_a_whole_number_is_an_integer_however_it_is_written(shore: Shore) -> None:
    await shore.declare(schema={"type": "object", "properties": {"n": {"type": "integer"}}})
    assert (await shore.create("b1", {"n": 5.0})).entity.data["n"] == 5
    assert await reason(shore.create("b2", {"n": 5.5})) == "SCHEMA_VIOLATION"


async def test_an_optional_property_can_be_added_and_old_data_stays_valid(shore: Shore, other_replica: Replica) -> None:
    await shore.declare(schema=BUOY)
    await shore.create("b1", {"country": "CH"})
    elsewhere = shore.through(other_replica)
    await elsewhere.update("b1", {"depth": 1})  # the other replica knows the old schema now
    wider = {**BUOY, "properties": {**BUOY["properties"], "colour": {"type": "string"}}}
    type_ = await shore.change_type(schema=wider)
    assert (type_.schema_version, type_.revision) == (2, 4)
    assert (await elsewhere.update("b1", {"colour": "red"})).entity.data["colour"] == "red"
    (unit,) = [unit for unit in await shore.units() if unit.revision == 4]
    assert unit.changes[0].previous_type.schema_version == 1


async def test_a_change_that_could_refuse_old_data_is_refused_with_its_places(shore: Shore) -> None:
    await shore.declare(schema=BUOY)
    narrower = {
        "type": "object",
        "properties": {"country": {"type": "string", "maxLength": 2}, "depth": {"type": "number"}},
        "required": ["country", "depth"],
    }
    failure = await refusal(shore.change_type(schema=narrower))
    assert error_info(failure).reason == "INCOMPATIBLE_SCHEMA"
    assert pointers(failure) == ["/properties/country/maxLength", "/properties/tags", "/required"]
    assert error_info(failure).metadata["allowed_by"] == "NONE, FORWARD, FORWARD_TRANSITIVE"
    type_ = await shore.change_type(schema=narrower, compatibility="NONE")
    assert type_.schema_version == 2


async def test_a_stale_schema_is_never_written_by(shore: Shore, other_replica: Replica) -> None:
    await shore.declare(schema=BUOY, compatibility="NONE")
    elsewhere = shore.through(other_replica)
    await elsewhere.create("b1", {"country": "CH", "depth": 1})
    for n in range(10):
        field = f"f{n}"
        await shore.change_type(schema={"type": "object", "properties": {field: {"type": "integer"}}})
        assert await reason(elsewhere.create(f"c{n}", {"country": "CH"})) == "SCHEMA_VIOLATION"
        await elsewhere.create(f"c{n}", {field: n})


async def test_a_change_of_nothing_takes_no_revision(shore: Shore) -> None:
    await shore.declare(schema=BUOY, indexes=[{"fields": ["data.country"]}])
    type_ = await shore.change_type(schema=BUOY, indexes=[{"fields": ["data.country"]}], compatibility="BACKWARD")
    assert type_.revision == 1
    assert await shore.head() == 1


async def test_a_stale_etag_of_a_type_is_refused(shore: Shore) -> None:
    await shore.declare(schema=BUOY)
    await shore.change_type(compatibility="NONE", etag='"1"')
    failure = await refusal(shore.change_type(compatibility="FULL", etag='"1"'))
    assert error_info(failure).metadata["etag"] == '"2"'
    assert await reason(remove_type(shore, etag='"1"')) == "ETAG_MISMATCH"


async def test_only_an_empty_type_can_be_removed(shore: Shore) -> None:
    await shore.declare(schema=BUOY, indexes=[{"fields": ["data.country"]}])
    await shore.create("b1", {"country": "CH"})
    assert await reason(remove_type(shore)) == "TYPE_NOT_EMPTY"
    await shore.delete("b1")
    answer = await remove_type(shore)
    assert (answer.type.name, answer.revision) == (f"{shore.parent}/types/buoy", 4)
    assert await reason(shore.get_type()) == "NOT_FOUND"
    assert await reason(shore.create("b2", {"country": "CH"})) == "NOT_FOUND"
    (unit,) = await shore.units(3)
    assert not unit.changes[0].HasField("type")
    assert unit.changes[0].previous_type == answer.type


async def test_a_type_declared_again_is_another_type(shore: Shore, other_replica: Replica) -> None:
    await shore.declare(schema=BUOY, indexes=[{"fields": ["data.country"]}])
    elsewhere = shore.through(other_replica)
    await elsewhere.create("b1", {"country": "CH"})
    await elsewhere.delete("b1")
    await remove_type(shore)
    await shore.declare(schema=ANY, indexes=[{"fields": ["data.country"]}])
    await elsewhere.create("b2", {"anything": 1})
    await ready(shore)
    assert await shore.list_ids(order_by="data.country") == ["b2"]
    assert await shore.list_ids(order_by="data.country", show_deleted=True) == ["b2", "b1"]


async def test_an_index_added_later_is_built_while_writes_go_on(
    shore: Shore, replica: Replica, other_replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.index_builds.ENTITIES_AT_ONCE", 50)
    await shore.declare()
    for start in range(0, 1500, 500):
        await shore.batch(*(shore.creating(f"b{n:04}", {"n": n % 17}) for n in range(start, start + 500)))
    await shore.batch(*(shore.deleting(f"b{n:04}") for n in range(0, 1500, 10)))
    async with only_builder(replica, other_replica):
        type_ = await shore.change_type(indexes=[{"fields": ["data.n"]}])
        assert type_.indexes[0].state == Index.BUILDING
        early = await refusal(shore.page(filter="data.n = 3"))
        index = '{"fields": ["data.n"], "unique": false}'
        assert dict(error_info(early).metadata) == {"index": index, "state": "BUILDING"}
        assert "it is BUILDING: ask again" in (early.details() or "")
        # It would not serve this: what is to be declared is another one.
        assert "state" not in error_info(await refusal(shore.page(filter="data.m = 3"))).metadata
    elsewhere = shore.through(other_replica)
    for n in range(1, 1500, 100):
        await elsewhere.batch(
            elsewhere.updating(f"b{n:04}", {"n": 3}),
            elsewhere.deleting(f"b{n + 1:04}"),
            elsewhere.creating(f"a{n:04}", {"n": 3}),
        )
    assert (await ready(shore)).indexes[0].state == Index.READY
    everything = await all_of(shore, show_deleted=True)
    for value in range(17):
        live = {
            entity.name for entity in everything if not entity.HasField("delete_time") and entity.data["n"] == value
        }
        dead = {entity.name for entity in everything if entity.HasField("delete_time") and entity.data["n"] == value}
        found = await all_of(shore, filter=f"data.n = {value}")
        assert {entity.name for entity in found} == live
        found = await all_of(shore, filter=f"data.n = {value}", show_deleted=True)
        assert len(found) == len(live | dead)
        assert {entity.name for entity in found} == live | dead


async def all_of(shore: Shore, **query: Any) -> list[entity_pb2.Entity]:
    entities: list[entity_pb2.Entity] = []
    token = ""
    while True:
        page = await shore.page(page_size=1000, page_token=token, **query)
        entities += page.entities
        if not (token := page.next_page_token):
            return entities


async def test_a_unique_index_refuses_a_second_holder(shore: Shore, other_replica: Replica) -> None:
    await shore.declare(schema=BUOY, indexes=[{"fields": ["data.country"], "unique": True}])
    await shore.create("b1", {"country": "CH"})
    failure = await refusal(shore.create("b2", {"country": "CH"}))
    assert error_info(failure).reason == "UNIQUE_VIOLATION"
    assert error_info(failure).metadata["fields"] == "data.country"
    await shore.create("b2", {"country": "AT"})
    assert await reason(shore.update("b2", {"country": "CH"})) == "UNIQUE_VIOLATION"
    await shore.update("b1", {"country": "CH", "depth": 1})
    await shore.delete("b1")
    await shore.update("b2", {"country": "CH"})
    assert await reason(shore.undelete("b1")) == "UNIQUE_VIOLATION"
    await shore.update("b2", {"country": "DE"})
    await shore.undelete("b1")
    elsewhere = shore.through(other_replica)
    calls = [(shore if n % 2 else elsewhere).create(f"c{n}", {"country": "FR"}) for n in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1


async def test_entities_without_the_fields_take_no_part_in_uniqueness(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.a", "data.b"], "unique": True}])
    await shore.create("b1", {})
    await shore.create("b2", {"a": None})
    await shore.create("b3", {"a": 1})
    assert await reason(shore.create("b4", {"a": 1.0})) == "UNIQUE_VIOLATION"


async def test_only_the_end_of_a_transaction_counts_for_uniqueness(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"], "unique": True}])
    await shore.batch(shore.creating("b1", {"n": 1}), shore.creating("b2", {"n": 2}))
    await shore.transact(shore.updating("b1", {"n": 2}), shore.updating("b2", {"n": 1}))
    await shore.transact(shore.deleting("b1"), shore.creating("b3", {"n": 2}))
    failure = await refusal(shore.transact(shore.creating("b4", {"n": 9}), shore.creating("b5", {"n": 9})))
    assert error_info(failure).reason == "UNIQUE_VIOLATION"
    assert error_info(failure).metadata["mutation"] == "1"


async def test_concurrent_masked_updates_respect_a_unique_index(shore: Shore, other_replica: Replica) -> None:
    await shore.declare(indexes=[{"fields": ["data.a", "data.b"], "unique": True}])
    await shore.batch(shore.creating("b1", {"a": 1, "b": 1}), shore.creating("b2", {"a": 2, "b": 2}))
    elsewhere = shore.through(other_replica)
    calls = []
    for n in range(3, 13):
        calls += [shore.update("b1", {"a": n}), elsewhere.update("b1", {"b": n})]
        calls += [shore.update("b2", {"b": n}), elsewhere.update("b2", {"a": n})]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert {error_info(failure).reason for failure in outcomes if isinstance(failure, BaseException)} <= {
        "UNIQUE_VIOLATION",
        "ETAG_MISMATCH",
    }
    entities = await all_of(shore)
    pairs = {(entity.data["a"], entity.data["b"]) for entity in entities}
    assert len(pairs) == 2
    entries = await shore.replica.deployment.rows(
        "SELECT count(*) FROM index_entries WHERE namespace = %s", shore.namespace.id
    )
    assert entries == [(2,)]


async def test_a_unique_index_over_duplicates_fails_and_says_who(shore: Shore) -> None:
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n}", {"n": n // 2}) for n in range(40)))
    await shore.change_type(indexes=[{"fields": ["data.n"], "unique": True}])
    (index,) = (await ready(shore)).indexes
    assert index.state == Index.FAILED
    failed = await refusal(shore.page(order_by=index.fields[0]))
    assert error_info(failed).metadata["state"] == "FAILED"
    assert f"it is FAILED ({index.failure})" in (failed.details() or "")
    assert index.failure
    assert len(index.failed_names) == 10
    assert index.failed_names[0] == shore.name("b0")
    await shore.create("c1", {"n": 1})  # no longer enforced
    await shore.batch(*(shore.deleting(f"b{n}") for n in range(40)))
    await shore.change_type(indexes=[{"fields": ["data.n"], "unique": True}])
    assert (await ready(shore)).indexes[0].state == Index.READY


async def test_an_index_over_values_beyond_its_limits_fails_and_says_which(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"t": "x" * 1025})
    await shore.change_type(indexes=[{"fields": ["data.t"]}])
    (index,) = (await ready(shore)).indexes
    assert (index.state, list(index.failed_names)) == (Index.FAILED, [shore.name("b1")])
    await shore.create("b2", {"t": "x" * 1025})


async def test_values_beyond_the_limits_of_an_index_are_refused(shore: Shore) -> None:
    schema = {"type": "object", "properties": {"t": {"type": "string"}, "tags": {"type": "array"}}}
    await shore.declare(schema=schema, indexes=[{"fields": ["data.t"]}, {"fields": ["data.tags"]}])
    await shore.create("b1", {"t": "x" * 1024, "tags": list(range(100))})
    assert await reason(shore.update("b1", {"t": "x" * 1025})) == "INVALID_FIELD"
    assert await reason(shore.update("b1", {"tags": list(range(101))})) == "INVALID_FIELD"


async def test_the_entries_of_a_dropped_index_go_away(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}, {"fields": ["data.m"]}])
    await shore.batch(*(shore.creating(f"b{n}", {"n": n}) for n in range(100)))
    await shore.change_type(indexes=[{"fields": ["data.n"]}])
    count = "SELECT count(*) FROM index_entries WHERE namespace = %s"

    async def gone() -> bool:
        return await shore.replica.deployment.rows(count, shore.namespace.id) == [(100,)]

    await eventually(gone)


async def test_a_step_of_a_build_or_a_validation_reads_a_bounded_number_of_bytes(
    shore: Shore, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.type_store._STEP_BYTES", 10_000)
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:02}", {"n": n, "text": "x" * 3000 * (n % 2)}) for n in range(20)))
    await shore.create("b02a", {"n": 0, "text": "x" * 20_000})
    for select in (select_unindexed, select_live):
        after, found, steps = "", [], 0
        while True:
            (rows,) = await replica.service.database.read(
                shore.namespace.id, select(shore.namespace.id, "buoy", after, 500)
            )
            if not rows:
                break
            assert len(rows) == 1 or sum(len(data) for *_, data in rows) <= 10_000
            found += [entity_id for _, entity_id, _, _ in rows]
            after, steps = found[-1], steps + 1
        assert (len(found), found, steps > 4) == (21, sorted(found), True)
    await shore.change_type(indexes=[{"fields": ["data.n"]}])
    await ready(shore)
    assert len(await shore.list_ids(order_by="data.n")) == 21


async def test_a_build_goes_on_where_another_process_left_it(
    replica: Replica, other_replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.index_builds.ENTITIES_AT_ONCE", 50)
    async with only_builder(replica, other_replica):
        async with replica.deployment.replica() as dying:
            shore = dying.shore()
            await dying.service.builder.stop()
            await shore.declare()
            await shore.batch(*(shore.creating(f"b{n:03}", {"n": n}) for n in range(300)))
            await shore.change_type(indexes=[{"fields": ["data.n"]}])
        assert (await shore.through(replica).get_type()).indexes[0].state == Index.BUILDING
    await ready(shore.through(replica))
    assert len(await shore.through(replica).list_ids(order_by="data.n desc")) == 300
