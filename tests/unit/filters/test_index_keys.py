"""Index keys sort as the contract orders values, and the limits of an index are kept."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.entity.index_keys import (
    IndexField,
    IndexSpec,
    encode,
    entry_keys,
    parse_index,
    parse_index_field,
    parse_order_by,
    prefix_range,
    successor,
    unique_keys,
)
from services.runtime.errors import InvalidArgument
from services.runtime.filters.ast import Path
from services.runtime.filters.folding import fold
from services.runtime.filters.paths import render_path
from tests.unit.filters.strategies import numbers, scalars, strings, values

A = IndexSpec((IndexField(("a",)),))
A_TAGS = IndexSpec((IndexField(("a",)), IndexField(("tags",), array=True)))
fields = st.builds(
    IndexField, st.sampled_from([("a",), ("b",), ("deep", "x")]), st.booleans(), st.just(False), st.booleans()
)
specs = st.lists(fields, min_size=1, max_size=3, unique_by=lambda field: field.path).map(
    lambda some: IndexSpec(tuple(some))
)
nul_texts = st.text(st.sampled_from("\0\1\2a"), max_size=4)
deep = st.fixed_dictionaries({}, optional={"x": scalars})
anything = values | nul_texts
documents = st.fixed_dictionaries({}, optional={"a": anything, "b": anything, "deep": deep | values})


@given(specs, documents, documents)
def test_keys_compare_as_the_fields_do(spec: IndexSpec, left: dict[str, Any], right: dict[str, Any]) -> None:
    (left_key,), (right_key,) = entry_keys(spec, left), entry_keys(spec, right)
    assert sign(left_key, right_key) == compare(spec.fields, left, right)


@given(st.tuples(nul_texts, nul_texts) | st.tuples(numbers | strings, numbers | strings))
def test_no_component_begins_another(pair: tuple[object, object]) -> None:
    left, right = pair
    assert encode(left) == encode(right) or not encode(right).startswith(encode(left))


def test_the_order_is_missing_null_false_true_numbers_strings() -> None:
    texts = ["", "\0", "A", "a", "a\0", "a\x01", "aa", "z", "ä", "\uffff", "\U00010000"]
    present = [None, False, True, -1e308, -1, 0, 0.5, 2, 1e308, *texts]
    in_order: list[dict[str, Any]] = [{}, *({"a": value} for value in present)]
    keys = [entry_keys(A, data)[0] for data in in_order]
    assert all(low < high for low, high in pairwise(keys))
    assert all(compare(A.fields, low, high) < 0 for low, high in pairwise(in_order))


def test_five_and_five_point_zero_and_both_zeros_are_one_key() -> None:
    assert encode(5) == encode(5.0)
    assert encode(-0.0) == encode(0)


@pytest.mark.parametrize("value", [{}, {"x": 1}, [], [1]])
def test_an_object_or_an_array_counts_as_missing(value: object) -> None:
    assert entry_keys(A, {"a": value}) == entry_keys(A, {})


@given(st.binary(max_size=4), st.binary(max_size=4))
def test_a_prefix_range_holds_exactly_what_begins_with_the_prefix(prefix: bytes, key: bytes) -> None:
    lower, upper = prefix_range(prefix)
    assert (lower <= key and (upper is None or key < upper)) == key.startswith(prefix)


def test_nothing_follows_a_prefix_of_the_highest_bytes() -> None:
    assert successor(b"") is None
    assert successor(b"\xff\xff") is None


def test_an_array_has_an_entry_per_distinct_scalar() -> None:
    keys = entry_keys(A_TAGS, {"a": 1, "tags": ["x", "y", "x", 1, 1.0, True, None, ["x"], {}]})
    assert keys == [encode(1) + encode(element) for element in ("x", "y", 1, True, None)]


@pytest.mark.parametrize("data", [{}, {"tags": []}, {"tags": {"x": None}}, {"tags": [[], {"x": 1}]}])
def test_an_entity_without_elements_is_in_the_index_as_missing(data: dict[str, Any]) -> None:
    assert entry_keys(A_TAGS, data) == entry_keys(A_TAGS, {})
    assert len(entry_keys(A_TAGS, data)) == 1


def test_what_stands_in_place_of_an_array_is_found_by_what_it_has() -> None:
    assert entry_keys(A_TAGS, {"tags": "x"}) == entry_keys(A_TAGS, {"tags": ["x"]})
    assert entry_keys(A_TAGS, {"tags": {"x": 1, "y": None}}) == entry_keys(A_TAGS, {"tags": ["x"]})


def test_an_array_on_the_way_gives_the_entries_of_its_elements() -> None:
    spec = parse_index(["data.ports.names"], field_types={("ports",): frozenset({"array"})})
    assert spec.fields[0].array
    assert entry_keys(spec, {"ports": [{"names": ["x"]}, {"names": "y"}, {}]}) == [encode("x"), encode("y")]


def test_an_indexed_array_has_at_most_a_hundred_entries() -> None:
    assert len(entry_keys(A_TAGS, {"tags": [*range(100), *range(100)]})) == 100
    with pytest.raises(InvalidArgument, match="an indexed array"):
        entry_keys(A_TAGS, {"tags": list(range(101))})


@pytest.mark.parametrize("text", ["x" * 1024, "é" * 512, "\x01" * 900])
def test_an_indexed_string_has_at_most_1024_bytes(text: str) -> None:
    entry_keys(A, {"a": text})
    entry_keys(A_TAGS, {"tags": [text]})
    for spec, data in ((A, {"a": text + "x" * 125}), (A_TAGS, {"tags": [text + "x" * 125]})):
        with pytest.raises(InvalidArgument, match="1024 bytes") as raised:
            entry_keys(spec, data)
        assert raised.value.reason == "INVALID_FIELD"
        assert raised.value.violations[0].field == render_path(spec.fields[-1].path)


def test_a_key_has_at_most_2000_bytes() -> None:
    spec = parse_index(["data.a", "data.b desc"])
    assert len(entry_keys(spec, {"a": "x" * 1000, "b": "y" * 996})[0]) == 2000
    with pytest.raises(InvalidArgument, match="2000 bytes"):
        entry_keys(spec, {"a": "x" * 1000, "b": "y" * 997})


def test_an_entity_whose_fields_are_all_missing_or_null_takes_no_part_in_uniqueness() -> None:
    spec = parse_index(["data.a", "data.b desc"], unique=True)
    assert unique_keys(spec, {}) == []
    assert unique_keys(spec, {"a": None}) == []
    assert unique_keys(spec, {"a": [], "b": None}) == []
    assert unique_keys(spec, {"b": False}) == entry_keys(spec, {"b": False})
    assert unique_keys(spec, {"a": ""}) == entry_keys(spec, {"a": ""})
    assert unique_keys(A_TAGS, {"tags": [None, "x"]}) == [encode_missing() + encode("x")]


def test_an_index_field_is_a_path_with_a_direction() -> None:
    assert parse_index_field("data.population desc") == IndexField(("population",), descending=True)
    assert parse_index_field(" data.a.`odd, desc` ") == IndexField(("a", "odd, desc"))
    assert str(parse_index_field("data.`odd key`  desc")) == "data.`odd key` desc"
    assert parse_index_field("lower( data.name ) desc") == IndexField(("name",), descending=True, folded=True)
    assert str(parse_index_field("lower(data.`odd key`)")) == "lower(data.`odd key`)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "data",
        "country",
        "data.a asc",
        "data.a desc desc",
        "data.a,data.b",
        "data.a DESC",
        "lower(data.a",
        "upper(data.a)",
    ],
)
def test_what_is_no_index_field_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_index_field(text)


def test_a_field_that_may_hold_an_array_is_an_array_field() -> None:
    types: dict[Path, frozenset[str]] = {("tags",): frozenset({"array", "null"}), ("a",): frozenset({"string"})}
    assert parse_index(["data.a", "data.tags"], field_types=types) == A_TAGS


@pytest.mark.parametrize(
    "fields", [[], ["data.a", "data.a desc"], ["data.t", "data.u"], [f"data.f{number}" for number in range(17)]]
)
def test_an_index_has_one_to_sixteen_fields_each_once_and_one_array(fields: list[str]) -> None:
    array = frozenset({"array"})
    with pytest.raises(InvalidArgument):
        parse_index(fields, field_types={("t",): array, ("u",): array})


def test_an_order_is_a_list_of_fields() -> None:
    assert parse_order_by("  ") == ()
    assert parse_order_by("data.population desc ,data.`a,b`") == (
        IndexField(("population",), descending=True),
        IndexField(("a,b",)),
    )


@pytest.mark.parametrize(
    "text", [",", "data.a,", "data.a,,data.b", "data.a, data.a desc", "data.`a", "id", "data.a" + " " * 4096]
)
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_order_by(text)
    assert raised.value.violations[0].field == "order_by"


def encode_missing() -> bytes:
    (key,) = entry_keys(A, {})
    return key


def compare(fields: tuple[IndexField, ...], left: dict[str, Any], right: dict[str, Any]) -> int:
    """Compare two entities by the contract's order, written a second time and on its own."""
    for field in fields:
        difference = sign(rank(left, field), rank(right, field))
        if difference:
            return -difference if field.descending else difference
    return 0


def rank(data: dict[str, Any], field: IndexField) -> tuple[Any, ...]:
    value: Any = data
    for key in field.path:
        if not isinstance(value, dict) or key not in value:
            return (0,)
        value = value[key]
    match value:
        case None:
            return (1,)
        case bool():
            return (2, value)
        case int() | float():
            return (3, value)
        case str():
            return (4, (fold(value) if field.folded else value).encode())
        case _:
            return (0,)


def sign(left: Any, right: Any) -> int:
    return int(left > right) - int(left < right)
