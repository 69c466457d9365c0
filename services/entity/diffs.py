"""What differs between two versions of an entity's content. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from services.entity.content import canonical
from services.runtime.wire import JsonObject

MAX_CHANGES: Final = 1000
MAX_POINTER_BYTES: Final = 2**18
"""Of all pointers of one difference together: deep content has long ones."""


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""There is no value; None is the value null."""


class FieldChange(NamedTuple):
    """One place that differs: an RFC 6901 pointer, and what is there, or ``MISSING``."""

    pointer: str
    before: Any
    after: Any


def differences(before: JsonObject, after: JsonObject) -> list[FieldChange]:
    """The places that differ, sorted by their keys.

    Only where both sides have an object is looked inside it: applied to *before*, the changes give *after*. Beyond
    ``MAX_CHANGES`` the top-level members stand for everything inside them.
    """
    found: list[FieldChange] = []
    pointer_bytes = 0
    for change in _walk(before, after, "", deep=True):
        found.append(change)
        pointer_bytes += len(change.pointer)
        if len(found) > MAX_CHANGES or pointer_bytes > MAX_POINTER_BYTES:
            return list(_walk(before, after, "", deep=False))
    return found


def _walk(before: JsonObject, after: JsonObject, parent: str, *, deep: bool) -> Iterator[FieldChange]:
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, MISSING), after.get(key, MISSING)
        pointer = f"{parent}/{key.replace('~', '~0').replace('/', '~1')}"
        if deep and isinstance(old, dict) and isinstance(new, dict):
            yield from _walk(old, new, pointer, deep=True)
        elif old is MISSING or new is MISSING or canonical(old) != canonical(new):
            yield FieldChange(pointer, old, new)
