"""Which fields data may have by a schema, whatever way the schema says it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from services.entity.compatibility.emptiness import Budget, Emptiness, TooComplex
from services.entity.compatibility.facts import Literal
from services.entity.compatibility.nodes import Document, Interner

MAX_STEPS: Final = 20_000


def absent_fields(schema: Any, paths: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Those of *paths* at which data that is valid by *schema* has nothing, not inside arrays either.

    A path that it takes too long to decide about is not among them.
    """
    interner = Interner()
    document = Document(schema, interner)
    absent = set()
    for path in paths:
        valid, holding = Literal(document.root, True), Literal(Document(_lacking(path), interner).root, False)
        try:
            if Emptiness(Budget(MAX_STEPS)).is_empty((valid, holding)):
                absent.add(path)
        except TooComplex:
            continue
    return absent


def _lacking(path: tuple[str, ...]) -> dict[str, Any]:
    """The schema of data that has nothing at *path*."""
    definitions: dict[str, Any] = {str(len(path)): True}
    for place, key in enumerate(path):
        below = {"$ref": f"#/$defs/{place + 1}"}
        here = {"type": "object", "required": [key], "properties": {key: below}}
        definitions[str(place)] = {"anyOf": [here, {"type": "array", "contains": here}]} if place else here
    return {"not": {"$ref": "#/$defs/0"}, "$defs": definitions}
