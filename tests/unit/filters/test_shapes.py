"""Filters of one shape differ in nothing but values, and lose nothing in being taken apart."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.filters import parse_filter
from services.runtime.filters.ast import And, Compare, Has, Node
from services.runtime.filters.shapes import shape_of
from tests.unit.filters.strategies import filters
from tests.unit.filters.test_parser import FRAGMENTS, written

DUMMY = re.compile(r'""|0')


def put_back(shape: str, literals: dict[int, str]) -> str:
    for place, literal in sorted(literals.items(), reverse=True):
        dummy = DUMMY.match(shape, place)
        assert dummy is not None
        shape = shape[:place] + literal + shape[dummy.end() :]
    return shape


@given(
    st.text(max_size=40) | st.text(string.printable, max_size=40) | st.lists(st.sampled_from(FRAGMENTS)).map("".join)
)
def test_a_shape_with_its_values_put_back_is_the_filter(text: str) -> None:
    assert put_back(*shape_of(text)) == text


@given(filters)
def test_a_shape_is_a_filter_of_the_same_shape(node: Node) -> None:
    text = written(node)
    shape, literals = shape_of(text)
    again, dummies = shape_of(shape)
    assert again == shape
    assert dummies.keys() == literals.keys()


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("data.a = 5", "data.a = -17.25e3"),
        ("data.a='x y'", 'data.a="\\"= 5"'),
        ("data.a >= 5 AND (data.b != 'x')", "data.a >= 6 AND (data.b != 'it\\'s')"),
        ("data.t:'x' lower(data.b) = 'y'", "data.t:'y' lower(data.b) = 'z'"),
        ("timestamp('2020-01-01T00:00:00Z') > 5", "timestamp('') > 6"),
    ],
)
def test_filters_that_differ_in_values_have_one_shape(text: str, other: str) -> None:
    assert shape_of(text)[0] == shape_of(other)[0]


@pytest.mark.parametrize(
    "text",
    [
        "data.`a = 5`:*",
        "data.'a = 5':*",
        'data."x":*',
        "data.a:5",
        "data.a = 5s",
        "data.a < 2020-01-01T12:30:00Z",
        "data.a = true",
        "data.a = (5 OR 6)",
        "5 data.a",
    ],
)
def test_what_may_read_otherwise_with_another_value_stays(text: str) -> None:
    assert shape_of(text) == (text, {})


def test_a_value_stands_where_it_was_given_whatever_else_was_asked_before() -> None:
    for number in range(3):
        text = f"data.a = {number} AND data.'a = 7' < -{number}.5 OR data.t:\"t{number}\""
        either = parse_filter(text)
        assert isinstance(either, And)
        first, second = either.terms
        assert first == Compare(("a",), "=", float(number))
        assert second == parse_filter(f"data.`a = 7` < -{number}.5 OR data.t:t{number}")
        assert Has(("t",), f"t{number}") in getattr(second, "terms", ())
