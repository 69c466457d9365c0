"""What a schema says about the fields of a filter: which literals cannot be, and how the others are meant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from services.runtime.errors import InvalidArgument, invalid_field
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
from services.runtime.filters.moments import read_duration, read_timestamp
from services.runtime.filters.paths import render_path

FieldTypes: TypeAlias = Mapping[Path, frozenset[str]]
"""JSON Schema's type names by path (``("country",): {"string", "null"}``). A path that is not there is not checked."""

ITEMS: Final = "[]"
"""Last key of the path under which the types of an array's elements stand."""
FORMAT: Final = "[format]"
"""Last key of the path under which the ``format`` of a text stands."""

_SCALARS: Final = frozenset({"string", "number", "integer", "boolean", "null"})


def typed(node: Node, field_types: FieldTypes, name: Callable[[Path], str] = render_path) -> Node:
    """Return *node* as the schema understands it; *name* writes a path as the filter did.

    A text compared with a field of the format ``date-time`` or ``duration`` becomes what it says. ``:`` on a field that
    holds neither arrays nor objects becomes ``=``, on one that holds only objects it asks for the key.

    Raises:
        InvalidArgument: ``INVALID_FIELD``, no value that the schema allows could equal a literal or be ordered with it;
            the message names the field, its types and the literal's. Null is never refused.
    """
    match node:
        case And(terms):
            return And(tuple(typed(term, field_types, name) for term in terms))
        case Or(terms):
            return Or(tuple(typed(term, field_types, name) for term in terms))
        case Not(term):
            return Not(typed(term, field_types, name))
        case Compare(path, operator, value, folded):
            _check(path, value, field_types.get(path), name)
            if isinstance(value, str) and not folded:
                value = _read(name(path), value, field_types.get((*path, FORMAT), frozenset()))
            return Compare(path, operator, value, folded)
        case Like(path):
            _check(path, "", field_types.get(path), name)
        case Has():
            return _typed_has(node, field_types, name)
        case Size(path):
            declared = field_types.get(path)
            if declared is not None and "array" not in declared:
                raise _refuse(f"size() is for arrays, {name(path)} is {_list(declared)}")
        case Present() | OfEntity():
            pass
    return node


def _typed_has(node: Has, field_types: FieldTypes, name: Callable[[Path], str]) -> Node:
    path, value = node.path, node.value
    declared = field_types.get(path)
    if declared is None or any("array" in field_types.get(path[:n], {"array"}) for n in range(1, len(path))):
        return node  # nothing is known, or the path leads through arrays
    if declared <= _SCALARS:
        return typed(Compare(path, "=", value), field_types, name)
    if "array" not in declared and isinstance(value, str) and declared <= {"object", "null"}:
        return Present((*path, value))
    items = field_types.get((*path, ITEMS), _json_types(value)) if "array" in declared else frozenset()
    keys = {"string"} if "object" in declared else set()
    _check(path, value, (declared & _SCALARS) | items | keys, name)
    return node


def _read(field: str, text: str, formats: frozenset[str]) -> Value:
    if "date-time" in formats:
        if (nanoseconds := read_timestamp(text)) is None:
            raise _refuse(f"{field} is a date-time, write it like 2026-01-31T12:00:00Z")
        return Instant(nanoseconds)
    if "duration" in formats:
        if (nanoseconds := read_duration(text)) is None:
            raise _refuse(f"{field} is a duration, write it like 90s or PT1M30S")
        return Duration(nanoseconds)
    return text


def _check(path: Path, value: Value, declared: frozenset[str] | None, name: Callable[[Path], str]) -> None:
    wanted = _json_types(value)
    if declared is None or value is None or declared & wanted:
        return
    raise _refuse(f"{name(path)} is {_list(declared)}, the value is {min(wanted, key=len)}")


def _json_types(value: Value) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset({"boolean"})
    return frozenset({"number", "integer"}) if isinstance(value, float) else frozenset({"string"})


def _list(types: frozenset[str]) -> str:
    return " or ".join(sorted(types))


def _refuse(problem: str) -> InvalidArgument:
    return invalid_field("filter", problem)
