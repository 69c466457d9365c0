"""References: what a field refers to is there, whoever deletes what at the same time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from strandline.entity.v1 import entity_pb2, type_service_pb2
from strandline.stream.v1 import feed_pb2

from tests.integration.entity.building import only_builder
from tests.integration.entity.conftest import (
    Replica,
    Shore,
    error_info,
    eventually,
    operation,
    pointers,
    reason,
    refusal,
)
from tests.integration.entity.expiring import nobody_looks, soon

Change = feed_pb2.Change
SHIP = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "port": {"type": ["string", "null"]},
        "agent": {"type": "string"},
        "calls": {"type": "array", "items": {"type": "string"}},
        "at": {"type": "object", "properties": {"berth": {"type": "string"}}},
    },
}


async def declare_ships(shore: Shore, on_delete: str, field: str = "data.port", **more: Any) -> None:
    """Ports, and ships that refer to them."""
    await shore.declare("port")
    await shore.declare("ship", SHIP, references=[{"field": field, "type": "port", "onDelete": on_delete}], **more)


async def state(shore: Shore, entity_id: str, type_id: str = "ship") -> Any:
    """The content of a live entity, or None."""
    entity = await shore.get(entity_id, type_id)
    return None if entity.HasField("delete_time") else json_format.MessageToDict(entity.data)


def metadata(failure: grpc.aio.AioRpcError) -> dict[str, str]:
    info = error_info(failure)
    return {"reason": info.reason, **info.metadata}


async def references_ready(shore: Shore, type_id: str = "ship") -> entity_pb2.EntityType:
    async def built() -> bool:
        return all(one.state != entity_pb2.Index.BUILDING for one in (await shore.get_type(type_id)).references)

    await eventually(built)
    return await shore.get_type(type_id)


# Declaring


@pytest.mark.parametrize(
    ("reference", "field"),
    [
        ({"field": "data.port", "type": "nothing"}, "type.references[0].type"),
        ({"field": "data.unknown", "type": "port"}, "type.references[0].field"),
        ({"field": "data.at", "type": "port"}, "type.references[0].field"),
        ({"field": "data.port desc", "type": "port"}, "type.references[0].field"),
        ({"field": "lower(data.port)", "type": "port"}, "type.references[0].field"),
        ({"field": "port", "type": "port"}, "type.references[0].field"),
        ({"field": "data.port", "type": "No"}, "type.references[0].type"),
    ],
)
async def test_a_reference_that_makes_no_sense_is_refused(shore: Shore, reference: Any, field: str) -> None:
    await shore.declare("port")
    failure = await refusal(shore.declare("ship", SHIP, references=[reference]))
    assert (error_info(failure).reason, pointers(failure)) == ("INVALID_FIELD", [field])


async def test_a_field_is_named_once_and_there_are_at_most_16(shore: Shore) -> None:
    twice = [{"field": "data.port", "type": "ship"}] * 2
    assert await reason(shore.declare("ship", SHIP, references=twice)) == "INVALID_FIELD"
    schema = {"type": "object", "properties": {f"f{n}": {"type": "string"} for n in range(17)}}
    many = [{"field": f"data.f{n}", "type": "ship"} for n in range(17)]
    assert await reason(shore.declare("ship", schema, references=many)) == "INVALID_FIELD"
    assert len((await shore.declare("ship", schema, references=many[:16])).references) == 16


async def test_a_type_that_others_refer_to_stays(shore: Shore) -> None:
    await declare_ships(shore, "RESTRICT")
    await shore.change_type("port", references=[])
    failure = await refusal(delete_type(shore, "port"))
    assert metadata(failure) == {"reason": "TYPE_REFERENCED", "type": "ship"}
    await shore.change_type("ship", references=[])
    await delete_type(shore, "port")
    await shore.declare("node", SHIP, references=[{"field": "data.port", "type": "node"}])
    await delete_type(shore, "node")


async def delete_type(shore: Shore, type_id: str) -> Any:
    request = type_service_pb2.DeleteTypeRequest(name=f"{shore.parent}/types/{type_id}")
    return await shore.replica.types.DeleteType(request, metadata=shore.metadata())


async def test_a_schema_change_keeps_the_fields_of_references(shore: Shore) -> None:
    await declare_ships(shore, "RESTRICT")
    without = {"type": "object", "properties": {"name": {"type": "string"}}}
    refused = shore.change_type("ship", schema=without, compatibility="NONE")
    assert await reason(refused) == "INVALID_FIELD"


# Writing


@pytest.mark.parametrize("value", ["p2", "", "dead", "p1/..", "x" * 128])
async def test_a_value_that_names_no_live_entity_is_refused(shore: Shore, value: str) -> None:
    await declare_ships(shore, "RESTRICT")
    await shore.create("p1", {}, "port")
    await shore.create("dead", {}, "port")
    await shore.delete("dead", "port")
    expected = {"reason": "REFERENCE_NOT_FOUND", "type": "port", "field": "data.port", "id": value}
    assert metadata(await refusal(shore.create("s1", {"port": value}, "ship"))) == expected
    await shore.create("s1", {"port": "p1"}, "ship")
    assert metadata(await refusal(shore.update("s1", {"port": value}, "ship"))) == expected
    failure = await refusal(
        shore.transact(shore.creating("p3", {}, "port"), shore.updating("s1", {"port": value}, "ship"))
    )
    assert metadata(failure) == {**expected, "mutation": "1"}
    assert await state(shore, "s1") == {"port": "p1"}


async def test_null_and_absence_refer_to_nothing(shore: Shore) -> None:
    await declare_ships(shore, "RESTRICT")
    await shore.create("s1", {"port": None}, "ship")
    await shore.create("s2", {}, "ship")


async def test_arrays_nested_fields_and_operations_refer_too(shore: Shore) -> None:
    await shore.declare("port")
    references = [{"field": field, "type": "port"} for field in ("data.calls", "data.at.berth")]
    await shore.declare("ship", SHIP, references=references)
    for n in range(3):
        await shore.create(f"p{n}", {}, "port")
    await shore.create("s1", {"calls": ["p0", "p1", "p0"], "at": {"berth": "p2"}}, "ship")
    missing = shore.update("s1", None, "ship", operations=[operation("data.calls", union=["p2", "p9"])])
    assert metadata(await refusal(missing))["id"] == "p9"
    await shore.update(
        "s1",
        None,
        "ship",
        operations=[
            operation(
                "data.calls",
                union=["p2"],
            )
        ],
    )
    moved = shore.update("s1", {"at": {"berth": "p9"}, "calls": []}, "ship", update_mask=["data.at.berth"])
    assert metadata(await refusal(moved))["field"] == "data.at.berth"
    await shore.update("s1", {"at": {"berth": "p1"}, "calls": ["p9"]}, "ship", update_mask=["data.at.berth"])
    for n in range(3):
        assert await reason(shore.delete(f"p{n}", "port")) == "REFERENCED"
    await shore.update("s1", None, "ship", operations=[operation("data.calls", remove=["p0", "p2"])])
    assert [await deleted(shore, f"p{n}", "port") for n in range(3)] == [True, False, True]


async def deleted(shore: Shore, entity_id: str, type_id: str) -> bool:
    """Whether it could be deleted."""
    (outcome,) = await asyncio.gather(shore.delete(entity_id, type_id), return_exceptions=True)
    assert not isinstance(outcome, BaseException) or error_info(outcome).reason == "REFERENCED"
    return not isinstance(outcome, BaseException)


async def test_too_many_references_of_one_entity_are_refused(shore: Shore) -> None:
    await declare_ships(shore, "RESTRICT", "data.calls")
    failure = await refusal(shore.create("s1", {"calls": [f"p{n}" for n in range(101)]}, "ship"))
    assert error_info(failure).reason == "INVALID_FIELD"


async def test_what_the_same_unit_creates_can_be_referred_to_and_what_it_deletes_cannot(shore: Shore) -> None:
    await declare_ships(shore, "RESTRICT")
    await shore.transact(shore.creating("s1", {"port": "p1"}, "ship"), shore.creating("p1", {}, "port"))
    await shore.create("p2", {}, "port")
    both = shore.transact(shore.deleting("p2", "port"), shore.updating("s1", {"port": "p2"}, "ship"))
    assert await reason(both) == "REFERENCE_NOT_FOUND"
    kept = shore.transact(shore.deleting("p1", "port"), shore.updating("s1", {"name": "a"}, "ship"))
    assert await reason(kept) == "REFERENCE_NOT_FOUND"
    # It lets go, or goes itself.
    await shore.transact(shore.deleting("p1", "port"), shore.updating("s1", {"port": "p2"}, "ship"))
    await shore.transact(shore.deleting("p2", "port"), shore.deleting("s1", "ship"))


async def test_a_batch_creates_what_it_refers_to_in_the_given_order(shore: Shore) -> None:
    await declare_ships(shore, "RESTRICT")
    answer = await shore.batch(
        shore.creating("p1", {}, "port"),
        shore.creating("s1", {"port": "p1"}, "ship"),
        shore.deleting("s1", "ship"),
        shore.updating("p1", {"n": 1}, "port"),
    )
    assert [result.status.code for result in answer.results] == [0, 0, 0, 0]


async def test_a_batch_deletes_what_nothing_before_it_refers_to_any_more(shore: Shore) -> None:
    await declare_ships(shore, "RESTRICT")
    await shore.transact(shore.creating("p1", {}, "port"), shore.creating("s1", {"port": "p1"}, "ship"))
    answer = await shore.batch(shore.deleting("s1", "ship"), shore.deleting("p1", "port"))
    assert [result.status.code for result in answer.results] == [0, 0]


async def test_undelete_needs_what_it_refers_to(shore: Shore) -> None:
    await declare_ships(shore, "RESTRICT")
    await shore.create("p1", {}, "port")
    await shore.create("s1", {"port": "p1"}, "ship")
    await shore.delete("s1", "ship")
    await shore.delete("p1", "port")
    assert await reason(shore.undelete("s1", "ship")) == "REFERENCE_NOT_FOUND"
    await shore.transact(shore.undeleting("s1", "ship"), shore.undeleting("p1", "port"))
    assert await reason(shore.delete("p1", "port")) == "REFERENCED"


# Deleting


async def test_restrict_refuses_with_the_count(shore: Shore) -> None:
    await declare_ships(shore, "RESTRICT")
    await shore.create("p1", {}, "port")
    await shore.batch(*(shore.creating(f"s{n}", {"port": "p1"}, "ship") for n in range(7)))
    failure = await refusal(shore.delete("p1", "port"))
    assert failure.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert metadata(failure) == {"reason": "REFERENCED", "type": "ship", "field": "data.port", "count": "7"}


@pytest.mark.parametrize(
    ("field", "before", "after"),
    [
        ("data.port", {"port": "p1", "name": "a"}, {"port": None, "name": "a"}),
        ("data.agent", {"agent": "p1", "name": "a"}, {"name": "a"}),
        ("data.calls", {"calls": ["p2", "p1", "p2", "p1"]}, {"calls": ["p2", "p2"]}),
        ("data.calls", {"calls": ["p1"]}, {"calls": []}),
        ("data.at.berth", {"at": {"berth": "p1"}}, {"at": {}}),
    ],
)
async def test_set_null_takes_the_reference_away_in_the_same_unit(
    shore: Shore, field: str, before: Any, after: Any
) -> None:
    await declare_ships(shore, "SET_NULL", field, indexes=[{"fields": ["data.name"]}])
    await shore.create("p1", {}, "port")
    await shore.create("p2", {}, "port")
    await shore.create("s1", before, "ship")
    answer = await shore.delete("p1", "port")
    (unit,) = await shore.units(answer.revision - 1)
    assert [(change.kind, change.entity.name) for change in unit.changes] == [
        (Change.DELETED, shore.name("p1", "port")),
        (Change.UPDATED, shore.name("s1", "ship")),
    ]
    assert json_format.MessageToDict(unit.changes[1].previous.data) == before
    assert await state(shore, "s1") == after
    assert (await shore.get("s1", "ship")).revision == answer.revision


async def test_set_null_is_refused_where_the_schema_wants_the_field(shore: Shore) -> None:
    await shore.declare("port")
    schema = {**SHIP, "required": ["agent"]}
    references = [{"field": "data.agent", "type": "port", "onDelete": "SET_NULL"}]
    await shore.declare("ship", schema, references=references)
    await shore.create("p1", {}, "port")
    await shore.create("s1", {"agent": "p1"}, "ship")
    failure = await refusal(shore.delete("p1", "port"))
    assert metadata(failure) == {"reason": "REFERENCED", "type": "ship", "field": "data.agent", "count": "1"}
    assert "agent" in (failure.details() or "")
    assert await state(shore, "p1", "port") == {}


async def test_set_null_moves_unique_values_and_minds_those_that_are_taken(shore: Shore) -> None:
    indexes = [{"fields": ["data.port", "data.name"], "unique": True}]
    await declare_ships(shore, "SET_NULL", indexes=indexes)
    await shore.create("p1", {}, "port")
    await shore.create("s1", {"port": "p1", "name": "a"}, "ship")
    await shore.delete("p1", "port")
    assert await reason(shore.create("s2", {"port": None, "name": "a"}, "ship")) == "UNIQUE_VIOLATION"
    await shore.create("p2", {}, "port")
    await shore.create("s3", {"port": "p2", "name": "a"}, "ship")
    assert await reason(shore.delete("p2", "port")) == "UNIQUE_VIOLATION"


async def test_cascade_deletes_transitively_and_through_circles_in_one_unit(shore: Shore) -> None:
    await declare_ships(shore, "CASCADE")
    own = [{"field": "data.agent", "type": "cargo", "onDelete": "CASCADE"}]
    ship = {"field": "data.port", "type": "ship", "onDelete": "CASCADE"}
    await shore.declare("cargo", SHIP, references=[*own, ship])
    await shore.create("p1", {}, "port")
    await shore.create("s1", {"port": "p1"}, "ship")
    await shore.create("s2", {"port": "p1"}, "ship")
    await shore.create("free", {}, "ship")
    await shore.transact(
        shore.creating("c1", {"port": "s1", "agent": "c3"}, "cargo"),
        shore.creating("c2", {"agent": "c1"}, "cargo"),
        shore.creating("c3", {"agent": "c2"}, "cargo"),
        shore.creating("self", {"agent": "self"}, "cargo"),
    )
    answer = await shore.delete("p1", "port")
    (unit,) = await shore.units(answer.revision - 1)
    names = [("p1", "port"), ("s1", "ship"), ("s2", "ship"), ("c1", "cargo"), ("c2", "cargo"), ("c3", "cargo")]
    assert {change.entity.name for change in unit.changes} == {shore.name(*name) for name in names}
    assert len(unit.changes) == 6
    assert {change.kind for change in unit.changes} == {Change.DELETED}
    assert await shore.list_ids("ship") == ["free"]
    await shore.delete("self", "cargo")
    assert await shore.list_ids("cargo") == []


async def test_who_goes_anyway_holds_nobody_back(shore: Shore) -> None:
    await declare_ships(shore, "CASCADE")
    references = [
        {"field": "data.agent", "type": "ship", "onDelete": "CASCADE"},
        {"field": "data.port", "type": "port", "onDelete": "RESTRICT"},
    ]
    await shore.declare("cargo", SHIP, references=references)
    await shore.create("p1", {}, "port")
    await shore.create("s1", {"port": "p1"}, "ship")
    await shore.create("c1", {"agent": "s1", "port": "p1"}, "cargo")
    await shore.create("c2", {"port": "p1"}, "cargo")
    failure = await refusal(shore.delete("p1", "port"))
    assert metadata(failure) == {"reason": "REFERENCED", "type": "cargo", "field": "data.port", "count": "1"}
    await shore.delete("c2", "cargo")
    await shore.delete("p1", "port")
    assert await shore.list_ids("cargo") == []


async def fill(shore: Shore, type_id: str, rows: dict[str, dict[str, Any]]) -> None:
    writes = [shore.creating(entity_id, data, type_id) for entity_id, data in rows.items()]
    for start in range(0, len(writes), 500):
        answer = await shore.batch(*writes[start : start + 500])
        assert not any(result.status.code for result in answer.results)


@pytest.mark.parametrize("on_delete", ["CASCADE", "SET_NULL"])
async def test_500_are_touched_and_501_are_refused_with_the_count(shore: Shore, on_delete: str) -> None:
    await declare_ships(shore, on_delete)
    await shore.create("p1", {}, "port")
    await fill(shore, "ship", {f"s{n}": {"port": "p1"} for n in range(501)})
    failure = await refusal(shore.delete("p1", "port"))
    assert metadata(failure) == {"reason": "CASCADE_TOO_LARGE", "count": "501"}
    assert len(await shore.list_ids("ship", page_size=1000)) == 501
    await shore.delete("s500", "ship")
    answer = await shore.delete("p1", "port")
    (unit,) = await shore.units(answer.revision - 1)
    assert len(unit.changes) == 501


async def test_what_is_too_large_is_counted_through_all_levels(shore: Shore) -> None:
    await declare_ships(shore, "CASCADE")
    await shore.declare("cargo", SHIP, references=[{"field": "data.port", "type": "ship", "onDelete": "CASCADE"}])
    await shore.create("p1", {}, "port")
    await fill(shore, "ship", {f"s{n}": {"port": "p1"} for n in range(30)})
    await fill(shore, "cargo", {f"c{n}": {"port": f"s{n % 30}"} for n in range(600)})
    failure = await refusal(shore.delete("p1", "port"))
    assert metadata(failure) == {"reason": "CASCADE_TOO_LARGE", "count": "630"}


async def test_a_long_chain_is_followed_to_its_end(shore: Shore) -> None:
    await shore.declare("node", SHIP, references=[{"field": "data.agent", "type": "node", "onDelete": "CASCADE"}])
    await shore.transact(
        shore.creating("n0", {}, "node"),
        *(shore.creating(f"n{n}", {"agent": f"n{n - 1}"}, "node") for n in range(1, 300)),
    )
    await shore.delete("n0", "node")
    assert await shore.list_ids("node") == []


# At the same time


async def test_a_reference_and_the_deletion_of_its_target_never_both_succeed(
    shore: Shore, other_replica: Replica
) -> None:
    await declare_ships(shore, "RESTRICT")
    elsewhere = shore.through(other_replica)
    for n in range(25):
        await shore.create(f"p{n}", {}, "port")
        sides = (shore, elsewhere) if n % 2 else (elsewhere, shore)
        calls = [
            *(sides[0].create(f"s{n}-{i}", {"port": f"p{n}"}, "ship") for i in range(2)),
            sides[1].delete(f"p{n}", "port"),
            sides[1].create(f"s{n}-2", {"port": f"p{n}"}, "ship"),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = {error_info(outcome).reason for outcome in outcomes if isinstance(outcome, BaseException)}
        alive = await state(shore, f"p{n}", "port") is not None
        referrers = len(await shore.list_ids("ship", filter=f"NOT data.port != 'p{n}'"))
        assert refused <= {"REFERENCE_NOT_FOUND", "REFERENCED"}
        assert alive or not referrers


@pytest.mark.parametrize("on_delete", ["SET_NULL", "CASCADE"])
async def test_no_reference_is_left_over_by_concurrent_deletions(
    shore: Shore, other_replica: Replica, on_delete: str
) -> None:
    await declare_ships(shore, on_delete, "data.calls")
    elsewhere = shore.through(other_replica)
    for round_ in range(10):
        ports = [f"p{round_}-{n}" for n in range(3)]
        await shore.transact(*(shore.creating(port, {}, "port") for port in ports))
        calls: list[Any] = [
            (shore if n % 2 else elsewhere).create(f"s{round_}-{n}", {"calls": ports[: n % 3 + 1]}, "ship")
            for n in range(6)
        ]
        calls += [(shore if n % 2 else elsewhere).delete(port, "port") for n, port in enumerate(ports)]
        calls += [elsewhere.update(f"s{round_}-{n}", {"name": "n"}, "ship", allow_missing=True) for n in range(6)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = {error_info(outcome).reason for outcome in outcomes if isinstance(outcome, BaseException)}
        assert refused <= {"REFERENCE_NOT_FOUND", "ALREADY_EXISTS", "NOT_FOUND"}
    living = set(await shore.list_ids("port", page_size=1000))
    for ship in (await shore.page("ship", page_size=1000)).entities:
        assert set(json_format.MessageToDict(ship.data).get("calls", ())) <= living


# References that come later


@pytest.mark.parametrize("on_delete", ["RESTRICT", "CASCADE"])
async def test_a_replica_that_knows_the_types_as_they_were_obeys_them_as_they_are(
    shore: Shore, other_replica: Replica, on_delete: str
) -> None:
    elsewhere = shore.through(other_replica)
    await shore.declare("port")
    await shore.declare("ship", SHIP)
    await elsewhere.transact(elsewhere.creating("p1", {}, "port"), elsewhere.creating("s0", {}, "ship"))
    await shore.change_type("ship", references=[{"field": "data.port", "type": "port", "onDelete": on_delete}])
    await references_ready(shore)
    assert await reason(elsewhere.update("s0", {"port": "p2"}, "ship")) == "REFERENCE_NOT_FOUND"
    await shore.create("s1", {"port": "p1"}, "ship")
    if on_delete == "RESTRICT":
        assert await reason(elsewhere.delete("p1", "port")) == "REFERENCED"
    else:
        await elsewhere.delete("p1", "port")
        assert await state(shore, "s1") is None


async def test_a_reference_added_to_a_populated_type_is_enforced_when_ready(shore: Shore) -> None:
    await shore.declare("port")
    await shore.declare("ship", SHIP)
    await shore.create("p1", {}, "port")
    await fill(shore, "ship", {f"s{n}": {"port": "p1"} for n in range(1200)})
    changed = await shore.change_type("ship", references=[{"field": "data.port", "type": "port"}])
    assert changed.references[0].on_delete == entity_pb2.Reference.RESTRICT
    assert await reason(shore.create("s", {"port": "p2"}, "ship")) == "REFERENCE_NOT_FOUND"
    assert await reason(shore.delete("p1", "port")) in ("REFERENCE_BUILDING", "REFERENCED")
    ready = await references_ready(shore)
    assert ready.references[0].state == entity_pb2.Index.READY
    assert metadata(await refusal(shore.delete("p1", "port")))["count"] == "1200"
    # A change of what a deletion does needs no new look at the entities.
    cascade = [{"field": "data.port", "type": "port", "onDelete": "CASCADE"}]
    assert (await shore.change_type("ship", references=cascade)).references[0].state == entity_pb2.Index.READY
    assert metadata(await refusal(shore.delete("p1", "port")))["reason"] == "CASCADE_TOO_LARGE"
    await shore.change_type("ship", references=[])
    await shore.delete("p1", "port")


async def test_while_a_reference_is_building_its_targets_stay(
    shore: Shore, replica: Replica, other_replica: Replica
) -> None:
    await shore.declare("port")
    await shore.declare("ship", SHIP)
    await shore.create("p1", {}, "port")
    await fill(shore, "ship", {f"s{n}": {"port": "p1"} for n in range(3)})
    async with only_builder(replica, other_replica):
        await shore.change_type("ship", references=[{"field": "data.port", "type": "port", "onDelete": "CASCADE"}])
        failure = await refusal(shore.delete("p1", "port"))
        assert metadata(failure) == {"reason": "REFERENCE_BUILDING", "type": "ship", "field": "data.port"}
    await references_ready(shore)
    await shore.delete("p1", "port")
    assert await shore.list_ids("ship") == []


async def test_dangling_references_make_it_fail_with_names_until_they_are_mended(shore: Shore) -> None:
    await shore.declare("port")
    await shore.declare("ship", SHIP)
    await shore.create("p1", {}, "port")
    await shore.create("s1", {"port": "p1"}, "ship")
    await shore.create("s2", {"port": "gone"}, "ship")
    await shore.create("s3", {"port": "gone"}, "ship")
    await shore.delete("s3", "ship")
    reference = {"field": "data.port", "type": "port", "onDelete": "CASCADE"}
    await shore.change_type("ship", references=[reference])
    (failed,) = (await references_ready(shore)).references
    assert failed.state == entity_pb2.Index.FAILED
    assert "port" in failed.failure
    assert list(failed.failed_names) == [shore.name("s2", "ship")]
    # Nothing is enforced.
    await shore.create("s4", {"port": "nowhere"}, "ship")
    await shore.transact(shore.deleting("s2", "ship"), shore.deleting("s4", "ship"))
    await shore.change_type("ship", references=[reference])
    assert (await references_ready(shore)).references[0].state == entity_pb2.Index.READY
    assert await reason(shore.create("s5", {"port": "nowhere"}, "ship")) == "REFERENCE_NOT_FOUND"
    await shore.delete("p1", "port")
    assert await shore.list_ids("ship") == []


async def test_expiry_obeys_what_a_deletion_does(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> None:
    await declare_ships(shore, "CASCADE")

    async def create_port(seconds: float) -> None:
        mutation = shore.creating("p1", {}, "port")
        mutation.create.expire_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
        await shore.transact(mutation)

    with nobody_looks(monkeypatch):
        await soon(create_port)
        await shore.create("s1", {"port": "p1"}, "ship")

    async def gone() -> bool:
        return await state(shore, "p1", "port") is None

    await eventually(gone)
    assert await state(shore, "s1") is None
    assert {change.kind for change in (await shore.units())[-1].changes} == {Change.EXPIRED, Change.DELETED}
