"""Preconditions of Transact: decided under the lock, of entities that the unit writes or not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from strandline.entity.v1 import entity_pb2

from tests.integration.entity.conftest import Replica, Shore, error_info, operation, pointers, reason, refusal


def condition(shore: Shore, entity_id: str, **holds: Any) -> entity_pb2.Precondition:
    return entity_pb2.Precondition(name=shore.name(entity_id), **holds)


@pytest.mark.parametrize(
    ("entity_id", "holds", "expected"),
    [
        ("live", {"exists": True}, True),
        ("live", {"exists": False}, False),
        ("dead", {"exists": True}, False),
        ("dead", {"exists": False}, True),
        ("never", {"exists": True}, False),
        ("never", {"exists": False}, True),
        ("live", {"etag": '"2"'}, True),
        ("live", {"etag": '"3"'}, False),
        ("dead", {"etag": '"4"'}, True),
        ("never", {"etag": '"4"'}, False),
        ("live", {"filter": "data.stock > 2 AND data.tags:'x'"}, True),
        ("live", {"filter": "data.stock > 3"}, False),
        ("live", {"filter": "data.missing = 1"}, False),
        ("dead", {"filter": "data.stock = 3"}, False),
        ("never", {"filter": "NOT data.stock = 3"}, False),
    ],
)
async def test_a_unit_is_applied_exactly_if_its_precondition_holds(
    shore: Shore, entity_id: str, holds: dict[str, Any], expected: bool
) -> None:
    await shore.declare()
    await shore.create("live", {"stock": 3, "tags": ["x"]})
    await shore.create("dead", {"stock": 3})
    await shore.delete("dead")
    unit = shore.transact(shore.creating("new", {}), preconditions=[condition(shore, entity_id, **holds)])
    if expected:
        assert (await unit).revision == 5
        return
    info = error_info(await refusal(unit))
    assert info.reason == "PRECONDITION_FAILED"
    assert dict(info.metadata) == {"precondition": "0", "name": shore.name(entity_id)}
    assert await reason(shore.get("new")) == "NOT_FOUND"
    assert await shore.head() == 4


@pytest.mark.parametrize("holds", [{"exists": False}, {"exists": True}, {"etag": '"2"'}, {"filter": "NOT data.n = 1"}])
async def test_a_precondition_on_a_type_that_is_not_there_is_refused(shore: Shore, holds: dict[str, Any]) -> None:
    await shore.declare()
    misspelt = entity_pb2.Precondition(name=shore.name("b1", "bouy"), **holds)
    for mutations in ([shore.creating("b1", {})], []):
        info = error_info(await refusal(shore.transact(*mutations, preconditions=[misspelt])))
        assert (info.reason, info.metadata["type"]) == ("NOT_FOUND", "bouy")
    assert await shore.head() == 1
    await shore.declare("bouy")
    if "exists" in holds and not holds["exists"]:
        assert (await shore.transact(shore.creating("b1", {}), preconditions=[misspelt])).revision == 3


async def test_the_first_precondition_that_fails_is_named(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {})
    conditions = [condition(shore, "b1", exists=True), condition(shore, "b2", exists=True)]
    failure = await refusal(shore.transact(shore.creating("b3", {}), preconditions=conditions))
    assert failure.code().name == "ABORTED"
    assert error_info(failure).metadata["precondition"] == "1"


async def test_a_precondition_on_an_entity_that_the_unit_writes_sees_it_as_it_was(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    before = [condition(shore, "b1", filter="data.n = 1"), condition(shore, "b2", exists=False)]
    await shore.transact(shore.updating("b1", {"n": 2}), shore.creating("b2", {}), preconditions=before)
    repeated = shore.transact(shore.updating("b1", {"n": 3}), preconditions=before)
    assert await reason(repeated) == "PRECONDITION_FAILED"


async def test_preconditions_alone_are_checked_and_take_no_revision(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {})
    answer = await shore.transact(preconditions=[condition(shore, "b1", exists=True)])
    assert (answer.revision, len(answer.results)) == (2, 0)
    assert await reason(shore.transact(preconditions=[condition(shore, "b1", exists=False)])) == "PRECONDITION_FAILED"
    assert await reason(shore.transact()) == "INVALID_FIELD"
    assert await shore.head() == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"filter": "data.n ="},
        {"filter": " "},
        {"etag": ""},
        {},
        {"name": "namespaces/elsewhere/types/buoy/entities/b1", "exists": True},
        {"name": "b1", "exists": True},
    ],
)
async def test_a_precondition_that_says_nothing_sensible_is_refused(shore: Shore, fields: dict[str, Any]) -> None:
    await shore.declare()
    odd = entity_pb2.Precondition(**{"name": shore.name("b1"), **fields})
    assert await reason(shore.transact(shore.creating("b1", {}), preconditions=[odd])) == "INVALID_FIELD"


async def test_a_filter_that_cannot_be_read_is_named_by_the_place_of_its_precondition(shore: Shore) -> None:
    await shore.declare()
    name = shore.name("b1")
    asked = [entity_pb2.Precondition(name=name, exists=False), entity_pb2.Precondition(name=name, filter="data.n =")]
    failure = await refusal(shore.transact(shore.creating("b1", {}), preconditions=asked))
    assert pointers(failure) == ["preconditions[1].filter"]
    assert (failure.details() or "").startswith("preconditions[1].filter: expected")


async def test_at_most_100_preconditions(shore: Shore) -> None:
    await shore.declare()
    many = [condition(shore, f"b{n}", exists=False) for n in range(101)]
    assert await reason(shore.transact(shore.creating("b1", {}), preconditions=many)) == "INVALID_FIELD"
    assert (await shore.transact(shore.creating("b1", {}), preconditions=many[:100])).revision == 2


async def test_a_unit_sent_twice_is_answered_although_its_precondition_holds_no_more(shore: Shore) -> None:
    await shore.declare()
    unset = [condition(shore, "b1", exists=False)]
    first = await shore.transact(shore.creating("b1", {}), preconditions=unset, request_id="r")
    assert await shore.transact(shore.creating("b1", {}), preconditions=unset, request_id="r") == first
    assert await reason(shore.transact(shore.creating("b1", {}), request_id="r")) == "REQUEST_ID_REUSED"


async def test_stock_is_never_sold_twice_by_two_replicas(shore: Shore, other_replica: Replica) -> None:
    await shore.declare()
    await shore.create("stock", {"left": 20})
    elsewhere = shore.through(other_replica)

    def sell(n: int) -> Any:
        side = shore if n % 2 else elsewhere
        taken = entity_pb2.UpdateMutation(name=side.name("stock"), operations=[operation("data.left", increment=-1)])
        return side.transact(
            entity_pb2.Mutation(update=taken),
            side.creating(f"sale{n}", {}),
            preconditions=[condition(side, "stock", filter="data.left > 0")],
        )

    outcomes = await asyncio.gather(*(sell(n) for n in range(60)), return_exceptions=True)
    refused = [error_info(outcome).reason for outcome in outcomes if isinstance(outcome, BaseException)]
    assert refused == ["PRECONDITION_FAILED"] * 40
    assert (await shore.get("stock")).data["left"] == 0
    assert len(await shore.list_ids()) == 21


async def test_of_two_units_that_each_require_what_the_other_removes_one_wins(
    shore: Shore, other_replica: Replica
) -> None:
    await shore.declare()
    for round_ in range(15):
        await shore.transact(shore.creating(f"a{round_}", {}), shore.creating(f"b{round_}", {}))
        elsewhere = shore.through(other_replica)
        calls = [
            shore.transact(shore.deleting(f"a{round_}"), preconditions=[condition(shore, f"b{round_}", exists=True)]),
            elsewhere.transact(
                shore.deleting(f"b{round_}"), preconditions=[condition(shore, f"a{round_}", exists=True)]
            ),
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(outcome, BaseException) for outcome in outcomes) == 1
