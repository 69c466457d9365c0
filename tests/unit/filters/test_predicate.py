"""What a comparison means."""

from __future__ import annotations

from typing import Any

import pytest

from services.runtime.filters import compile_predicate, parse_filter


@pytest.mark.parametrize("operator", ["=", "!=", "<", "<=", ">", ">="])
@pytest.mark.parametrize("data", [{}, {"a": None}, {"a": {}}, {"a": []}, {"a": "text"}])
def test_no_comparison_with_a_missing_or_null_field_is_true(operator: str, data: dict[str, Any]) -> None:
    assert not matches(f"data.a.b {operator} 1", data)
    if data.get("a") is None:
        assert not matches(f"data.a {operator} 1", data)


def test_not_turns_a_comparison_with_a_missing_field_true() -> None:
    assert matches("NOT data.a = 1", {})
    assert matches("NOT data.a != 1", {"a": None})


@pytest.mark.parametrize("value", ["5", True, [5], {"x": 5}])
def test_values_of_different_types_are_unequal_and_have_no_order(value: object) -> None:
    data = {"a": value}
    assert matches("data.a != 5", data)
    assert not any(matches(f"data.a {operator} 5", data) for operator in ("=", "<", "<=", ">", ">="))


def test_numbers_are_doubles() -> None:
    assert matches("data.a = 5", {"a": 5})
    assert matches("data.a = 5.0", {"a": 5})
    assert matches("data.a = 0", {"a": -0.0})
    assert matches("data.a = 0.1", {"a": 0.1})
    assert not matches("data.a = 1", {"a": True})
    assert not matches("data.a = true", {"a": 1})


def test_strings_are_ordered_by_their_bytes() -> None:
    assert matches("data.a < 'a'", {"a": "Z"})
    assert matches("data.a > 'z'", {"a": "ä"})
    assert matches("data.a > '\uffff'", {"a": "\U00010000"})


def test_unlike_null_is_any_value() -> None:
    assert matches("data.a != null", {"a": [None]})
    assert not matches("data.a != null", {"a": None})
    assert matches("NOT data.a != null", {})


def test_an_array_has_its_scalars() -> None:
    assert matches("data.a:'x'", {"a": ["y", "x"]})
    assert matches("data.a:5", {"a": [5.0]})
    assert not matches("data.a:1", {"a": [True]})
    assert not matches("data.a:'x'", {"a": [["x"]]})
    assert not matches("data.a:'x'", {"a": [{"x": 1}]})


def test_an_object_has_its_keys_and_a_scalar_has_itself() -> None:
    assert matches("data.a:'x'", {"a": {"x": 1}})
    assert not matches("data.a:'x'", {"a": {"x": None}})
    assert not matches("data.a:'x'", {"a": {"y": "x"}})
    assert matches("data.a:'x'", {"a": "x"})
    assert matches("data.a:5", {"a": 5})


def test_has_looks_through_arrays() -> None:
    assert matches("data.a.b:'x'", {"a": [{"b": "y"}, {"b": ["x"]}]})
    assert not matches("data.a.b:'x'", {"a": [[{"b": "x"}]]})
    assert not matches("data.a.b = 'x'", {"a": [{"b": "x"}]})


def test_a_path_does_not_lead_through_an_array() -> None:
    assert not matches("data.a.`0` = 1", {"a": [1]})
    assert matches("data.a.`0` = 1", {"a": {"0": 1}})


def test_and_or_not_combine() -> None:
    text = "data.a = 1 AND (data.b = 1 OR -data.c = 1)"
    assert matches(text, {"a": 1, "b": 1, "c": 1})
    assert matches(text, {"a": 1})
    assert not matches(text, {"a": 1, "c": 1})
    assert not matches(text, {"b": 1})


def matches(text: str, data: dict[str, Any]) -> bool:
    node = parse_filter(text)
    assert node is not None
    return compile_predicate(node)(data)
