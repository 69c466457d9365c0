"""Syntax tree to a Python function; must agree with ``sql`` on every value that can be stored."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from services.runtime.filters.ast import (
    And,
    Compare,
    Duration,
    Has,
    Instant,
    Like,
    Node,
    Not,
    OfEntity,
    Or,
    Path,
    Present,
    Size,
    Value,
)
from services.runtime.filters.folding import fold
from services.runtime.filters.moments import read_duration, read_timestamp
from services.runtime.filters.paths import elements, lookup, reached

Fields: TypeAlias = Mapping[str, Any]
_Test: TypeAlias = Callable[[Any], bool]

_NONE: Final[Fields] = {}
_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Predicate(Protocol):
    """Says whether an entity matches.

    ``data`` is what a JSON decoder gives: dict, list, str, int, float, bool and None. ``entity`` holds the entity's own
    fields, as ``attributes`` describes them; a filter that was parsed without them needs none. It never raises.
    """

    def __call__(self, data: Fields, entity: Fields = _NONE, /) -> bool: ...


def compile_predicate(node: Node) -> Predicate:
    """Return the function that says whether an entity matches *node*."""
    match node:
        case And(terms):
            tests = [compile_predicate(term) for term in terms]
            return lambda data, entity=_NONE: all(test(data, entity) for test in tests)
        case Or(terms):
            tests = [compile_predicate(term) for term in terms]
            return lambda data, entity=_NONE: any(test(data, entity) for test in tests)
        case Not(term):
            test = compile_predicate(term)
            return lambda data, entity=_NONE: not test(data, entity)
        case OfEntity(term):
            test = compile_predicate(term)
            return lambda data, entity=_NONE: test(entity)
        case Compare(path, name, value, folded):
            compare = _comparison(name, value)
            return _at(path, _folding(compare) if folded else compare)
        case Like(path, parts, folded):
            like = _likeness(parts)
            return _at(path, lambda found: isinstance(found, str) and like(fold(found) if folded else found))
        case Has(path, value):
            equals = _equality(value)
            return lambda data, entity=_NONE: any(map(equals, elements(data, path)))
        case Present(path):
            return lambda data, entity=_NONE: any(value is not None for value in reached(data, path))
        case Size(path, name, value):
            of_number = _comparison(name, value)
            return _at(path, lambda found: isinstance(found, list) and of_number(len(found)))


def _at(path: Path, test: _Test) -> Predicate:
    if len(path) == 1:
        key = path[0]
        return lambda data, entity=_NONE: test(data.get(key))
    return lambda data, entity=_NONE: test(lookup(data, path))


def _folding(test: _Test) -> _Test:
    """*test* of folded text; what is no text is tested as it is."""
    return lambda found: test(fold(found) if isinstance(found, str) else found)


def _comparison(name: str, value: Value) -> _Test:
    if name == "=":
        return _equality(value)
    if name == "!=":
        equals = _equality(value)
        return lambda found: found is not None and not equals(found)
    compare = _ORDERS[name]
    if isinstance(value, (Instant, Duration)):
        said, limit = _reader(value), value.nanoseconds
        return lambda found: (read := said(found)) is not None and compare(read, limit)
    if isinstance(value, str):
        # Python orders str by code point, which is the order of the UTF-8 bytes.
        return lambda found: isinstance(found, str) and compare(found, value)
    return lambda found: type(found) in (float, int) and compare(found, value)


def _equality(value: Value) -> _Test:
    if value is None:
        return lambda found: False
    if isinstance(value, bool):
        return lambda found: found is value
    if isinstance(value, str):
        return lambda found: isinstance(found, str) and found == value
    if isinstance(value, (Instant, Duration)):
        said, moment = _reader(value), value.nanoseconds
        return lambda found: said(found) == moment
    return lambda found: type(found) in (float, int) and found == value  # type: in Python True is an int


def _reader(value: Instant | Duration) -> Callable[[Any], int | None]:
    read = read_timestamp if isinstance(value, Instant) else read_duration
    return lambda found: read(found) if isinstance(found, str) else None


def _likeness(parts: Sequence[str]) -> Callable[[str], bool]:
    first, *middle, last = parts
    shortest = sum(map(len, parts))

    def like(text: str) -> bool:
        if len(text) < shortest or not (text.startswith(first) and text.endswith(last)):
            return False
        # The leftmost place of each part leaves the most room for the rest: nothing is ever tried twice.
        start, end = len(first), len(text) - len(last)
        for part in middle:
            start = text.find(part, start, end)
            if start < 0:
                return False
            start += len(part)
        return True

    return like
