"""Field operations as plain functions of what is stored."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from strandline.entity.v1 import entity_pb2

from services.entity.content import canonical
from services.entity.operations import apply, overlap, parse_operations
from services.runtime.errors import InvalidArgument
from services.runtime.wire import MAX_INTEGER

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "a", "b"]), st.just(0.5))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xy"), inner))


def applied(data: dict[str, Any], *operations: dict[str, Any]) -> dict[str, Any]:
    messages = [json_format.ParseDict(operation, entity_pb2.FieldOperation()) for operation in operations]
    return apply(data, parse_operations(messages, (), "operations"))


@pytest.mark.parametrize(
    ("data", "operation", "expected"),
    [
        ({"n": 1}, {"field": "data.n", "increment": 2}, {"n": 3}),
        ({"n": 1}, {"field": "data.n", "increment": 0.5}, {"n": 1.5}),
        ({"n": 1.5}, {"field": "data.n", "increment": -0.5}, {"n": 1}),
        ({}, {"field": "data.n", "increment": 2}, {"n": 2}),
        ({"n": None}, {"field": "data.n", "increment": 2}, {"n": 2}),
        ({}, {"field": "data.a.b", "increment": 2}, {"a": {"b": 2}}),
        ({"a": {"c": 1}}, {"field": "data.a.b", "increment": 2}, {"a": {"b": 2, "c": 1}}),
        ({"n": 1}, {"field": "data.n", "maximum": 2}, {"n": 2}),
        ({"n": 3}, {"field": "data.n", "maximum": 2}, {"n": 3}),
        ({"n": 3}, {"field": "data.n", "minimum": 2}, {"n": 2}),
        ({}, {"field": "data.n", "minimum": 2}, {"n": 2}),
        ({"a": [1, "x"]}, {"field": "data.a", "union": [True, 1.0, "y", "y"]}, {"a": [1, "x", True, "y"]}),
        ({"a": [{"p": 1, "q": 2}]}, {"field": "data.a", "union": [{"q": 2, "p": 1}]}, {"a": [{"p": 1, "q": 2}]}),
        ({}, {"field": "data.a", "union": [1]}, {"a": [1]}),
        ({"a": [1, 2, 1, True]}, {"field": "data.a", "remove": [1.0, 3]}, {"a": [2, True]}),
        ({"b": 1}, {"field": "data.a.c", "remove": [1]}, {"b": 1}),
    ],
)
def test_an_operation_is_computed_from_what_is_there(data: Any, operation: Any, expected: Any) -> None:
    before = canonical(data)
    assert canonical(applied(data, operation)) == canonical(expected)
    assert canonical(data) == before


@pytest.mark.parametrize(
    ("data", "operation", "pointer"),
    [
        ({"n": "1"}, {"field": "data.n", "increment": 1}, "/n"),
        ({"n": True}, {"field": "data.n", "maximum": 1}, "/n"),
        ({"a": {"n": []}}, {"field": "data.a.n", "minimum": 1}, "/a/n"),
        ({"a": "x"}, {"field": "data.a", "union": []}, "/a"),
        ({"a": {}}, {"field": "data.a", "remove": [1]}, "/a"),
        ({"a": 5}, {"field": "data.a.b", "increment": 1}, "/a"),
        ({"n": MAX_INTEGER}, {"field": "data.n", "increment": 1}, "/n"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_pointer(data: Any, operation: Any, pointer: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        applied(data, operation)
    assert refused.value.reason == "INVALID_FIELD"
    assert refused.value.violations[0].pointer == pointer


@pytest.mark.parametrize(
    "operations",
    [
        [{"field": "name", "increment": 1}],
        [{"field": "data", "increment": 1}],
        [{"field": "data.n"}],
        [{"field": "data.n", "increment": "NaN"}],
        [{"field": "data.n", "maximum": "-Infinity"}],
        [{"field": "data.n", "minimum": 2.0**53}],
        [{"field": "data.n", "increment": 1}, {"field": "data.n", "maximum": 1}],
        [{"field": "data.n.m", "increment": 1}, {"field": "data.n", "union": [1]}],
        [{"field": "data" + ".a" * 33, "increment": 1}],
        [{"field": "data" + ".a" * 32, "union": [1]}],
        [{"field": "data.taken.b", "union": [1]}],
    ],
)
def test_operations_that_can_never_work_are_refused(operations: list[dict[str, Any]]) -> None:
    messages = [json_format.ParseDict(operation, entity_pb2.FieldOperation()) for operation in operations]
    with pytest.raises(InvalidArgument) as refused:
        parse_operations(messages, [("taken",)], "operations")
    assert refused.value.reason == "INVALID_FIELD"


def test_paths_overlap_when_one_leads_into_the_other() -> None:
    assert overlap(("a",), ("a", "b"))
    assert overlap((), ("a",))
    assert not overlap(("a", "c"), ("a", "b"))


@given(st.lists(VALUES, max_size=5), st.lists(VALUES, max_size=5))
def test_union_and_remove_are_sets_of_json_values(array: list[Any], elements: list[Any]) -> None:
    def forms(values: list[Any]) -> set[bytes]:
        return {canonical(value) for value in values}

    united = applied({"a": array}, {"field": "data.a", "union": elements})["a"]
    assert united[: len(array)] == array
    assert forms(united) == forms(array) | forms(elements)
    assert len(united) == len(array) + len(forms(elements) - forms(array))
    assert applied({"a": united}, {"field": "data.a", "union": elements})["a"] == united
    left = applied({"a": array}, {"field": "data.a", "remove": elements})["a"]
    assert forms(left) == forms(array) - forms(elements)
    assert [value for value in array if canonical(value) not in forms(elements)] == left
