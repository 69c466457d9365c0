"""What of a log one reader wants: types or ids, a filter, and how much of what matches is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import orjson
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.errors import invalid_field
from services.runtime.filters import compile_predicate, parse_filter
from services.runtime.filters.ast import Node, Path
from services.runtime.filters.predicate import Predicate
from services.runtime.masks import EVERYTHING, keep_only, parse_mask
from services.stream.messages import LogUnit, UnitsMessage
from services.stream.upstream import Page
from services.stream.views import ChangeView, Facts, UnitView, facts_of

Change = feed_pb2.Change
_TYPE_ID = re.compile(r"[a-z][a-z0-9_]{0,62}")
_ENTITY_ID = re.compile(r"[a-z][a-z0-9_]{0,62}/[A-Za-z0-9][A-Za-z0-9._~-]{0,127}")
# Of the change or of nothing: these concern whoever watches the type or the entity, whatever the filter says.
_UNFILTERED = frozenset({Change.PURGED, Change.SCHEMA_CHANGED})
_REMOVALS = frozenset({Change.DELETED, Change.EXPIRED})


@dataclass(frozen=True, slots=True)
class Selection:
    """Types (empty: all), ids (``{type}/{id}``; empty: all) and a filter as text, as a tree and as a predicate on
    ``data`` (None: everything matches); of what matches, the paths of *mask* (empty: all), and *previous* or not.

    Equal when types, ids, text, mask and *previous* are: a predicate of one's own needs a text of its own.
    """

    types: frozenset[str]
    filter: str
    predicate: Predicate | None = field(compare=False)
    ids: frozenset[str] = frozenset()
    mask: tuple[Path, ...] = ()
    previous: bool = True
    node: Node | None = field(default=None, compare=False)

    @property
    def is_everything(self) -> bool:
        """Whether the reader gets the log as it is."""
        return not (self.types or self.ids or self.predicate or self._hides)

    @property
    def _hides(self) -> bool:
        return bool(self.mask) or not self.previous

    @property
    def text(self) -> str:
        """All of it as text, different for any two that are not equal."""
        parts = [sorted(self.types), sorted(self.ids), self.filter, self.mask, self.previous]
        return orjson.dumps(parts).decode()

    def matches(self, entity: entity_pb2.Entity) -> bool:
        """Whether an entity of a snapshot belongs to the feed; its type was seen to by whoever read it."""
        if self.ids and f"{entity.type}/{entity.name.rsplit('/', 1)[1]}" not in self.ids:
            return False
        return self._test(facts_of(entity)) if self.predicate else True

    def walk_from(self, after: tuple[str, str]) -> tuple[str, str]:
        """Where a snapshot that has come to (type, id) *after* goes on."""
        return after

    def cut(self, page: Page) -> Page:
        """What of a snapshot's page the reader may know of."""
        return page

    def show(self, entity: entity_pb2.Entity) -> None:
        """Remove from an entity that matches what the reader did not ask for."""
        if self.mask and entity.HasField("data"):
            keep_only(entity, self.mask)

    def of_units(self, batch: UnitsMessage, after: int) -> UnitsMessage | None:
        """What of *batch* belongs to the feed, as a message that covers ``(after, batch.revision]``; None: nothing."""
        if self.is_everything:
            return batch
        units = [
            kept for unit, view in zip(batch.units, batch.views, strict=True) if (kept := self.of_unit(unit, view))
        ]
        return UnitsMessage(batch.epoch, after, batch.revision, units) if units else None

    def of_unit(self, unit: LogUnit, view: UnitView, among: Sequence[ChangeView] | None = None) -> LogUnit | None:
        """What of *unit*, whose view *view* is, belongs to the feed: *unit* itself, less than that, or None.

        *among* are the changes that may concern it, if that is known.
        """
        among = view.changes if among is None else among
        kinds = [self.kind_of(change) for change in among]
        if not any(kinds):
            return None
        whole = len(among) == len(view.changes) and not self._hides
        if whole and all(kind == change.change.kind for kind, change in zip(kinds, among, strict=True)):
            return unit
        kept = feed_pb2.Unit(
            revision=view.unit.revision,
            commit_time=view.unit.commit_time,
            actor=view.unit.actor,
            request_id=view.unit.request_id,
            changes=[change.change for change, kind in zip(among, kinds, strict=True) if kind],
        )
        for change, kind in zip(kept.changes, filter(None, kinds), strict=True):
            change.kind = kind
            if not self.previous:
                change.ClearField("previous")
            self.show(change.entity)
            self.show(change.previous)
        return LogUnit(kept.SerializeToString())

    def kind_of(self, view: ChangeView) -> feed_pb2.Change.Kind.ValueType:
        """What the change is to this reader; 0: nothing."""
        kind = view.change.kind
        if self.types and view.type_id not in self.types:
            return Change.KIND_UNSPECIFIED
        if self.ids and view.entity_id and view.entity_id not in self.ids:
            return Change.KIND_UNSPECIFIED
        if self.predicate is None or kind in _UNFILTERED:
            return kind
        if kind in _REMOVALS:
            before = view.before if view.change.HasField("previous") else view.now
            return kind if self._test(before) else Change.KIND_UNSPECIFIED
        now = self._test(view.now)
        if kind != Change.UPDATED:
            return kind if now else Change.KIND_UNSPECIFIED
        if self._test(view.before):
            return Change.UPDATED if now else Change.LEFT
        return Change.ENTERED if now else Change.KIND_UNSPECIFIED

    def _test(self, facts: Facts | None) -> bool:
        return facts is not None and self.predicate is not None and self.predicate(*facts)


def selection_of(
    types: Sequence[str],
    filter: str,
    *,
    ids: Sequence[str] = (),
    read_mask: Sequence[str] = (),
    include_previous: bool = True,
) -> Selection:
    """The selection that a request names.

    Raises:
        InvalidArgument: INVALID_FIELD, no type id, entity, filter or mask, or both types and ids.
    """
    for index, type_id in enumerate(types):
        if not _TYPE_ID.fullmatch(type_id):
            raise invalid_field(f"types[{index}]", "must match [a-z][a-z0-9_]{0,62}")
    if types and ids:
        raise invalid_field("types", "not together with ids, which name their types")
    for index, entity_id in enumerate(ids):
        if not _ENTITY_ID.fullmatch(entity_id):
            raise invalid_field(f"ids[{index}]", "must be {type}/{id}")
    mask = parse_mask(read_mask, "read_mask")
    # Most feeds have no filter: the first of them must not wait until the parser is loaded.
    node, predicate = _understood(filter) if filter else (None, None)
    return Selection(
        types=frozenset(types or (entity_id.split("/")[0] for entity_id in ids)),
        filter=filter,
        predicate=predicate,
        ids=frozenset(ids),
        mask=() if mask == EVERYTHING else tuple(sorted(set(mask))),
        previous=include_previous,
        node=node,
    )


@lru_cache(maxsize=1000)  # after a restart all readers come back at once, and most filters are those of others
def _understood(filter: str) -> tuple[Node | None, Predicate | None]:
    node = parse_filter(filter, of_entity=True)
    return node, None if node is None else compile_predicate(node)
