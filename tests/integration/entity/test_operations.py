"""Field operations: computed under the lock from what is stored there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf import json_format
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from tests.integration.entity.conftest import Replica, Shore, error_info, operation, pointers, reason, refusal
from tests.integration.entity.test_failures import commits_that_do_not_answer, cut_commits


async def content(shore: Shore, entity_id: str) -> Any:
    return json_format.MessageToDict((await shore.get(entity_id)).data)


def operating(shore: Shore, entity_id: str, *operations: Any, **more: Any) -> entity_pb2.Mutation:
    update = entity_pb2.UpdateMutation(name=shore.name(entity_id), operations=operations, **more)
    return entity_pb2.Mutation(update=update)


async def test_operations_apply_after_the_content_and_without_any(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"visits": 1, "name": "a", "tags": ["x"]})
    changed = await shore.update(
        "b1", {"name": "b"}, operations=[operation("data.visits", increment=2), operation("data.tags", union=["y"])]
    )
    assert json_format.MessageToDict(changed.entity.data) == {"visits": 3, "name": "b", "tags": ["x", "y"]}
    await shore.update("b1", None, operations=[operation("data.best.depth", maximum=7)])
    await shore.transact(operating(shore, "b1", operation("data.tags", remove=["x"])))
    await shore.batch(operating(shore, "b1", operation("data.visits", minimum=0)))
    assert await content(shore, "b1") == {"visits": 0, "name": "b", "tags": ["y"], "best": {"depth": 7}}
    assert [unit.changes[0].kind for unit in await shore.units(2)] == [feed_pb2.Change.UPDATED] * 4


async def test_with_allow_missing_operations_begin_with_nothing(shore: Shore) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]}
    await shore.declare(schema=schema, indexes=[{"fields": ["data.n"], "unique": True}])
    for _ in range(2):
        await shore.update("b1", None, operations=[operation("data.n", increment=4)], allow_missing=True)
    assert await content(shore, "b1") == {"n": 8}
    taken = shore.update("b2", None, operations=[operation("data.n", maximum=8)], allow_missing=True)
    assert await reason(taken) == "UNIQUE_VIOLATION"
    # A deleted entity gives its name away, and its content with it.
    await shore.delete("b1")
    await shore.update("b1", None, operations=[operation("data.n", increment=1)], allow_missing=True)
    assert await content(shore, "b1") == {"n": 1}
    assert await shore.list_ids(filter="data.n = 1") == ["b1"]


async def test_an_operation_that_changes_nothing_takes_no_revision(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 5, "tags": ["x"]})
    answer = await shore.update(
        "b1",
        None,
        operations=[
            operation("data.n", maximum=3),
            operation("data.tags", union=["x"]),
            operation("data.gone", remove=[1]),
        ],
    )
    assert (answer.revision, answer.entity.revision) == (2, 2)
    assert await shore.head() == 2


async def test_the_result_is_checked_against_the_schema(shore: Shore) -> None:
    await shore.declare(schema={"type": "object", "properties": {"n": {"type": "integer", "maximum": 10}}})
    await shore.create("b1", {"n": 9})
    beyond = await refusal(shore.update("b1", None, operations=[operation("data.n", increment=2)]))
    assert (error_info(beyond).reason, pointers(beyond)) == ("SCHEMA_VIOLATION", ["/n"])
    wrong = await refusal(shore.update("b1", None, operations=[operation("data.n", union=[2])]))
    assert (error_info(wrong).reason, pointers(wrong)) == ("INVALID_FIELD", ["/n"])
    assert await shore.head() == 2


@pytest.mark.parametrize(
    "more",
    [
        {"update_mask": ["data.a"], "operations": [operation("data.a.n", increment=1)]},
        {"update_mask": ["*"], "operations": [operation("data.n", increment=1)]},
        {"operations": [operation("data.a", increment=1)]},
        {"operations": [operation("data.n", increment=1), operation("data.n.m", increment=1)]},
        {"operations": [entity_pb2.FieldOperation(field="data.n")]},
        {"operations": [operation("data.n", increment=1)] * 101},
    ],
)
async def test_no_field_is_changed_in_two_ways(shore: Shore, more: dict[str, Any]) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    assert await reason(shore.update("b1", {"a": {"n": 2}}, **more)) == "INVALID_FIELD"
    assert await shore.head() == 2


async def test_content_is_needed_unless_there_are_operations_and_no_mask(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    assert await reason(shore.update("b1", None)) == "INVALID_FIELD"
    masked = operating(shore, "b1", operation("data.n", increment=1), update_mask=["data.a"])
    assert await reason(shore.transact(masked)) == "INVALID_FIELD"


async def test_concurrent_increments_on_two_replicas_are_all_counted(shore: Shore, other_replica: Replica) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}, {"fields": ["data.code"], "unique": True}])
    await shore.create("b1", {"code": "a"})
    elsewhere = shore.through(other_replica)
    increment = operation("data.n", increment=1)
    calls = [(shore if n % 2 else elsewhere).update("b1", None, operations=[increment]) for n in range(64)]
    answers = await asyncio.gather(*calls)
    assert {answer.entity.data["n"] for answer in answers} == set(range(1, 65))
    assert await content(shore, "b1") == {"code": "a", "n": 64}
    assert await shore.list_ids(filter="data.n = 64") == ["b1"]
    assert await shore.head() == 66


@pytest.mark.parametrize("way", ["update", "transact", "batch"])
async def test_a_field_that_a_unique_index_holds_is_changed_by_many_at_once(
    shore: Shore, other_replica: Replica, way: str
) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"], "unique": True}])
    await shore.create("b1", {"n": 0})
    increment = operation("data.n", increment=1)

    async def client(through: Shore) -> None:
        for _ in range(6):
            if way == "update":
                await through.update("b1", None, operations=[increment])
            elif way == "transact":
                await through.transact(operating(through, "b1", increment))
            else:
                answer = await through.batch(operating(through, "b1", increment), operating(through, "b1", increment))
                assert [result.status.code for result in answer.results] == [0, 0]

    elsewhere = shore.through(other_replica)
    async with asyncio.TaskGroup() as clients:
        for number in range(16):
            clients.create_task(client(elsewhere if number % 4 == 0 else shore))
    assert await content(shore, "b1") == {"n": 16 * 6 * (2 if way == "batch" else 1)}


async def test_an_increment_of_what_is_unique_gets_its_turn_among_those_who_replace_it(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"], "unique": True}])
    await shore.create("b1", {"n": 0})
    done = asyncio.Event()

    async def replace(place: int) -> None:
        number = 1000 * place
        while not done.is_set():
            number += 1
            await shore.update("b1", {"n": number}, update_mask=["*"])

    replacing = [asyncio.create_task(replace(place)) for place in range(1, 9)]
    try:
        for _ in range(10):
            await shore.update("b1", None, operations=[operation("data.n", increment=0.5)])
    finally:
        done.set()
        await asyncio.gather(*replacing)


async def test_an_increment_sent_twice_counts_once_and_is_no_other_increment(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 0})
    first = await shore.update("b1", None, operations=[operation("data.n", increment=1)], request_id="r")
    await shore.update("b1", None, operations=[operation("data.n", increment=5)])
    again = await shore.update("b1", None, operations=[operation("data.n", increment=1)], request_id="r")
    assert again == first
    other = shore.update("b1", None, operations=[operation("data.n", increment=2)], request_id="r")
    assert await reason(other) == "REQUEST_ID_REUSED"
    assert await content(shore, "b1") == {"n": 6}


async def test_an_increment_whose_connection_dies_inside_commit_counts_once(shore: Shore, replica: Replica) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 0})
    increment = operation("data.n", increment=1)
    async with commits_that_do_not_answer(replica.deployment) as connection:
        for write in (
            lambda: shore.update("b1", None, operations=[increment]),
            lambda: shore.batch(operating(shore, "b1", increment)),
            lambda: shore.transact(operating(shore, "b1", increment)),
        ):
            await cut_commits(connection, asyncio.create_task(write()))
    assert await content(shore, "b1") == {"n": 3}
    assert await shore.head() == 5
