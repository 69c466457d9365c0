"""Counts and aggregates against a computation in plain Python over the same entities, and their bounds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strandline.entity.v1 import entity_service_pb2 as pb

from services.entity.examination import Examined, examined_statement
from services.entity.index_keys import encode
from services.entity.planner import Plan
from services.runtime.database import Statement
from services.runtime.filters import compile_predicate, parse_filter
from tests.integration.entity.conftest import Replica, Shore, error_info, pointers, reason, refusal

FIELDS = ("a", "b", "c")
INDEXES = [{"fields": ["data.a", "data.b desc"]}, {"fields": ["data.b"]}]
VALUES = [
    None,
    False,
    True,
    -1,
    0,
    0.1,
    0.2,
    2,
    2.0**53 - 1,
    1e-300,
    5e-324,
    "",
    "a",
    "Z",
    "ä",
    "\U00010000",
    [1],
    {"x": 1},
]
Data = dict[str, Any]


@pytest.fixture(scope="module")
async def harbour(replica: Replica) -> tuple[Shore, list[Data]]:
    """200 entities that live, with random data, and some that are deleted."""
    rng = random.Random(11)
    shore = replica.shore()
    await shore.declare(indexes=INDEXES)
    stored = [{key: rng.choice(VALUES) for key in FIELDS if rng.random() < 0.8} for _ in range(200)]
    await shore.batch(*(shore.creating(f"b{n}", data) for n, data in enumerate(stored)))
    assert len(await shore.list_ids(page_size=1000)) == len(stored)
    await shore.batch(*(shore.creating(f"gone{n}", {"a": "gone", "b": n, "c": n}) for n in range(50)))
    await shore.batch(*(shore.deleting(f"gone{n}") for n in range(50)))
    return shore, stored


async def aggregate(shore: Shore, *figures: str, filter: str = "", group_by: Iterable[str] = ()) -> list[Any]:
    """``[(key, values), ...]``; a figure is written ``sum data.a``."""
    request = pb.AggregateEntitiesRequest(parent=f"{shore.parent}/types/buoy", filter=filter, group_by=group_by)
    for figure in figures:
        function, _, name = figure.partition(" ")
        made = getattr(request.aggregations.add(), function)
        made.SetInParent()
        if name:
            made.field = name
    answer = await shore.replica.entities.AggregateEntities(request, metadata=shore.metadata())
    assert (answer.revision, answer.epoch) == (await shore.head(), shore.namespace.epoch)
    return [
        (json_format.MessageToDict(group).get("key", []), json_format.MessageToDict(group).get("values", []))
        for group in answer.groups
    ]


async def count(shore: Shore, **query: Any) -> pb.CountEntitiesResponse:
    request = pb.CountEntitiesRequest(parent=f"{shore.parent}/types/buoy", **query)
    answer: pb.CountEntitiesResponse = await shore.replica.entities.CountEntities(request, metadata=shore.metadata())
    return answer


def figure(text: str, rows: list[Data]) -> Any:
    """The same figure in plain Python."""
    function, _, name = text.partition(" ")
    if function == "count":
        return len(rows)
    found = [row.get(name.removeprefix("data.")) for row in rows]
    numbers = [Fraction(str(value)) for value in found if type(value) in (int, float)]
    if function == "sum":
        return float(sum(numbers, Fraction()))
    if function == "avg":
        return float(sum(numbers, Fraction()) / len(numbers)) if numbers else None
    scalars = sorted((value for value in found if isinstance(value, (bool, int, float, str))), key=encode)
    return (scalars[0] if function == "min" else scalars[-1]) if scalars else None


def scalar(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else None


def same(left: Any, right: Any) -> bool:
    return type(left) is type(right) and left == right if isinstance(left, bool) else bool(left == right)


FIGURES = ["count", *(f"{name} data.{field}" for name in ("sum", "avg", "min", "max") for field in FIELDS)]
A, B, A_AND_B, NONE = ("data.a",), ("data.b",), ("data.a", "data.b"), ()
FILTERS = [
    "",
    "data.a = 0",
    "data.a > 0",
    "data.a = ''",
    "data.b >= 'Z'",
    "data.a = 0 AND data.b < 2",
    "data.a = 0 AND data.c != 2",
    "data.c != null OR data.a = 2",
    "data.a > 5 AND data.a < 4",
]
# Those that an index serves together.
GROUPED = [
    ("", A),
    ("", B),
    ("", A_AND_B),
    ("data.a > 0", A_AND_B),
    ("data.a = 0", B),
    ("data.a = 0", ("data.b", "data.a")),
]
GROUPED += [("data.b >= 'Z'", B), ("data.a = 0 AND data.b < 2", B), ("data.c != null OR data.a = 2", A)]
QUERIES: list[tuple[str, tuple[str, ...]]] = [*((text, NONE) for text in FILTERS), *GROUPED]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    figures=st.lists(st.sampled_from(FIGURES), min_size=1, max_size=4),
    query=st.sampled_from(QUERIES),
)
async def test_figures_are_those_of_plain_python(
    harbour: tuple[Shore, list[Data]], figures: list[str], query: tuple[str, tuple[str, ...]]
) -> None:
    shore, stored = harbour
    text, grouped = query
    node = parse_filter(text)
    matches = compile_predicate(node) if node is not None else None
    rows = [row for row in stored if matches is None or matches(row)]
    groups: dict[tuple[bytes, ...], tuple[list[Any], list[Data]]] = {}
    for row in rows:
        key = [scalar(row.get(name.removeprefix("data."))) for name in grouped]
        groups.setdefault(tuple(map(encode, key)), (key, []))[1].append(row)
    if not grouped and not rows:
        groups[()] = ([], [])
    expected = [(key, [figure(one, found) for one in figures]) for _, (key, found) in sorted(groups.items())]
    answered = await aggregate(shore, *figures, filter=text, group_by=grouped)
    assert len(answered) == len(expected)
    for (found_key, found_values), (key, values) in zip(answered, expected, strict=True):
        assert all(map(same, found_key, key))
        assert all(map(same, found_values, values)), (found_values, values)


async def test_a_count_is_that_of_the_list(harbour: tuple[Shore, list[Data]]) -> None:
    shore, _ = harbour
    for text in FILTERS:
        for show_deleted in (False, True):
            answer = await count(shore, filter=text, show_deleted=show_deleted)
            listed = await shore.list_ids(filter=text, show_deleted=show_deleted, page_size=1000)
            assert (answer.count, answer.at_least) == (len(listed), False), text
            assert (answer.revision, answer.epoch) == (await shore.head(), shore.namespace.epoch)


async def test_a_count_is_exact_up_to_its_budget_and_then_a_least(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.planned_reads.MAX_EXAMINED", 100)
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    await shore.batch(*(shore.creating(f"b{n:03}", {"n": n, "even": n % 2 == 0}) for n in range(150)))
    answers = {
        "data.n < 100": (100, False),
        "data.n < 101": (101, True),
        "data.n < 100 AND data.even = true": (50, False),
        "data.n >= 0 AND NOT data.even != true": (51, True),
        "": (101, True),
        "NOT data.even = true": (50, True),
    }
    for text, expected in answers.items():
        if " AND data.even" in text:
            text = "data.n < 100 AND NOT data.even != true"
        answer = await count(shore, filter=text)
        assert (answer.count, answer.at_least) == expected, text


async def test_beyond_its_budget_only_the_ends_of_ranges_are_read(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.planned_reads.MAX_EXAMINED", 100)
    await shore.declare(indexes=[{"fields": ["data.country", "data.n desc"]}, {"fields": ["data.n"]}])
    rows = [{"n": n, "country": "CH" if n % 2 else "AT", "m": n} for n in range(300)]
    await shore.batch(*(shore.creating(f"b{n:03}", row) for n, row in enumerate(rows)))
    await shore.batch(*(shore.creating(f"none{n}", {"country": "CH"}) for n in range(120)))
    assert await aggregate(shore, "min data.n", "max data.n") == [([], [0, 299])]
    assert await aggregate(shore, "max data.n", "min data.n", filter="data.country = CH") == [([], [299, 1])]
    assert await aggregate(shore, "max data.n", filter="data.country = CH AND data.n < 50.5") == [([], [49])]
    assert await aggregate(shore, "min data.n", "max data.n", filter="data.n > 7 AND data.n <= 250") == [([], [8, 250])]
    assert await aggregate(shore, "min data.n", filter="data.country = DE") == [([], [None])]
    assert await aggregate(shore, "sum data.n", "avg data.n", filter="data.n < 100") == [([], [4950, 49.5])]
    for figures, query in (
        (["sum data.n"], {}),
        (["count"], {}),
        (["max data.m"], {}),
        (["max data.n", "count"], {"filter": "data.country = CH"}),
        (["max data.n"], {"filter": "NOT data.m = 5"}),
        (["count"], {"group_by": ["data.country"]}),
    ):
        failure = await refusal(aggregate(shore, *figures, **query))
        assert error_info(failure).reason == "AGGREGATE_TOO_LARGE"
        assert error_info(failure).metadata["examined"] == "100"


async def test_there_are_at_most_a_thousand_groups(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    for start in range(0, 1001, 250):
        await shore.batch(*(shore.creating(f"b{n}", {"n": n}) for n in range(start, min(start + 250, 1001))))
    assert await reason(aggregate(shore, "count", group_by=["data.n"])) == "AGGREGATE_TOO_LARGE"
    assert len(await aggregate(shore, "count", filter="data.n < 1000", group_by=["data.n"])) == 1000


async def test_long_texts_neither_fill_the_memory_nor_the_answer(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    for start in range(0, 600, 300):
        texts = [f"{n:03}" + "ä" * 1030 for n in range(start, start + 300)]
        await shore.batch(*(shore.creating(text[:3], {"n": text[:3], "t": text}) for text in texts))
    assert await aggregate(shore, "max data.t") == [([], ["599" + "ä" * 1021])]
    several = ["min data.t", "max data.t", "min data.t"]
    failure = await refusal(aggregate(shore, *several, group_by=["data.n"]))
    assert (error_info(failure).reason, error_info(failure).metadata["limit"]) == ("AGGREGATE_TOO_LARGE", "3145728")


async def test_an_array_has_no_least_element(shore: Shore) -> None:
    schema = {"type": "object", "properties": {"tags": {"type": ["array", "string"], "items": {"type": "string"}}}}
    await shore.declare(schema=schema, indexes=[{"fields": ["data.tags"]}])
    await shore.batch(shore.creating("b1", {"tags": ["a", "c"]}), shore.creating("b2", {"tags": "c"}))
    assert await aggregate(shore, "min data.tags") == [([], ["c"])]
    assert await aggregate(shore, "min data.tags", filter="data.tags:c") == [([], ["c"])]
    assert await aggregate(shore, "min data.tags", filter="data.tags:a") == [([], [None])]


@pytest.mark.parametrize(
    ("figures", "query", "expected"),
    [
        ([], {}, "INVALID_FIELD"),
        (["sum"], {}, "INVALID_FIELD"),
        (["sum n"], {}, "INVALID_FIELD"),
        (["sum data.n desc"], {}, "INVALID_FIELD"),
        (["min lower(data.n)"], {}, "INVALID_FIELD"),
        (["count"], {"filter": "n = 5"}, "INVALID_FIELD"),
        (["count"], {"group_by": ["data.a", "data.a"]}, "INVALID_FIELD"),
        (["count"], {"group_by": ["data.a desc"]}, "INVALID_FIELD"),
        (["count"], {"group_by": ["data.tags"]}, "INVALID_FIELD"),
        (["count"], {"group_by": ["data.c"]}, "INDEX_REQUIRED"),
        (["count"], {"filter": "data.c = 5"}, "INDEX_REQUIRED"),
    ],
)
async def test_what_cannot_be_computed_is_refused(
    shore: Shore, figures: list[str], query: dict[str, Any], expected: str
) -> None:
    tags = {"type": "array", "items": {"type": "string"}}
    await shore.declare(
        schema={"type": "object", "properties": {"tags": tags}, "additionalProperties": True},
        indexes=[{"fields": ["data.a"]}, {"fields": ["data.tags"]}],
    )
    assert await reason(aggregate(shore, *figures, **query)) == expected


async def test_a_refused_group_by_is_called_by_its_name(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.a"]}])
    failure = await refusal(aggregate(shore, "count", filter="data.tags:'x'", group_by=["data.tags"]))
    assert pointers(failure) == ["group_by"]
    assert "order_by" not in (failure.details() or "")


async def test_counting_a_type_that_is_not_there_or_a_future_revision_is_refused(shore: Shore) -> None:
    await shore.declare("other")
    assert await reason(count(shore)) == "NOT_FOUND"
    await shore.declare()
    assert await reason(count(shore, min_revision=99)) == "FUTURE_REVISION"
    assert await reason(count(shore, filter="data.n = 5")) == "INDEX_REQUIRED"


async def test_an_examination_walks_one_range(shore: Shore, replica: Replica) -> None:
    """Seen in the plan: no more rows are read than may be examined, each by its key."""
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    for start in range(0, 2000, 500):
        await shore.batch(*(shore.creating(f"b{n:04}", {"n": n}) for n in range(start, start + 500)))
    query = "SELECT indexes->0->>'id' FROM types WHERE namespace = %s"
    index_id = int((await replica.deployment.rows(query, shore.namespace.id))[0][0])
    residual = parse_filter("data.n != 7")
    for plan in (Plan(residual=residual), Plan(index_id=index_id), Plan(index_id=index_id, residual=residual)):
        for show_deleted in (False, True):
            statement = examined_statement(Examined(shore.namespace.id, "buoy", plan, 101, show_deleted=show_deleted))
            (rows,) = await replica.service.database.read(
                shore.namespace.id, Statement("EXPLAIN (ANALYZE, TIMING OFF) " + statement.sql, statement.params)
            )
            text = "\n".join(line for (line,) in rows)
            assert "Seq Scan" not in text, text
            assert "Sort" not in text, text
            assert "rows=2000" not in text.replace(".00", ""), text
