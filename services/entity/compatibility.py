"""Which changes of a schema a type accepts, in Confluent's sense of the words, decided conservatively.

BACKWARD: everything that was valid stays valid. FORWARD: everything that will be valid was valid. Accepted is only what
is seen to keep the promise: equal schemas (annotations aside), and optional properties added to (FORWARD: taken from) a
closed object. Whatever else differs is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from services.entity.content import canonical
from services.entity.schemas import closed, pointer_of
from services.runtime.errors import FailedPrecondition, Violation
from services.runtime.wire import JsonObject

# Values of strandline.entity.v1.EntityType.Compatibility.
NONE, BACKWARD, FORWARD, FULL, BACKWARD_TRANSITIVE, FORWARD_TRANSITIVE, FULL_TRANSITIVE = range(1, 8)
TRANSITIVE: Final = frozenset({BACKWARD_TRANSITIVE, FORWARD_TRANSITIVE, FULL_TRANSITIVE})
_KEEPS_OLD: Final = frozenset({BACKWARD, FULL, BACKWARD_TRANSITIVE, FULL_TRANSITIVE})
_KEEPS_NEW: Final = frozenset({FORWARD, FULL, FORWARD_TRANSITIVE, FULL_TRANSITIVE})
_ANNOTATIONS: Final = frozenset(
    {"$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "readOnly", "title", "writeOnly"}
)


class _Difference(NamedTuple):
    path: tuple[str, ...]
    problem: str


def check_compatible(compatibility: int, versions: Sequence[JsonObject], schema: JsonObject) -> None:
    """Refuse *schema* as the successor of *versions* (oldest first, the last is in force).

    Raises:
        FailedPrecondition: ``INCOMPATIBLE_SCHEMA`` with each difference and its pointer into the schema.
    """
    earlier = versions if compatibility in TRANSITIVE else versions[-1:]
    differences: dict[_Difference, None] = {}
    for version in earlier:
        old, new = closed(version), closed(schema)
        if compatibility in _KEEPS_OLD:
            differences.update(dict.fromkeys(_narrowed(old, new, (), "was added", "was removed")))
        if compatibility in _KEEPS_NEW:
            differences.update(dict.fromkeys(_narrowed(new, old, (), "was removed", "was added")))
    if differences:
        first = next(iter(differences))
        raise FailedPrecondition(
            "INCOMPATIBLE_SCHEMA",
            f"the schema is not compatible: {pointer_of(list(first.path)) or '/'}: {first.problem}",
            violations=[Violation("type.schema", item.problem, pointer_of(list(item.path))) for item in differences],
        )


def _narrowed(
    narrow: JsonObject, wide: JsonObject, path: tuple[str, ...], more: str, less: str
) -> Iterator[_Difference]:
    """Where something valid by *narrow* may be invalid by *wide*. *more* and *less* say what became of a property that
    only *wide* or only *narrow* has."""
    if (narrow.get("type"), wide.get("type")) != ("object", "object"):
        if canonical(_constraints(narrow)) != canonical(_constraints(wide)):
            yield _Difference(path, "this differs")
        return
    for keyword in sorted(_constraints({**narrow, **wide})):
        if keyword == "required":
            if not set(wide.get(keyword, ())) <= set(narrow.get(keyword, ())):
                yield _Difference((*path, keyword), "more is required")
        elif keyword != "properties" and canonical(narrow.get(keyword)) != canonical(wide.get(keyword)):
            yield _Difference((*path, keyword), "this differs")
    before, after = narrow.get("properties", {}), wide.get("properties", {})
    open_object = narrow.get("additionalProperties") is not False or "patternProperties" in narrow
    for name in sorted(set(before) | set(after)):
        where = (*path, "properties", name)
        if name not in after:
            yield _Difference(where, f"the property {less}")
        elif name not in before:
            if open_object:
                # The property may be there already, as anything.
                yield _Difference(where, f"the property {more}, and the object was not closed")
        elif isinstance(before[name], dict) and isinstance(after[name], dict):
            yield from _narrowed(before[name], after[name], where, more, less)
        elif before[name] is not after[name]:
            yield _Difference(where, "this differs")


def _constraints(schema: JsonObject) -> JsonObject:
    return {keyword: value for keyword, value in schema.items() if keyword not in _ANNOTATIONS}
