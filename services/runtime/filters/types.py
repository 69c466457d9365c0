"""Literals against the JSON types that a schema declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.runtime.errors import InvalidArgument, invalid_field
from services.runtime.filters.ast import And, Compare, Has, Node, Not, Or, Path, Scalar
from services.runtime.filters.paths import render_path

ITEMS: Final = "[]"
"""Last key of the path under which ``field_types`` holds the types of an array's elements."""


def check_types(node: Node, field_types: Mapping[Path, frozenset[str]]) -> None:
    """Refuse literals that no value allowed by the schema could equal or be ordered with.

    Args:
        node: the filter.
        field_types: JSON Schema's type names by path (``("country",): {"string", "null"}``), the types of an array's
            elements under ``(*path, ITEMS)``. A path that is not there is not checked; null is never refused.

    Raises:
        InvalidArgument: ``INVALID_FIELD``, naming the field, its types and the literal's.
    """
    match node:
        case And(terms) | Or(terms):
            for term in terms:
                check_types(term, field_types)
        case Not(term):
            check_types(term, field_types)
        case Compare(path, _, value):
            _check(path, value, field_types.get(path))
        case Has(path, value):
            declared = field_types.get(path)
            if declared is not None and "array" not in declared:
                raise _refuse(f"{render_path(path)}: the operator : is for arrays, the field is {_list(declared)}")
            _check(path, value, field_types.get((*path, ITEMS)))


def _check(path: Path, value: Scalar, declared: frozenset[str] | None) -> None:
    wanted = _json_types(value)
    if declared is None or value is None or declared & wanted:
        return
    raise _refuse(f"{render_path(path)} is {_list(declared)}, the value is {min(wanted, key=len)}")


def _json_types(value: Scalar) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset({"boolean"})
    return frozenset({"string"}) if isinstance(value, str) else frozenset({"number", "integer"})


def _list(types: frozenset[str]) -> str:
    return " or ".join(sorted(types))


def _refuse(problem: str) -> InvalidArgument:
    return invalid_field("filter", problem)
