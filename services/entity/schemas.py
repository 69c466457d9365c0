"""JSON Schemas of types: which are accepted, what they say about fields, and how data fails them.

Patterns run on a linear-time engine, nothing is fetched, and a schema whose alternatives could be tried too often for
one value is refused, so that no schema can hold up a process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

import jsonschema_rs
import orjson

from services.entity.compatibility import as_type
from services.entity.schema_cost import check_cost, follow
from services.runtime.errors import InvalidArgument, Violation, invalid_field, pointer_of
from services.runtime.filters.ast import Path
from services.runtime.filters.paths import render_path
from services.runtime.filters.types import FORMAT, ITEMS
from services.runtime.wire import JsonObject

MAX_SCHEMA_BYTES: Final = 64 * 1024
MAX_VIOLATIONS: Final = 100
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_MAX_MESSAGE: Final = 300
_MAX_PATHS: Final = 2000
_MAX_PATH_DEPTH: Final = 8
_EVALUATING: Final = frozenset(
    {"$ref", "allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas", "dependencies"}
)
_PATTERNS: Final = jsonschema_rs.RegexOptions()

Validator = jsonschema_rs.Draft202012Validator


def check_schema(schema: JsonObject, field: str) -> None:
    """Refuse what is no schema of a type.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` for *field*, with a pointer into the schema.
    """
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise invalid_field(field, f"a schema has at most {MAX_SCHEMA_BYTES} bytes of JSON")
    if schema.get("type") != "object":
        raise invalid_field(field, 'the top of a schema must say "type": "object"', "/type")
    if schema.get("$schema", DRAFT) != DRAFT:
        raise invalid_field(field, f"the dialect is {DRAFT}", "/$schema")
    try:
        compile_schema(schema)
    except jsonschema_rs.ValidationError as failure:
        if "retriev" in failure.message.lower() or "base uri" in failure.message.lower():
            message = "a $ref may only lead inside the schema: #/..."
        else:
            message = failure.message[:_MAX_MESSAGE]
        raise invalid_field(field, message, pointer_of(failure.instance_path)) from None
    check_cost(schema, field)


def compile_schema(schema: JsonObject, *, mask: str | None = None) -> Validator:
    """The validator of a type's data: *schema*, closed at its top level unless it says otherwise.

    Its messages say *mask* in the place of values.

    Raises:
        jsonschema_rs.ValidationError: it is no valid schema, or refers to something outside itself.
    """
    return Validator(closed(schema), pattern_options=_PATTERNS, offline=True, mask=mask)


def closed(schema: JsonObject) -> JsonObject:
    """*schema* as it is applied."""
    # Without "properties" the library forgets which field it refuses.
    return {"properties": {}, **as_type(schema)}


def violation_error(validator: Validator, data: JsonObject, field: str) -> InvalidArgument:
    """``SCHEMA_VIOLATION`` with up to 100 of the ways in which *data* fails."""
    violations = list(islice(_violations(validator, data, field), MAX_VIOLATIONS))
    first = violations[0]
    return InvalidArgument(
        "SCHEMA_VIOLATION", f"the data does not fit its type: {first.pointer}: {first.message}", violations=violations
    )


def _violations(validator: Validator, data: JsonObject, field: str) -> Iterator[Violation]:
    kinds = jsonschema_rs.ValidationErrorKind
    for failure in validator.iter_errors(data):
        path, kind, message = list(failure.instance_path), failure.kind, failure.message[:_MAX_MESSAGE]
        if isinstance(kind, (kinds.AdditionalProperties, kinds.UnevaluatedProperties)):
            # One for each, at the property itself: that is what the writer has to take away.
            for name in kind.unexpected:
                yield Violation(field, "the type does not have this field", pointer_of([*path, name]))
        elif isinstance(kind, kinds.Required):
            yield Violation(field, message, pointer_of([*path, str(kind.property)]))
        else:
            yield Violation(field, message, pointer_of(path))


def field_types(schema: JsonObject) -> Mapping[Path, frozenset[str]]:
    """JSON types by path, as filters and indexes need them: where the schema says ``type``, also behind ``$ref``."""
    types: dict[Path, frozenset[str]] = {}
    _collect(schema, schema, (), types)
    return types


def rules_out(schema: JsonObject, path: Path) -> bool:
    """Whether no data that is valid by a type's *schema* has anything at *path*, not inside arrays either.

    Only what a closed object or a ``type`` says plainly is seen: what is ruled out is so, what is not may still be.
    """
    root = closed(schema)
    return not _may_have(root, root, path, arrays=False)


def no_field(path: Path) -> str:
    """What is said of a *path* that is ruled out."""
    return f"the schema of the type has no field {render_path(path)}"


def _may_have(root: JsonObject, schema: Any, path: Path, *, arrays: bool, hops: int = 0) -> bool:
    """Whether an object (with *arrays*, or an array) that is valid by *schema* may have something at *path*."""
    if schema is False:
        return False
    if not path or not isinstance(schema, dict):
        return True
    kinds = schema.get("type", ["array", "object"])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    arrays = arrays and "array" in kinds
    # What stands side by side must all hold: one keyword that rules the path out is enough.
    beside = list(schema.get("allOf", ()))
    if "$ref" in schema and hops < _MAX_PATH_DEPTH:
        beside.append(follow(root, schema["$ref"]))
    if not all(_may_have(root, part, path, arrays=arrays, hops=hops + 1) for part in beside):
        return False
    if "object" in kinds and _property_may_have(root, schema, path):
        return True
    # A path leads through the elements of an array, but not on through an array that is one of them.
    return arrays and ("prefixItems" in schema or _may_have(root, schema.get("items", True), path, arrays=False))


def _property_may_have(root: JsonObject, schema: JsonObject, path: Path) -> bool:
    key, rest = path[0], path[1:]
    properties = schema.get("properties", {})
    if key in properties:
        return _may_have(root, properties[key], rest, arrays=True)
    if schema.get("patternProperties"):
        return True
    if "additionalProperties" in schema:
        return _may_have(root, schema["additionalProperties"], rest, arrays=True)
    # What keywords beside it evaluate is not unevaluated.
    return schema.get("unevaluatedProperties") is not False or not _EVALUATING.isdisjoint(schema)


def _collect(root: JsonObject, schema: Any, path: Path, types: dict[Path, frozenset[str]]) -> None:
    schema = resolve(root, schema)
    if not isinstance(schema, dict) or len(path) > _MAX_PATH_DEPTH or len(types) >= _MAX_PATHS:
        return
    declared = schema.get("type")
    if path and declared is not None:
        types[path] = frozenset([declared] if isinstance(declared, str) else declared)
    if path and isinstance(format := schema.get("format"), str):
        types[(*path, FORMAT)] = frozenset({format})
    items = schema.get("items")
    if path and isinstance(items, dict):
        item_types = resolve(root, items)
        if isinstance(item_types, dict) and (declared := item_types.get("type")) is not None:
            types[(*path, ITEMS)] = frozenset([declared] if isinstance(declared, str) else declared)
    for key, inner in schema.get("properties", {}).items():
        _collect(root, inner, (*path, key), types)


def resolve(root: JsonObject, schema: Any) -> Any:
    """*schema*, or what its local ``$ref`` leads to when it says no type itself."""
    for _ in range(_MAX_PATH_DEPTH):
        if not isinstance(schema, dict) or "type" in schema or "$ref" not in schema:
            return schema
        schema = follow(root, schema["$ref"])
    return None
