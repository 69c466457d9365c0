"""The two back ends of the filter language, and the order of index keys, against a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.entity.schemas import field_types
from services.runtime.filters import compile_predicate, compile_sql, parse_filter
from services.runtime.filters.ast import Node
from tests.postgres import postgres
from tests.unit.filters.strategies import documents, filters
from tests.unit.filters.test_examples import EXAMPLES, SCHEMA

__all__ = ["postgres"]


@pytest.fixture(scope="module")
def connection(postgres: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection


@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(node=filters, rows=st.lists(documents, min_size=1, max_size=12))
def test_sql_and_python_select_the_same_rows(
    connection: psycopg.Connection, node: Node, rows: list[dict[str, Any]]
) -> None:
    predicate = compile_predicate(node)
    assert selected(connection, node, [json.dumps(row) for row in rows]) == [predicate(row) for row in rows]


@pytest.mark.parametrize(
    ("text", "stored", "expected"),
    [
        ("data.a = 5", '{"a": 5.0}', True),
        ("data.a = 0", '{"a": -0.0}', True),
        ("data.a > 1.7976931348623157e308", '{"a": 1e400}', True),
        ("data.a > 0", '{"a": 1e-400}', True),
        ("data.a.`0` = 1", '{"a": [1]}', False),
        ("data.a < 'a'", '{"a": "Z"}', True),
        ("data.a > '\uffff'", '{"a": "\U00010000"}', True),
        ("data.a = '%s'", '{"a": "%s"}', True),
        ("data.`'; drop table x; --` != null", """{"'; drop table x; --": 1}""", True),
    ],
)
def test_awkward_values_are_compared_and_never_fail(
    connection: psycopg.Connection, text: str, stored: str, expected: bool
) -> None:
    node = parse_filter(text)
    assert node is not None
    assert selected(connection, node, [stored]) == [expected]


@pytest.mark.parametrize(("text", "document", "found"), EXAMPLES)
def test_an_example_of_the_page_on_filters_holds(
    connection: psycopg.Connection, text: str, document: dict[str, Any], found: bool
) -> None:
    node = parse_filter(text, field_types(SCHEMA))
    assert node is not None
    assert selected(connection, node, [json.dumps(document)]) == [found]


def test_a_row_without_data_gives_a_truth_value(connection: psycopg.Connection) -> None:
    node = parse_filter("NOT (data.a = 1 OR data.a < 'x' OR data.a:1 OR data.a != null)")
    assert node is not None
    assert selected(connection, node, [None]) == [True]


def selected(connection: psycopg.Connection, node: Node, rows: list[str | None]) -> list[bool]:
    condition, parameters = compile_sql(node, "document")
    rows_of = " from unnest(%s::jsonb[]) with ordinality as t(document, position) order by position"
    query = f"select {condition}".encode() + rows_of.encode()
    return [matched for (matched,) in connection.execute(query, [*parameters, rows])]
