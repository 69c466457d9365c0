"""Finds the selections that a change may concern, at a cost that does not grow with those that it does not.

A selection that only entities with ``data.f = const`` can match, that names entities, or that names types, is found by
hash from the entity as it is and as it was. The others have to be asked about every change.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeAlias, TypeVar

from strandline.stream.v1 import feed_pb2

from services.runtime.filters.ast import And, Compare, Node, Or, Path
from services.runtime.filters.paths import lookup
from services.stream.selection import Selection
from services.stream.views import ChangeView, UnitView

Key: TypeAlias = tuple[Hashable, ...]
T = TypeVar("T", bound=Hashable)

MAX_KEYS: Final = 100
"""A selection takes at most so many: with more alternatives it is found by its types."""
_ABOUT_EVERYBODY: Final = frozenset({feed_pb2.Change.PURGED, feed_pb2.Change.SCHEMA_CHANGED})


class SelectionIndex(Generic[T]):
    """Items, each with its selection."""

    def __init__(self) -> None:
        self._found: dict[T, frozenset[Key]] = {}
        self._by_key: dict[Key, set[T]] = {}
        # Of the keys: a change is looked up under the value that it has at each of these paths.
        self._paths: Counter[Path] = Counter()
        self._asked: dict[T, None] = {}

    def add(self, item: T, selection: Selection) -> None:
        """Let *item*, which must be new, be found for what concerns *selection*."""
        keys = demands(selection)
        if not keys:
            self._asked[item] = None
            return
        self._found[item] = keys
        for key in keys:
            self._by_key.setdefault(key, set()).add(item)
        self._paths.update(_paths(keys))

    def discard(self, item: T) -> None:
        """Let *item* be found no longer."""
        self._asked.pop(item, None)
        keys = self._found.pop(item, frozenset())
        for key in keys:
            holders = self._by_key[key]
            holders.discard(item)
            if not holders:
                del self._by_key[key]
        self._paths.subtract(_paths(keys))
        self._paths += Counter()  # drops what nobody needs any more

    def concerned(self, unit: UnitView) -> dict[T, list[ChangeView]]:
        """Which changes may concern which items; all others certainly do not."""
        concerned = dict.fromkeys(self._asked, unit.changes)
        for change in unit.changes:
            for item in self._concerned(change):
                concerned.setdefault(item, []).append(change)
        return concerned

    def _concerned(self, change: ChangeView) -> set[T]:
        if change.change.kind in _ABOUT_EVERYBODY:
            return set(self._found)
        items: set[T] = set()
        for key in self._keys(change):
            items.update(self._by_key.get(key, ()))
        return items

    def _keys(self, change: ChangeView) -> Iterator[Key]:
        if not self._found:
            return
        yield ("type", change.type_id)
        yield ("id", change.entity_id)
        if not self._paths:
            return
        for facts in (change.now, change.before):
            if facts is not None:
                for path in self._paths:
                    value = lookup(facts[0], path)
                    if isinstance(value, (str, float, int)):
                        yield _value_key(path, value)


def demands(selection: Selection) -> frozenset[Key]:
    """Keys of which an entity must have one for *selection* to match it; empty: no such keys are known."""
    if 0 < len(selection.ids) <= MAX_KEYS:
        return frozenset(("id", entity_id) for entity_id in selection.ids)
    if selection.node is not None and (keys := _demands(selection.node)):
        return keys
    return frozenset(("type", type_id) for type_id in selection.types)


def _demands(node: Node) -> frozenset[Key]:
    match node:
        case Compare(path, "=", (bool() | str() | float()) as value, folded=False):
            return frozenset({_value_key(path, value)})
        case And(terms):
            return min(filter(None, map(_demands, terms)), key=len, default=frozenset())
        case Or(terms):
            alternatives = [_demands(term) for term in terms]
            keys = frozenset[Key]().union(*alternatives)
            return keys if all(alternatives) and len(keys) <= MAX_KEYS else frozenset()
    return frozenset()


def _value_key(path: Path, value: str | float) -> Key:
    # In Python True is 1, in a filter it is not.
    return ("=", path, isinstance(value, bool), value)


def _paths(keys: frozenset[Key]) -> Iterator[Path]:
    return (key[1] for key in keys if key[0] == "=")  # type: ignore[misc]  # as `_value_key` makes them
