"""What of a log one reader wants: types, a filter, and what becomes of a change that crosses the filter."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.errors import invalid_field
from services.runtime.filters import compile_predicate, parse_filter
from services.runtime.filters.attributes import EntityFields
from services.runtime.filters.predicate import Predicate
from services.stream.messages import LogUnit, UnitsMessage
from services.stream.render import struct_to_json

Change = feed_pb2.Change
_TYPE_ID = re.compile(r"[a-z][a-z0-9_]{0,62}")
# Of the change or of nothing: these concern whoever watches the type, whatever the filter says.
_UNFILTERED = frozenset({Change.PURGED, Change.SCHEMA_CHANGED})
_REMOVALS = frozenset({Change.DELETED, Change.EXPIRED})


@dataclass(frozen=True, slots=True)
class Selection:
    """Types (empty: all), and a filter as text and as a predicate on ``data`` (None: everything matches)."""

    types: frozenset[str]
    filter: str
    predicate: Predicate | None

    @property
    def is_everything(self) -> bool:
        return not self.types and self.predicate is None

    def matches(self, entity: entity_pb2.Entity) -> bool:
        """Whether an entity of a snapshot belongs to the feed; its type was seen to by whoever read it."""
        return self.predicate is None or _test(self.predicate, entity)

    def of_units(self, batch: UnitsMessage, after: int) -> UnitsMessage | None:
        """What of *batch* belongs to the feed, as a message that covers ``(after, batch.revision]``; None: nothing."""
        if self.is_everything:
            return batch
        units = [
            kept
            for unit, parsed in zip(batch.units, batch.parsed, strict=True)
            if (kept := self._of_unit(unit, parsed))
        ]
        return UnitsMessage(batch.epoch, after, batch.revision, units) if units else None

    def _of_unit(self, unit: LogUnit, parsed: feed_pb2.Unit) -> LogUnit | None:
        kinds = [self._kind(change) for change in parsed.changes]
        if all(kind == change.kind for kind, change in zip(kinds, parsed.changes, strict=True)):
            return unit
        if not any(kinds):
            return None
        kept = feed_pb2.Unit(
            revision=parsed.revision,
            commit_time=parsed.commit_time,
            actor=parsed.actor,
            request_id=parsed.request_id,
            changes=[change for change, kind in zip(parsed.changes, kinds, strict=True) if kind],
        )
        for change, kind in zip(kept.changes, filter(None, kinds), strict=True):
            change.kind = kind
        return LogUnit(kept.SerializeToString())

    def _kind(self, change: feed_pb2.Change) -> feed_pb2.Change.Kind.ValueType:
        """What the change is to this reader; 0: nothing."""
        kind = change.kind
        if self.types and _type_of(change) not in self.types:
            return Change.KIND_UNSPECIFIED
        if self.predicate is None or kind in _UNFILTERED:
            return kind
        if kind in _REMOVALS:
            before = change.previous if change.HasField("previous") else change.entity
            return kind if _test(self.predicate, before) else Change.KIND_UNSPECIFIED
        now = _test(self.predicate, change.entity)
        if kind != Change.UPDATED:
            return kind if now else Change.KIND_UNSPECIFIED
        if _test(self.predicate, change.previous):
            return Change.UPDATED if now else Change.LEFT
        return Change.ENTERED if now else Change.KIND_UNSPECIFIED


def selection_of(types: list[str], filter: str) -> Selection:
    """The selection that a request names.

    Raises:
        InvalidArgument: INVALID_FIELD, no type id, or no filter.
    """
    for index, type_id in enumerate(types):
        if not _TYPE_ID.fullmatch(type_id):
            raise invalid_field(f"types[{index}]", "must match [a-z][a-z0-9_]{0,62}")
    # Most feeds have no filter: the first of them must not wait until the parser is loaded.
    node = parse_filter(filter, of_entity=True) if filter else None
    return Selection(frozenset(types), filter, None if node is None else compile_predicate(node))


def _type_of(change: feed_pb2.Change) -> str:
    """The type's id, from a name ``namespaces/{namespace}/types/{type}[/entities/{entity}]``."""
    name = change.entity.name or change.previous.name or change.type.name or change.previous_type.name
    return name.split("/", 4)[3]


def _test(predicate: Predicate, entity: entity_pb2.Entity) -> bool:
    # What was purged has lost its data and matches no filter, not even NOT.
    if not entity.HasField("data"):
        return False
    data: Mapping[str, Any] = struct_to_json(entity.data)
    return predicate(data, EntityFields(entity))
