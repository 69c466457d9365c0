"""The index finds every selection that a change concerns, and not much else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.filters import compile_predicate
from services.runtime.filters.ast import And, Compare, Node, Or
from services.stream.messages import LogUnit
from services.stream.selection import Selection, selection_of
from services.stream.selection_index import MAX_KEYS, SelectionIndex, demands
from services.stream.views import UnitView
from tests.unit.filters.strategies import documents, filters, paths

Change = feed_pb2.Change
Data = dict[str, Any]

TYPES = ["buoy", "ship"]
IDS = ["a", "b", "c"]
# Few values, so that equalities are met; 1, 1.0 and True are one to Python's dictionaries.
VALUES: list[Any] = [0.0, 1.0, True, False, "", "a", "1"]
equalities: st.SearchStrategy[Node] = st.builds(Compare, paths, st.just("="), st.sampled_from(VALUES))
alternatives = st.lists(equalities, min_size=2, max_size=3).map(lambda terms: Or(tuple(terms)))
demanding = st.lists(equalities | alternatives | filters, min_size=2, max_size=3).map(lambda terms: And(tuple(terms)))
keys = st.sampled_from([f"{type_id}/{entity_id}" for type_id in TYPES for entity_id in IDS])
plain_documents = st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from(VALUES), max_size=3) | documents


def selection(types: list[str], ids: list[str], node: Node | None, previous: bool = True) -> Selection:
    return Selection(
        frozenset(types or (each.split("/")[0] for each in ids)),
        repr(node),
        None if node is None else compile_predicate(node),
        frozenset(ids),
        previous=previous,
        node=node,
    )


nodes = st.none() | equalities | alternatives | demanding | filters
selections = st.builds(
    selection,
    st.lists(st.sampled_from(TYPES), max_size=1),
    st.just([]),
    nodes,
    st.booleans(),
) | st.builds(selection, st.just([]), st.lists(keys, max_size=3), nodes)


def entity(key: str, data: Data | None) -> entity_pb2.Entity:
    type_id, entity_id = key.split("/")
    made = entity_pb2.Entity(name=f"namespaces/tides/types/{type_id}/entities/{entity_id}", type=type_id)
    if data is not None:
        made.data.update(data)
    return made


def change(kind: Any, key: str, now: Data | None, before: Data | None) -> feed_pb2.Change:
    if kind == Change.SCHEMA_CHANGED:
        return Change(kind=kind, type=entity_pb2.EntityType(name=f"namespaces/tides/types/{key.split('/')[0]}"))
    previous = None if before is None else entity(key, before)
    return Change(kind=kind, entity=entity(key, now), previous=previous)


kinds = st.sampled_from([number for number in Change.Kind.values() if number not in (0, Change.ENTERED, Change.LEFT)])
changes = st.builds(change, kinds, keys, st.none() | plain_documents, st.none() | plain_documents)
units = st.lists(changes, min_size=1, max_size=4).map(lambda made: feed_pb2.Unit(revision=1, changes=made))


@settings(max_examples=300, deadline=None)
@given(st.lists(selections, max_size=6), st.lists(units, max_size=4), st.sets(st.integers(0, 5)))
def test_what_the_index_finds_is_what_every_selection_by_itself_would_take(
    chosen: list[Selection], log: list[feed_pb2.Unit], gone: set[int]
) -> None:
    index: SelectionIndex[int] = SelectionIndex()
    for number, each in enumerate(chosen):
        index.add(number, each)
    for number in gone:
        index.discard(number)
    for unit in log:
        whole = LogUnit(unit.SerializeToString())
        view = UnitView(whole.body)
        concerned = index.concerned(view)
        assert gone.isdisjoint(concerned)
        for number, each in enumerate(chosen):
            if number not in gone:
                alone = each.of_unit(whole, UnitView(whole.body))
                found = each.of_unit(whole, view, concerned[number]) if number in concerned else None
                assert (alone and alone.body) == (found and found.body)
                assert (alone is whole) == (found is whole)


@settings(deadline=None)
@given(st.lists(selections, max_size=6))
def test_an_index_that_everybody_left_is_empty(chosen: list[Selection]) -> None:
    index: SelectionIndex[int] = SelectionIndex()
    empty = dict(vars(index))
    for number, each in enumerate(chosen):
        index.add(number, each)
    for number in range(len(chosen)):
        index.discard(number)
    assert vars(index) == empty


def test_of_a_thousand_equalities_a_change_finds_the_two_that_it_leaves_and_enters() -> None:
    index: SelectionIndex[int] = SelectionIndex()
    for n in range(1000):
        index.add(n, selection_of(["buoy"], f"data.deep.n = {n} AND data.height > 3 AND -data.gone:*"))
    unit = feed_pb2.Unit(changes=[change(Change.UPDATED, "buoy/a", {"deep": {"n": 7}}, {"deep": {"n": 8.0}})])
    assert sorted(index.concerned(UnitView(unit.SerializeToString()))) == [7, 8]
    unit = feed_pb2.Unit(changes=[change(Change.UPDATED, "buoy/a", {"deep": {"n": "7"}}, {"n": 7})])
    assert not index.concerned(UnitView(unit.SerializeToString()))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ({"filter": 'data.a = "x"'}, {("=", ("a",), False, "x")}),
        ({"filter": "data.a = true"}, {("=", ("a",), True, True)}),
        ({"filter": "data.a = 1 OR data.b = 2"}, {("=", ("a",), False, 1.0), ("=", ("b",), False, 2.0)}),
        ({"filter": "(data.a = 1 OR data.a = 2) AND data.b = 3 AND data.c > 1"}, {("=", ("b",), False, 3.0)}),
        ({"filter": "data.a = 1 OR data.b > 2"}, set()),
        ({"filter": "NOT data.a = 1"}, set()),
        ({"filter": "data.a != 1"}, set()),
        ({"filter": 'data.a = "x*"'}, set()),
        ({"filter": "data.a > 1", "types": ["ship", "buoy"]}, {("type", "ship"), ("type", "buoy")}),
        ({"filter": "data.a = 1", "types": ["ship"]}, {("=", ("a",), False, 1.0)}),
        ({"filter": "data.a = 1", "ids": ["ship/s"]}, {("id", "ship/s")}),
        ({"ids": [f"ship/{n}" for n in range(MAX_KEYS + 1)]}, {("type", "ship")}),
        ({"read_mask": ["data.a"]}, set()),
    ],
)
def test_the_keys_of_a_selection_are_what_an_entity_must_have_to_match(
    request_: dict[str, Any], expected: set[Any]
) -> None:
    assert demands(selection_of(**{"types": [], "filter": "", **request_})) == expected
