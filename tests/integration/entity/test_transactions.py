"""Random transactions with references, operations and preconditions against a model in plain Python."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import grpc
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.stream.v1 import feed_pb2

from services.entity.index_keys import encode
from tests.integration.entity.conftest import Replica, Shore, error_info, operation, pointers, refusal

Key: TypeAlias = tuple[str, str]
Data: TypeAlias = dict[str, Any]
ONE, MANY = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
SCHEMA: Data = {
    "type": "object",
    "properties": {
        "n": {"type": "number"},
        "tags": {"type": "array", "items": {"type": "integer"}},
        "code": {"type": "integer"},
        "one": {"type": ["string", "null"]},
        "two": ONE,
        "all": MANY,
    },
}
# (field, type referred to, what becomes of the entity); a "berth" is unique by its code.
REFERENCES: dict[str, list[tuple[str, str, str]]] = {
    "port": [],
    "berth": [("one", "port", "CASCADE"), ("two", "port", "SET_NULL"), ("all", "berth", "SET_NULL")],
    "ship": [("one", "berth", "CASCADE"), ("two", "ship", "RESTRICT"), ("all", "port", "RESTRICT")],
}
IDS = ("x", "y", "z")
REFUSALS = {
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PRECONDITION_FAILED",
    "REFERENCE_NOT_FOUND",
    "REFERENCED",
    "UNIQUE_VIOLATION",
}


class Stored(NamedTuple):
    live: bool
    data: Data


class Step(NamedTuple):
    """One mutation, before it is a message."""

    kind: str
    key: Key
    data: Data
    operations: tuple[tuple[str, str, Any], ...] = ()


class Condition(NamedTuple):
    key: Key
    exists: bool | None
    least: int = 0
    """If ``exists`` is None: ``n`` is at least this."""


class Unit(NamedTuple):
    steps: list[Step]
    conditions: list[Condition]


keys = st.tuples(st.sampled_from(sorted(REFERENCES)), st.sampled_from(IDS))
ids = st.sampled_from(IDS)
contents = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(0, 5),
        "code": st.integers(0, 3),
        "one": st.one_of(ids, st.none()),
        "two": ids,
        "all": st.lists(ids, max_size=3),
    },
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("n"), st.sampled_from(["increment", "maximum", "minimum"]), st.integers(-2, 3)),
        st.tuples(st.just("tags"), st.sampled_from(["union", "remove"]), st.lists(st.integers(0, 2), max_size=2)),
        st.tuples(st.just("all"), st.sampled_from(["union", "remove"]), st.lists(ids, max_size=2)),
    ),
    max_size=2,
    unique_by=lambda item: item[0],
)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    kind = draw(st.sampled_from(["upsert"] * 4 + ["forget"] * 3 + ["create", "update", "delete", "undelete"]))
    key = draw(keys)
    data = draw(contents) if kind in ("create", "update", "upsert") else {}
    if key[0] == "port":
        data = {name: value for name, value in data.items() if name in ("n", "code")}
    chosen = draw(operations) if kind in ("update", "upsert") else []
    allowed = ("n", "tags") if key[0] == "port" else ("n", "tags", "all")
    return Step(kind, key, data, tuple(item for item in chosen if item[0] in allowed and item[0] not in data))


conditions = st.builds(Condition, keys, st.sampled_from([True, False, None]), st.integers(0, 4))
units = st.builds(
    Unit,
    st.lists(steps(), min_size=1, max_size=3, unique_by=lambda step: step.key),
    st.one_of(st.just([]), st.just([]), st.just([]), st.lists(conditions, max_size=1)),
)


@st.composite
def beginnings(draw: st.DrawFn) -> Unit:
    """One of everything, so that there is something to refer to; codes differ, so that it is accepted."""
    made = [Step("create", ("port", name), {}) for name in IDS]
    for kind in ("berth", "ship"):
        made += [Step("create", (kind, name), {**draw(contents), "code": n}) for n, name in enumerate(IDS)]
    return Unit(made, [])


class Model:
    """What should happen."""

    def __init__(self) -> None:
        self.state: dict[Key, Stored] = {}
        self.revision = len(REFERENCES)

    def apply(self, unit: Unit) -> set[str]:
        """Apply *unit*; or leave everything as it is, and say for which reasons it may be refused."""
        reasons = {"PRECONDITION_FAILED" for condition in unit.conditions if not self._holds(condition)}
        after = dict(self.state)
        for step in unit.steps:
            if reason := _apply_step(after, step):
                reasons.add(reason)
        written = {step.key for step in unit.steps}
        gone = {key for key in written if is_live(self.state, key) and not is_live(after, key)}
        while more := {
            key
            for key, _, target, on_delete in references(after)
            if on_delete == "CASCADE" and target in gone and key not in written | gone
        }:
            gone |= more
            after |= {key: after[key]._replace(live=False) for key in more}
        for key, field, target, on_delete in list(references(after)):
            if key in written:
                reasons |= set() if is_live(after, target) else {"REFERENCE_NOT_FOUND"}
            elif target in gone and on_delete == "RESTRICT":
                reasons.add("REFERENCED")
            elif target in gone:
                after[key] = Stored(True, without(after[key].data, field, target[1]))
        codes = [(key[0], stored.data.get("code")) for key, stored in after.items() if stored.live]
        if any(code is not None and codes.count((kind, code)) > 1 for kind, code in codes if kind == "berth"):
            reasons.add("UNIQUE_VIOLATION")
        if not reasons:
            # An update that changes nothing leaves the entity alone.
            self.revision += after != self.state
            self.state = after
        return reasons

    def _holds(self, condition: Condition) -> bool:
        live = is_live(self.state, condition.key)
        if condition.exists is not None:
            return live == condition.exists
        return live and self.state[condition.key].data.get("n", -1) >= condition.least


def _apply_step(state: dict[Key, Stored], step: Step) -> str:
    live = is_live(state, step.key)
    if step.kind == "create" and live:
        return "ALREADY_EXISTS"
    if step.kind == "undelete":
        if step.key not in state:
            return "NOT_FOUND"
        if live:
            return "ALREADY_EXISTS"
        state[step.key] = state[step.key]._replace(live=True)
    elif step.kind in ("delete", "forget"):
        if not live:
            return "NOT_FOUND" if step.kind == "delete" else ""
        state[step.key] = state[step.key]._replace(live=False)
    elif step.kind == "update" and not live:
        return "NOT_FOUND"
    else:
        before = state[step.key].data if live and step.kind != "create" else {}
        data = copy.deepcopy({**before, **step.data})
        for field, name, operand in step.operations:
            _operate(data, field, name, operand)
        state[step.key] = Stored(True, data)
    return ""


def _operate(data: Data, field: str, name: str, operand: Any) -> None:
    if name == "increment":
        data[field] = data.get(field, 0) + operand
    elif name in ("maximum", "minimum"):
        data[field] = {"maximum": max, "minimum": min}[name](data.get(field, operand), operand)
    elif name == "union":
        array = data.setdefault(field, [])
        array += [item for item in dict.fromkeys(operand) if item not in array]
    elif field in data:
        data[field] = [item for item in data[field] if item not in operand]


def is_live(state: dict[Key, Stored], key: Key) -> bool:
    return key in state and state[key].live


def references(state: dict[Key, Stored]) -> Iterator[tuple[Key, str, Key, str]]:
    """(who, by which field, what, and what becomes of who when that is deleted) of all live entities."""
    for key, stored in state.items():
        if stored.live:
            yield from references_of(key, stored.data)


def references_of(key: Key, data: Data) -> Iterator[tuple[Key, str, Key, str]]:
    for field, kind, on_delete in REFERENCES[key[0]]:
        value = data.get(field)
        for item in value if isinstance(value, list) else [value]:
            if item is not None:
                yield key, field, (kind, item), on_delete


def without(data: Data, field: str, item: str) -> Data:
    value = data.get(field)
    if isinstance(value, list):
        return {**data, field: [other for other in value if other != item]}
    if value != item:
        return data
    return {**data, "one": None} if field == "one" else {name: data[name] for name in data if name != field}


async def declared(replica: Replica) -> Shore:
    """A namespace with the types of the model."""
    shore = replica.shore()
    for name, fields in REFERENCES.items():
        rows = [{"field": f"data.{field}", "type": kind, "onDelete": how} for field, kind, how in fields]
        await shore.declare(
            name, SCHEMA, indexes=[{"fields": ["data.code"], "unique": name == "berth"}], references=rows
        )
    return shore


def send(shore: Shore, unit: Unit) -> Any:
    return shore.transact(
        *(mutation(shore, step) for step in unit.steps),
        preconditions=[precondition(shore, condition) for condition in unit.conditions],
    )


def mutation(shore: Shore, step: Step) -> entity_pb2.Mutation:
    kind, (type_id, entity_id) = step.kind, step.key
    if kind == "create":
        return shore.creating(entity_id, step.data, type_id)
    if kind in ("update", "upsert"):
        messages = [operation(f"data.{field}", **{name: operand}) for field, name, operand in step.operations]
        return shore.updating(entity_id, step.data, type_id, allow_missing=kind == "upsert", operations=messages)
    if kind in ("delete", "forget"):
        return shore.deleting(entity_id, type_id, allow_missing=kind == "forget")
    return shore.undeleting(entity_id, type_id)


def precondition(shore: Shore, condition: Condition) -> entity_pb2.Precondition:
    name = shore.name(condition.key[1], condition.key[0])
    if condition.exists is None:
        return entity_pb2.Precondition(name=name, filter=f"data.n >= {condition.least}")
    return entity_pb2.Precondition(name=name, exists=condition.exists)


async def outcome(call: Any) -> pb.TransactResponse | str:
    """The answer, or the reason of the refusal."""
    try:
        answer: pb.TransactResponse = await call
    except grpc.aio.AioRpcError as failure:
        return str(error_info(failure).reason)
    return answer


async def replayed(shore: Shore) -> dict[Key, Stored]:
    """The state that the log tells; asserts that no revision leaves a live entity that refers to none."""
    state: dict[Key, Stored] = {}
    for number, unit in enumerate(await shore.units(), 1):
        assert unit.revision == number
        for change in unit.changes:
            if change.kind == feed_pb2.Change.SCHEMA_CHANGED:
                continue
            *_, kind, _, entity_id = change.entity.name.split("/")
            data = json_format.MessageToDict(change.entity.data)
            state[(kind, entity_id)] = Stored(not change.entity.HasField("delete_time"), data)
        dangling = [(key, target) for key, _, target, _ in references(state) if not is_live(state, target)]
        assert not dangling, unit
    return state


async def check_stored(shore: Shore, state: dict[Key, Stored]) -> None:
    """Assert that what is read, and by what referrers are found, is *state*."""
    for kind, entity_id in state:
        entity = await shore.get(entity_id, kind)
        found = Stored(not entity.HasField("delete_time"), json_format.MessageToDict(entity.data))
        assert found == state[(kind, entity_id)]
    look = shore.replica.deployment.rows
    types = await look("SELECT id, reference_fields, referrers FROM types WHERE namespace = %s", shore.namespace.id)
    ids = {(kind, one["field"]): one["id"] for kind, fields, _ in types for one in fields}
    expected = {
        (ids[(key[0], f"data.{field}")], not stored.live, encode(target[1]), key[1])
        for key, stored in state.items()
        for _, field, target, _ in references_of(key, stored.data)
    }
    entries = "SELECT index_id, deleted, key, id FROM index_entries WHERE namespace = %s AND index_id = ANY (%s)"
    assert set(await look(entries, shore.namespace.id, list(ids.values()))) == expected
    assert {kind: set(by) for kind, _, by in types} == {
        kind: {other for other, fields in REFERENCES.items() for _, target, _ in fields if target == kind}
        for kind in REFERENCES
    }


@settings(max_examples=40, deadline=None)
@given(beginnings(), st.lists(units, min_size=1, max_size=25))
async def test_one_writer_sees_exactly_what_the_model_says(replica: Replica, beginning: Unit, sent: list[Unit]) -> None:
    shore, model = await declared(replica), Model()
    for unit in (beginning, *sent):
        allowed, answer = model.apply(unit), await outcome(send(shore, unit))
        if isinstance(answer, str):
            assert answer in allowed, (unit, answer, allowed)
        else:
            assert not allowed, (unit, allowed)
            assert answer.revision == model.revision
    assert await replayed(shore) == model.state
    await check_stored(shore, model.state)


@settings(max_examples=15, deadline=None)
@given(beginnings(), st.lists(st.lists(units, min_size=2, max_size=12), min_size=1, max_size=4))
async def test_many_writers_on_two_replicas_leave_nothing_dangling(
    replica: Replica, other_replica: Replica, beginning: Unit, rounds: list[list[Unit]]
) -> None:
    shore = await declared(replica)
    sides = [shore, shore.through(other_replica)]
    await send(shore, beginning)
    for sent in rounds:
        answers = await asyncio.gather(*(outcome(send(sides[n % 2], unit)) for n, unit in enumerate(sent)))
        assert {answer for answer in answers if isinstance(answer, str)} <= REFUSALS
    await check_stored(shore, await replayed(shore))


async def test_large_entities_are_read_in_portions_and_a_unit_of_too_many_is_refused(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.ledger.MAX_READ_BYTES", 50_000)
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:02}", {"s": "x" * 10_000}) for n in range(40)))
    head = await shore.head()
    answer = await shore.batch(*(shore.updating(f"b{n:02}", {"n": n}) for n in range(40)))
    assert {result.status.code for result in answer.results} == {0}
    assert await shore.head() == head + 40
    failure = await refusal(shore.transact(*(shore.deleting(f"b{n:02}") for n in range(10))))
    assert (error_info(failure).reason, pointers(failure)) == ("UNIT_TOO_LARGE", ["mutations"])
    assert await shore.head() == head + 40
    await shore.transact(*(shore.deleting(f"b{n:02}") for n in range(4)))
    assert len(await shore.list_ids()) == 36
