"""The List rule: what an index serves, what is refused, and that a walk gives what filtering and sorting would."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, product
from math import nextafter
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from services.entity.index_keys import IndexField, IndexSpec, entry_keys, parse_index, parse_order_by
from services.entity.planner import Plan, plan_end, plan_list
from services.runtime.errors import FailedPrecondition, InvalidArgument
from services.runtime.filters import compile_predicate, parse_filter
from services.runtime.filters.ast import (
    And,
    Compare,
    Duration,
    Has,
    Instant,
    Like,
    Node,
    Not,
    Operator,
    Or,
    Path,
    Present,
    Size,
)
from tests.unit.filters.test_index_keys import compare

TYPES: dict[Path, frozenset[str]] = {("tags",): frozenset({"array"})}
COUNTRY, POPULATION, COMPOSITE, TAGS = 1, 2, 3, 4
INDEXES = [
    (COUNTRY, parse_index(["data.country"])),
    (POPULATION, parse_index(["data.population desc"])),
    (COMPOSITE, parse_index(["data.country", "data.population desc", "data.name"])),
    (TAGS, parse_index(["data.country", "data.tags", "data.name"], field_types=TYPES)),
]


def test_without_filter_and_order_the_ids_are_walked() -> None:
    assert plan("") == Plan()


@pytest.mark.parametrize(
    "text",
    [
        "data.country != 'NO'",
        "NOT data.country = 'NO'",
        "data.country = 'NO' OR data.x = 1",
        "data.country = '*O'",
        "data.country:*",
        "data.country > 20s",
        "size(data.tags) > 1",
    ],
)
def test_a_filter_without_an_indexable_term_walks_the_ids(text: str) -> None:
    assert plan(text) == Plan(residual=parse_filter(text))


def test_the_index_with_the_longest_equality_prefix_wins_then_a_range() -> None:
    assert plan("data.country = 'NO'").index_id == COUNTRY
    assert plan("data.country = 'NO' data.population > 5").index_id == COMPOSITE
    assert plan("data.population > 5").index_id == POPULATION
    assert plan("data.country = 'NO' data.tags:'x'").index_id == TAGS


def test_served_terms_leave_the_residual() -> None:
    text = "data.country = 'NO' data.population > 5 data.population <= 9 data.name != 'x'"
    assert plan(text).residual == parse_filter("data.name != 'x'")
    assert plan("data.country = 'NO'").residual is None
    assert plan("data.tags:'x' data.country = 'NO' data.tags:'y'").residual == parse_filter("data.tags:'y'")
    assert plan("data.tags:true data.country = 'NO' data.tags:1").residual == parse_filter("data.tags:1")


def test_a_wildcard_is_served_by_the_range_of_its_beginning() -> None:
    walk = plan("data.country = 'N*'")
    assert (walk.index_id, walk.residual) == (COUNTRY, None)
    walk = plan("data.country = 'N*O' data.country > 'NA'")
    assert (walk.index_id, walk.residual) == (COUNTRY, parse_filter("data.country = 'N*O'"))
    rows = [{"country": name} for name in ("MO", "N", "NO", "NoO", "NZ", "O")]
    assert [rows[place]["country"] for place in walked(walk, INDEXES, rows)] == ["NO", "NoO"]


def test_a_moment_is_served_by_the_texts_of_the_days_around_it() -> None:
    walk = plan("data.country >= 2026-01-31T12:00:00Z data.country < 2026-02-01T00:00:00Z")
    assert walk.index_id == COUNTRY
    assert (walk.lower, walk.upper) == (b"\x502026-01-30", b"\x502026-02-03")
    assert plan("data.country = 9999-12-31T23:59:59Z").upper == b"\x51"


def test_an_array_has_no_order() -> None:
    with pytest.raises(InvalidArgument, match=r"data\.tags is an array, which has no order"):
        plan_list(None, "data.tags", INDEXES, TYPES)


@pytest.mark.parametrize(
    ("text", "field", "index_id"),
    [
        ("", IndexField(("country",)), COUNTRY),
        ("", IndexField(("population",), descending=True), POPULATION),
        ("data.country = 'NO'", IndexField(("population",)), COMPOSITE),
        ("data.country = 'NO' data.population > 5", IndexField(("population",)), COMPOSITE),
        ("data.country > 'NO'", IndexField(("country",)), COUNTRY),
        ("data.country > 'NO'", IndexField(("population",)), None),
        ("data.population != 5", IndexField(("population",)), None),
        ("", IndexField(("name",)), None),
    ],
)
def test_an_end_is_read_where_one_index_serves_everything(text: str, field: IndexField, index_id: int | None) -> None:
    walk = plan_end(parse_filter(text), field, INDEXES)
    assert (walk.index_id if walk is not None else None) == index_id


@pytest.mark.parametrize(
    ("order_by", "index_id", "reverse"),
    [
        ("data.country", COUNTRY, False),
        ("data.country desc", COUNTRY, True),
        ("data.population desc", POPULATION, False),
        ("data.population", POPULATION, True),
        ("data.country, data.population desc, data.name", COMPOSITE, False),
        ("data.country desc, data.population, data.name desc", COMPOSITE, True),
    ],
)
def test_an_order_is_read_forwards_or_backwards(order_by: str, index_id: int, reverse: bool) -> None:
    assert plan("", order_by) == Plan(index_id=index_id, reverse=reverse)


def test_a_field_fixed_by_the_filter_is_skipped_in_the_order() -> None:
    walk = plan("data.country = 'NO'", "data.population desc, data.country, data.name")
    assert (walk.index_id, walk.reverse) == (COMPOSITE, False)
    walk = plan("data.country = 'NO' data.population = 5", "data.name desc")
    assert (walk.index_id, walk.reverse) == (COMPOSITE, True)


@pytest.mark.parametrize(
    ("text", "order_by", "suggested"),
    [
        ("data.name = 'x'", "", ["data.name"]),
        ("data.name = 'x' data.area > 5 data.area < 9", "", ["data.name", "data.area"]),
        ("data.name = 'x'", "data.area desc", ["data.name", "data.area desc"]),
        ("data.area > 5", "data.area desc, data.name", ["data.area desc", "data.name"]),
        ("data.tags:'x'", "", ["data.tags"]),
        ("data.name = 'x' data.tags:'y'", "data.area", ["data.name", "data.tags", "data.area"]),
        ("", "data.country, data.name", ["data.country", "data.name"]),
        ("data.country = 'NO' OR data.name = 'x'", "data.name", ["data.name"]),
        ("data.`odd key` = 1", "", ["data.`odd key`"]),
        ("data.name = 'x*'", "", ["data.name"]),
        ("lower(data.name) = 'x'", "", ["lower(data.name)"]),
        ("lower(data.name) = 'x*'", "lower(data.name) desc", ["lower(data.name) desc"]),
        ("lower(data.name) = 'x'", "data.name", ["lower(data.name)", "data.name"]),
        ("data.at > 2026-01-31T12:00:00Z", "", ["data.at"]),
    ],
)
def test_a_list_that_no_index_serves_is_refused_with_the_index_to_declare(
    text: str, order_by: str, suggested: list[str]
) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        plan(text, order_by)
    assert raised.value.reason == "INDEX_REQUIRED"
    assert json.loads(raised.value.metadata["index"]) == {"fields": suggested, "unique": False}
    spec = parse_index(suggested, field_types=TYPES)
    assert plan_list(parse_filter(text), order_by, [(9, spec)]).index_id == 9


def test_a_range_that_no_index_could_serve_in_the_order_is_told_so() -> None:
    with pytest.raises(FailedPrecondition, match="let the order begin with") as raised:
        plan("data.population > 5", "data.name")
    assert json.loads(raised.value.metadata["index"])["fields"] == ["data.population", "data.name"]


def test_an_index_that_serves_only_the_order_is_not_enough() -> None:
    with pytest.raises(FailedPrecondition):
        plan("data.name = 'x'", "data.country")


def test_an_array_index_is_used_only_by_has() -> None:
    tags = [(TAGS, parse_index(["data.tags"], field_types=TYPES))]
    assert plan_list(parse_filter("data.tags:'x'"), "", tags).index_id == TAGS
    for text, order_by in (("data.tags = 'x'", ""), ("data.tags > 'x'", ""), ("", "data.tags")):
        with pytest.raises(FailedPrecondition):
            plan_list(parse_filter(text), order_by, tags)
    with pytest.raises(InvalidArgument):
        plan_list(parse_filter("data.tags:'x'"), "data.tags", tags)


@pytest.mark.parametrize(
    "text",
    [
        "data.country = 'NO' data.country = 'SE'",
        "data.country = 'NO' data.country > 'P'",
        "data.population > 5 data.population < 5",
        "data.population > 5 data.population < 'x'",
    ],
)
def test_a_contradiction_is_an_empty_plan(text: str) -> None:
    assert plan(text).empty


def test_an_equality_next_to_a_range_that_ends_at_the_neighbouring_double_is_found() -> None:
    below = nextafter(0.1, 0)
    walk = plan(f"data.population > {below!r} data.population = 0.1")
    assert walked(walk, INDEXES, [{"population": 0.1}, {"population": below}]) == [0]


def test_an_equality_among_ranges_still_binds_its_field() -> None:
    assert plan("data.country > 'A' data.country = 'NO' data.population > 5").index_id == COMPOSITE
    assert plan("data.country = 'NO' data.country > 'A' data.population > 5").index_id == COMPOSITE


def test_a_fixed_field_in_the_middle_of_an_index_does_not_break_its_order() -> None:
    spec = parse_index(["data.a", "data.b", "data.c desc"])
    walk = plan_list(parse_filter("data.a > 1 data.b = 2"), "data.a, data.c desc", [(9, spec)])
    assert (walk.index_id, walk.residual) == (9, parse_filter("data.b = 2"))


def test_an_index_that_mixes_directions_gives_only_its_own_order_and_the_opposite() -> None:
    spec = parse_index(["data.a", "data.b desc"])
    assert not plan_list(None, "data.a, data.b desc", [(9, spec)]).reverse
    assert plan_list(None, "data.a desc, data.b", [(9, spec)]).reverse
    for order_by in ("data.a, data.b", "data.a desc, data.b desc", "data.b desc"):
        with pytest.raises(FailedPrecondition):
            plan_list(None, order_by, [(9, spec)])


ORDERS: list[Operator] = ["<", "<=", ">", ">="]
MOMENTS = ["1970-01-01T00:00:00Z", "1970-01-02T00:00:00.5+23:59", "1969-12-31T12:00:00-12:00", "1970-01-02"]
POOL = [None, False, True, -1, 0, 0.0, 1.5, 2, "", "a", "ab", "A", "aB", "ä", "Ä", *MOMENTS]
pool = st.sampled_from(POOL)
literals = st.sampled_from([False, True, -1.0, 0.0, 1.5, 2.0, "", "a", "ab", "A"])
orderable = st.sampled_from([-1.0, 0.0, 1.5, 2.0, "", "a", "ab", "A"])
folded_texts = st.sampled_from(["", "a", "ab", "ä"])
instants = st.sampled_from([0, 10**9, -(10**9), 86_400 * 10**9, 90_000 * 10**9]).map(Instant)
parts = st.lists(st.sampled_from(["", "a", "b", "ä"]), min_size=2, max_size=3).map(tuple)
scalar_paths = st.sampled_from([("a",), ("b",), ("c",)])
elements = st.lists(pool | st.lists(pool, max_size=1), max_size=4)
documents = st.fixed_dictionaries({}, optional=dict.fromkeys("abc", pool | pool | elements) | {"tags": elements | pool})
terms: st.SearchStrategy[Node] = (
    st.builds(Compare, scalar_paths, st.just("="), literals)
    | st.builds(Compare, scalar_paths, st.sampled_from(ORDERS), orderable)
    | st.builds(Compare, scalar_paths, st.sampled_from([*ORDERS, "="]), folded_texts, st.just(True))
    | st.builds(Compare, scalar_paths, st.sampled_from([*ORDERS, "="]), instants)
    | st.builds(Like, scalar_paths, parts, st.booleans())
    | st.builds(Has, st.just(("tags",)), literals)
    | st.builds(Compare, scalar_paths, st.just("!="), literals)
)
residuals = st.builds(Not, terms) | st.builds(Or, st.tuples(terms, terms))
conjunctions = st.lists(terms | terms | residuals, min_size=2, max_size=4).map(lambda some: And(tuple(some)))
filters = st.none() | terms | conjunctions
names = st.permutations(["a", "b", "c", "tags"]).flatmap(lambda all_: st.integers(1, 3).map(lambda some: all_[:some]))
specs = st.builds(
    lambda names, directions, folded: IndexSpec(
        tuple(
            IndexField((name,), directions[name], array=name == "tags", folded=folded[name] and name != "tags")
            for name in names
        )
    ),
    names,
    st.fixed_dictionaries(dict.fromkeys(["a", "b", "c", "tags"], st.booleans())),
    st.fixed_dictionaries(dict.fromkeys(["a", "b", "c", "tags"], st.booleans())),
)
orders = st.lists(st.sampled_from(["a", "b", "c"]), max_size=2, unique=True).flatmap(
    lambda names: st.tuples(
        *(st.sampled_from([f"data.{name}", f"data.{name} desc", f"lower(data.{name})"]) for name in names)
    ).map(", ".join)
)


@settings(max_examples=600, deadline=None)
@given(filters, orders, st.lists(specs, max_size=6), st.lists(documents, max_size=20), st.booleans())
def test_a_walk_gives_what_filtering_and_sorting_every_entity_would(
    node: Node | None, order_by: str, specs: list[IndexSpec], rows: list[dict[str, Any]], mirrored: bool
) -> None:
    indexes = list(enumerate(specs))
    try:
        walk = plan_list(node, order_by, indexes)
    except FailedPrecondition as refused:
        # Follow the advice; an index with every direction turned round must do as well.
        suggested = json.loads(refused.metadata["index"])["fields"]
        if "let the order begin with" in refused.message:
            order_by = ", ".join(suggested)
        spec = parse_index(suggested, field_types=TYPES)
        if mirrored:
            spec = IndexSpec(tuple(replace(field, descending=not field.descending) for field in spec.fields))
        indexes = [(9, spec)]
        walk = plan_list(node, order_by, indexes)
        assert walk.index_id == 9
        event("index suggested")
    found = walked(walk, indexes, rows)
    event("walked ids" if walk.index_id is None else "empty" if walk.empty else f"walked {walk.lower is not None}")
    predicate = compile_predicate(node) if node is not None else None
    assert sorted(found) == [position for position, row in enumerate(rows) if predicate is None or predicate(row)]
    order = parse_order_by(order_by)
    assert all(compare(order, rows[left], rows[right]) <= 0 for left, right in pairwise(found))


COMPARISONS = [Compare(("a",), "=", value) for value in (False, True, -1.0, 0.0, 1.5, "", "a", "ab")]
COMPARISONS += [Compare(("a",), name, value) for name in ORDERS for value in (-1.0, 0.0, 1.5, "", "a", "ab")]


@pytest.mark.parametrize("index", ["data.a", "data.a desc"])
def test_every_pair_of_comparisons_with_a_field_is_served_exactly(index: str) -> None:
    indexes = [(9, parse_index([index]))]
    rows: list[dict[str, Any]] = [{}, {"a": []}, *({"a": value} for value in POOL)]
    for left, right in product(COMPARISONS, repeat=2):
        both = And((left, right))
        walk = plan_list(both, "", indexes)
        predicate = compile_predicate(both)
        assert walk.residual is None
        assert sorted(walked(walk, indexes, rows)) == [at for at, row in enumerate(rows) if predicate(row)], both


INEXACT: list[Node] = [Compare(("a",), "!=", value) for value in (None, 0.0, "a")]
INEXACT += [Compare(("a",), name, value) for name in ("=", "!=", ">") for value in (Instant(0), Duration(0))]
INEXACT += [Like(("a",), parts) for parts in (("", ""), ("a", ""), ("", "b"), ("a", "b"))]
INEXACT += [Compare(("a",), "=", "a", folded=True), Present(("a",)), Size(("a",), ">=", 0.0), Has(("a",), "a")]


@pytest.mark.parametrize("index", ["data.a", "data.a desc"])
def test_what_a_range_does_not_serve_exactly_is_tested_on_its_rows(index: str) -> None:
    indexes = [(9, parse_index([index]))]
    rows: list[dict[str, Any]] = [{}, {"a": []}, *({"a": value} for value in POOL)]
    for left, right in product(COMPARISONS, INEXACT):
        both = And((left, right))
        walk = plan_list(both, "", indexes)
        predicate = compile_predicate(both)
        assert sorted(walked(walk, indexes, rows)) == [at for at, row in enumerate(rows) if predicate(row)], both


def plan(text: str, order_by: str = "") -> Plan:
    return plan_list(parse_filter(text), order_by, INDEXES)


def walked(walk: Plan, indexes: list[tuple[int, IndexSpec]], rows: list[dict[str, Any]]) -> list[int]:
    """Return the positions of the rows that a list following *walk* gives, each as often as it is met."""
    if walk.empty:
        return []
    entries = [(b"", position) for position in range(len(rows))]
    if walk.index_id is not None:
        spec = dict(indexes)[walk.index_id]
        entries = sorted((key, position) for position, row in enumerate(rows) for key in entry_keys(spec, row))
    residual = compile_predicate(walk.residual) if walk.residual is not None else lambda data: True
    found = [
        position
        for key, position in entries
        if (walk.lower is None or walk.lower <= key) and (walk.upper is None or key < walk.upper)
        if residual(rows[position])
    ]
    return found[::-1] if walk.reverse else found
