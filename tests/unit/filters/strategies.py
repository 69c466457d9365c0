"""Entities and filters over few fields and few values, so that a random filter meets random data often."""

from __future__ import annotations

from hypothesis import strategies as st

from services.runtime.filters.ast import And, Compare, Has, Node, Not, Or, Path

PATHS: list[Path] = [("a",), ("b",), ("tags",), ("deep", "x"), ("deep", "0"), ("odd key",)]

# U+0000 and lone surrogates are left out: they are refused at the border and jsonb cannot hold them.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
awkward_texts = st.sampled_from(["", "a", "a\x01", "a\x01\x02", "ab", "Z", "ä", "\uffff", "\U00010000", "%s", "'", '"'])
strings = awkward_texts | texts

awkward_numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, 5.0, 5e-324, -5e-324, 1.7976931348623157e308, 1e16, 1e-7])
doubles = awkward_numbers | st.floats(allow_nan=False, allow_infinity=False)
numbers = doubles | st.integers(-3, 3)

scalars = st.none() | st.booleans() | numbers | strings
objects = st.dictionaries(st.sampled_from(["x", "0"]), scalars, max_size=2)
values = scalars | st.lists(scalars | st.lists(scalars, max_size=2) | objects, max_size=3) | objects
documents = st.dictionaries(st.sampled_from(["a", "b", "tags", "deep", "odd key", "c"]), values, max_size=6)

paths = st.sampled_from(PATHS)
ordered_literals = doubles.map(lambda number: number + 0.0) | strings
literals = ordered_literals | st.booleans()

comparisons: st.SearchStrategy[Node] = (
    st.builds(Compare, paths, st.sampled_from(["=", "!="]), literals | st.none())
    | st.builds(Compare, paths, st.sampled_from(["<", "<=", ">", ">="]), ordered_literals)
    | st.builds(Has, paths, literals)
)


def _combine(terms: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(terms, min_size=2, max_size=3).map(tuple)
    return st.builds(Not, terms) | st.builds(And, several) | st.builds(Or, several)


filters = st.recursive(comparisons, _combine, max_leaves=6)
