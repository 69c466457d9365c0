"""How often a schema can make the validator look at one value.

``anyOf`` of references to ``anyOf`` of references multiplies: a schema of 2 KB can ask for 2^30 looks at one string.
The bound is computed when a type is declared; what exceeds it is refused. Alternatives that apply to different
properties do not add up, because each is another value.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

from services.runtime.errors import invalid_field
from services.runtime.wire import MAX_DEPTH, JsonObject

MAX_LOOKS: Final = 1000
_SAME_VALUE_LISTS: Final = ("allOf", "anyOf", "oneOf")
_SAME_VALUE: Final = ("not", "if", "then", "else")
_EVERY_CHILD: Final = (
    "additionalProperties",
    "contains",
    "items",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
)


def check_cost(schema: JsonObject, field: str) -> None:
    """Refuse *schema* (valid JSON Schema) if it may look at one value more than ``MAX_LOOKS`` times.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` for *field*; also for a reference that is not local or leads to itself.
    """
    if _Looks(schema, field).at(schema, MAX_DEPTH) > MAX_LOOKS:
        raise invalid_field(field, f"the schema's alternatives may be tried more than {MAX_LOOKS} times for one value")


def follow(root: JsonObject, reference: str) -> Any:
    """What the local reference ``#/...`` points to; None if there is nothing."""
    target: Any = root
    for part in unquote(reference.removeprefix("#")).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list):
            target = target[int(key)] if key.isdigit() and int(key) < len(target) else None
        else:
            target = target.get(key) if isinstance(target, dict) else None
    return target


class _Looks:
    def __init__(self, root: JsonObject, field: str) -> None:
        self._root = root
        self._field = field
        self._known: dict[tuple[int, int], int] = {}
        self._open: set[tuple[int, int]] = set()

    def at(self, schema: Any, depth: int) -> int:
        """At most so many looks at any value: what *schema* is applied to, or what lies up to *depth* levels inside."""
        if not isinstance(schema, dict):
            return 1
        key = (id(schema), depth)
        if key in self._open:
            raise invalid_field(self._field, "a reference leads back to itself for the same value")
        if key not in self._known:
            self._open.add(key)
            self._known[key] = min(self._count(schema, depth), MAX_LOOKS + 1)
            self._open.remove(key)
        return self._known[key]

    def _count(self, schema: JsonObject, depth: int) -> int:
        if "$dynamicRef" in schema or ("$id" in schema and schema is not self._root):
            raise invalid_field(self._field, "$dynamicRef and inner $id are not supported")
        parts = [part for name in _SAME_VALUE_LISTS for part in schema.get(name, ())]
        parts += [schema[name] for name in _SAME_VALUE if name in schema]
        # The library still applies "dependencies", which 2020-12 has split in two.
        for keyword in ("dependentSchemas", "dependencies"):
            parts += [part for part in schema.get(keyword, {}).values() if not isinstance(part, list)]
        if "$ref" in schema:
            parts.append(self._target(schema["$ref"]))
        below = self._below(schema, depth - 1) if depth else 0
        return max(1, below) + sum(self.at(part, depth) for part in parts)

    def _below(self, schema: JsonObject, depth: int) -> int:
        every = [schema[name] for name in _EVERY_CHILD if isinstance(schema.get(name), dict)]
        every += schema.get("patternProperties", {}).values()
        one_of = [*schema.get("properties", {}).values(), *schema.get("prefixItems", ())]
        return max((self.at(part, depth) for part in one_of), default=0) + sum(self.at(part, depth) for part in every)

    def _target(self, reference: str) -> Any:
        if reference != "#" and not reference.startswith("#/"):
            raise invalid_field(self._field, f"only local references (#/...) are supported, not {reference[:100]!r}")
        return follow(self._root, reference)
