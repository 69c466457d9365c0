"""Content of an entity against its type: checked, encoded and indexed, once for each state of the type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Final, NamedTuple

import orjson

from services.entity import schemas
from services.entity.index_keys import entry_keys, id_in, reference_keys, unique_keys
from services.entity.model import MAX_ENTITY_BYTES, EntityKey, EntityType, Index, IndexState, Reference
from services.runtime import wire
from services.runtime.errors import InvalidArgument, invalid_field, refusal_of
from services.runtime.filters.ast import Path
from services.runtime.wire import JsonObject

Entry = tuple[int, bytes]
"""An index and a key in it."""

_MISSING: Final = object()
_MAX_FIELDS: Final = 100
"""Paths that a type remembers to be possible: open types have them without end."""


class Rendered(NamedTuple):
    """Content that fits one generation of its type: as canonical JSON, as Struct bytes, and as index entries.

    ``unique`` are the entries that no other live entity may have.
    """

    generation: int
    json: bytes
    struct: bytes
    entries: frozenset[Entry]
    unique: tuple[Entry, ...]


class CompiledType:
    """A type with everything that is worth computing once."""

    def __init__(self, type_: EntityType) -> None:
        self.type = type_
        self.validator = schemas.compile_schema(type_.schema)
        self._fields: set[Path] = set()  # of those asked for, that entities may have
        self.maintained = tuple(index for index in type_.indexes if index.state != IndexState.FAILED)
        self.unique = tuple(index for index in self.maintained if index.spec.unique)
        references = (reference for reference in type_.references if reference.state != IndexState.FAILED)
        self.references = {reference.index_id: reference for reference in references}
        self.concerns_others = bool(self.unique or self.references)
        """Whether its entities may want what others have: a unique value, or to refer to them."""
        self.building = frozenset(
            (
                *(index.id for index in self.maintained if index.state == IndexState.BUILDING),
                *(index_id for index_id, one in self.references.items() if one.state == IndexState.BUILDING),
            )
        )

    @property
    def generation(self) -> int:
        return self.type.generation

    @cached_property
    def field_types(self) -> Mapping[Path, frozenset[str]]:
        return schemas.field_types(self.type.schema)

    def check_fields(self, paths: Iterable[Path], field: str) -> None:
        """Refuse, as ``INVALID_FIELD`` for *field*, a path at which no entity of the type can have anything."""
        for path in paths:
            if path not in self._fields:
                if schemas.rules_out(self.type.schema, path):
                    raise invalid_field(field, schemas.no_field(path))
                if len(self._fields) < _MAX_FIELDS:
                    self._fields.add(path)

    def render(self, data: JsonObject, json: bytes, field: str) -> Rendered:
        """Check and encode *data*, whose canonical form is *json*.

        Raises:
            InvalidArgument: ``SCHEMA_VIOLATION``, ``ENTITY_TOO_LARGE``, or a value is beyond an index's limits.
        """
        if not self.validator.is_valid(data):
            raise schemas.violation_error(self.validator, data, field)
        struct = wire.encode_struct(data)
        if len(struct) > MAX_ENTITY_BYTES:
            message = f"the data takes {len(struct)} bytes, at most {MAX_ENTITY_BYTES} are allowed for the entity"
            raise refusal_of(field, "ENTITY_TOO_LARGE", message, limit=str(MAX_ENTITY_BYTES))
        entries = frozenset([(index.id, key) for index in self.maintained for key in entry_keys(index.spec, data)])
        if self.references:
            entries = entries.union(self.reference_entries(data))
        unique = self.unique_entries(data) if self.unique else ()
        return Rendered(self.type.generation, json, struct, entries, unique)

    def unique_entries(self, data: JsonObject) -> tuple[Entry, ...]:
        """The entries that *data* would have for itself alone; raises as ``render`` for index limits."""
        return tuple((index.id, key) for index in self.unique for key in unique_keys(index.spec, data))

    def stored_entries(self, data: JsonObject) -> frozenset[Entry]:
        """The entries that stored *data* has in the indexes that are maintained now."""
        entries: set[Entry] = set()
        for index in self.maintained:
            # Data that was stored before the index was declared may lie beyond its limits: then it has no entry.
            keys = index_keys_or_none(index, data)
            entries.update((index.id, key) for key in keys or ())
        for reference in self.references.values():
            entries.update((reference.index_id, key) for key in reference_keys_or_none(reference, data) or ())
        return frozenset(entries)

    def reference_entries(self, data: JsonObject) -> list[Entry]:
        """The entries by which *data* is found from what it refers to; raises as ``render`` for index limits."""
        return [
            (index_id, key)
            for index_id, reference in self.references.items()
            for key in reference_keys(reference.path, data)
        ]

    def targets(self, data: JsonObject) -> frozenset[EntityKey]:
        """What *data* refers to; a value that cannot be an id refers to nothing."""
        return frozenset(
            EntityKey(reference.type, id_in(key))
            for reference in self.references.values()
            for key in reference_keys_or_none(reference, data) or ()
        )

    def index(self, index_id: int) -> Index:
        return next(index for index in self.type.indexes if index.id == index_id)


def index_keys_or_none(index: Index, data: JsonObject) -> list[bytes] | None:
    """The keys of *data* in *index*, or None if it lies beyond the index's limits."""
    try:
        return entry_keys(index.spec, data)
    except InvalidArgument:
        return None


def reference_keys_or_none(reference: Reference, data: JsonObject) -> list[bytes] | None:
    """The keys of *data* by *reference*, or None if its values cannot be ids."""
    try:
        return reference_keys(reference.path, data)
    except InvalidArgument:
        return None


def canonical(value: Any) -> bytes:
    """JSON that is equal for equal content, whatever the order and the wire form it came in. (To Python, 1 is True.)"""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def merge(current: JsonObject, content: JsonObject, mask: Iterable[Path]) -> JsonObject:
    """*current* with the values of *content* at the paths of *mask*; what *content* lacks there is removed."""
    merged = current
    for path in mask:
        merged = _replaced(merged, path, _value_at(content, path))
    return merged


def _value_at(content: JsonObject, path: Path) -> Any:
    value: Any = content
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _replaced(data: JsonObject, path: Path, value: Any) -> JsonObject:
    """A copy of *data*, sharing what does not change, with *value* at *path*."""
    key, rest = path[0], path[1:]
    if rest:
        inner = data.get(key)
        if not isinstance(inner, dict):
            if value is _MISSING:
                return data
            inner = {}
        value = _replaced(inner, rest, value)
    elif value is _MISSING:
        return {name: item for name, item in data.items() if name != key}
    return {**data, key: value}
