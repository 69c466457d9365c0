"""Syntax tree to a Python function; must agree with ``sql`` on every value that can be stored."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from services.runtime.filters.ast import And, Compare, Has, Node, Not, Or, Path, Scalar
from services.runtime.filters.paths import lookup

Predicate: TypeAlias = Callable[[Mapping[str, Any]], bool]
_Test: TypeAlias = Callable[[Any], bool]

_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def compile_predicate(node: Node) -> Predicate:
    """Return the function that says whether an entity's ``data`` matches *node*.

    ``data`` is what a JSON decoder gives: dict, list, str, int, float, bool and None. The function never raises.
    """
    match node:
        case And(terms):
            tests = [compile_predicate(term) for term in terms]
            return lambda data: all(test(data) for test in tests)
        case Or(terms):
            tests = [compile_predicate(term) for term in terms]
            return lambda data: any(test(data) for test in tests)
        case Not(term):
            test = compile_predicate(term)
            return lambda data: not test(data)
        case Compare(path, name, value):
            return _at(path, _comparison(name, value))
        case Has(path, value):
            equals = _equality(value)
            return _at(path, lambda array: isinstance(array, list) and any(map(equals, array)))


def _at(path: Path, test: _Test) -> Predicate:
    if len(path) == 1:
        key = path[0]
        return lambda data: test(data.get(key))
    return lambda data: test(lookup(data, path))


def _comparison(name: str, value: Scalar) -> _Test:
    if name == "=":
        return _equality(value)
    if name == "!=":
        equals = _equality(value)
        return lambda found: found is not None and not equals(found)
    compare = _ORDERS[name]
    if isinstance(value, str):
        # Python orders str by code point, which is the order of the UTF-8 bytes.
        return lambda found: isinstance(found, str) and compare(found, value)
    return lambda found: type(found) in (float, int) and compare(found, value)


def _equality(value: Scalar) -> _Test:
    if value is None:
        return lambda found: False
    if isinstance(value, bool):
        return lambda found: found is value
    if isinstance(value, str):
        return lambda found: isinstance(found, str) and found == value
    return lambda found: type(found) in (float, int) and found == value  # type: in Python True is an int
