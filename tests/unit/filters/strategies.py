"""Entities and filters over few fields and few values, so that a random filter meets random data often."""

from __future__ import annotations

from hypothesis import strategies as st

from services.runtime.filters.ast import (
    And,
    Compare,
    Duration,
    Has,
    Instant,
    Like,
    Node,
    Not,
    Or,
    Path,
    Present,
    Size,
)
from services.runtime.filters.folding import fold
from services.runtime.filters.moments import read_duration, read_timestamp

PATHS: list[Path] = [("a",), ("b",), ("tags",), ("deep", "x"), ("deep", "0"), ("odd key",)]

# U+0000 and lone surrogates are left out: they are refused at the border and jsonb cannot hold them.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
awkward_texts = st.sampled_from(["", "a", "a\x01", "a\x01\x02", "ab", "Z", "ä", "\uffff", "\U00010000", "%s", "'", '"'])
# What LIKE, regular expressions and the filter itself give a meaning to, and letters whose case is peculiar.
specials = st.text("%_\\*.[]()^$a", max_size=4)
cased = st.text("aAäÄßẞıİσςΣǅK\U00010400", max_size=4)
TIMESTAMPS = [
    "1969-12-31T23:59:59.999999999Z",
    "1970-01-01T00:00:00Z",
    "1970-01-01T01:00:00+01:00",
    "1969-12-31T23:00:00.000-01:00",
    "2024-02-29t12:00:00z",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
]
DURATIONS = [
    "0s",
    "-0s",
    "3600s",
    "PT1H",
    "PT60M",
    "-1.5s",
    "-PT1.5S",
    "P1DT0S",
    "86400.000000000s",
    "999999999s",
    "P1W",
]
NO_MOMENTS = [
    *["2023-02-29T00:00:00Z", "0000-01-01T00:00:00Z", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01T24:00:00Z"],
    *["2024-13-01T00:00:00Z", "2024-01-01T00:00:60Z", "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00+24:00", " 0s"],
    *["1.0000000000s", "P", "PT", "P1DT", "P1M", "P1Y", "1h", "s", "0s\n", "9999999999s", "٣s"],
]
# Dates and times that may or may not exist: no cast in SQL may fail on them.
near_moments = st.builds(
    "{:04}-{:02}-{:02}{}{:02}:{:02}:{:02}{}{}".format,
    st.integers(0, 9999) | st.sampled_from([0, 1900, 2000, 2024]),
    st.integers(0, 13),
    st.integers(0, 32) | st.integers(28, 31),
    st.sampled_from("Tt"),
    st.integers(0, 24),
    st.integers(0, 60),
    st.integers(0, 60),
    st.sampled_from(["", ".0", ".999999"]),
    st.sampled_from(["Z", "z", "+00:00", "-23:59", "+24:00"]),
)
moments = st.sampled_from(TIMESTAMPS + DURATIONS + NO_MOMENTS) | near_moments
strings = awkward_texts | texts | specials | cased

awkward_numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.1, 5.0, 5e-324, -5e-324, 1.7976931348623157e308, 1e16, 1e-7])
doubles = awkward_numbers | st.floats(allow_nan=False, allow_infinity=False)
numbers = doubles | st.integers(-3, 3)

scalars = st.none() | st.booleans() | numbers | strings | moments
inner = st.dictionaries(st.sampled_from(["x", "0"]), scalars | st.lists(scalars, max_size=2), max_size=2)
objects = st.dictionaries(st.sampled_from(["x", "0"]), scalars | st.lists(scalars, max_size=2) | inner, max_size=2)
values = scalars | st.lists(scalars | st.lists(scalars | objects, max_size=2) | objects, max_size=3) | objects
documents = st.dictionaries(st.sampled_from(["a", "b", "tags", "deep", "odd key", "c"]), values, max_size=6)

paths = st.sampled_from(PATHS)
ordered_literals = doubles.map(lambda number: number + 0.0) | strings
literals = ordered_literals | st.booleans()

operators = st.sampled_from(["=", "!=", "<", "<=", ">", ">="])
instants = st.sampled_from([Instant(read) for text in TIMESTAMPS if (read := read_timestamp(text)) is not None])
durations = st.sampled_from([Duration(read) for text in DURATIONS if (read := read_duration(text)) is not None])
keys = st.sampled_from(["x", "0"])


def _likes(path: Path, parts: list[str], *, folded: bool) -> Node:
    return Like(path, tuple(map(fold, parts)) if folded else tuple(parts), folded)


comparisons: st.SearchStrategy[Node] = (
    st.builds(Compare, paths, st.sampled_from(["=", "!="]), literals)
    | st.builds(Compare, paths, st.just("!="), st.none())
    | st.builds(Compare, paths, st.sampled_from(["<", "<=", ">", ">="]), ordered_literals)
    | st.builds(Has, paths, literals | keys)
    | st.builds(Present, paths)
    | st.builds(Compare, paths, operators, strings.map(fold), st.just(True))
    | st.builds(Compare, paths, operators, instants | durations)
    | st.builds(_likes, paths, st.lists(strings, min_size=2, max_size=4), folded=st.booleans())
    | st.builds(Size, paths, operators, st.integers(-1, 4).map(float) | doubles.map(lambda number: number + 0.0))
)


def _combine(terms: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(terms, min_size=2, max_size=3).map(tuple)
    return st.builds(Not, terms) | st.builds(And, several) | st.builds(Or, several)


filters = st.recursive(comparisons, _combine, max_leaves=6)
