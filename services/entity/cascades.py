"""What the removal of entities does to those that refer to them.

Followed twice by the same rules: outside the lock, to learn which entities and index entries are concerned, so that the
unit can claim them; and under the lock, on what is stored then. What turns out there not to have been claimed sends the
unit back to be prepared again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from services.entity import store
from services.entity.catalog import Catalog
from services.entity.content import CompiledType, Entry, merge
from services.entity.index_keys import encode
from services.entity.model import EntityKey, IndexState, OnDelete, Reference, StoredEntity
from services.runtime.database import Database
from services.runtime.errors import Error, FailedPrecondition, InvalidArgument
from services.runtime.filters.ast import Path
from services.runtime.filters.paths import lookup
from services.runtime.wire import JsonObject

MAX_TOUCHED: Final = 500
"""Entities that one unit deletes or changes because of what they refer to."""
MAX_COUNTED: Final = 10_000
MAX_ROUNDS: Final = 50
"""Where counting ends of what is refused for its size: after so many references, or look-ups one after the other."""

Holders = Mapping[Entry, Sequence[str]]
"""The ids of live entities by the entry of a reference; an entry that is not there has not been looked up."""


class Hold(NamedTuple):
    """The live entity *referrer* refers to *target*."""

    referrer: EntityKey
    reference: Reference
    target: EntityKey


@dataclass(slots=True)
class Consequences:
    """What follows from the removal of entities.

    ``deleted`` go, too; ``cleared`` stay without those references; ``restricting`` do not allow it. ``written`` are
    holds of entities that the unit itself writes: they must have let go by the end of it. ``looked_up`` are the entries
    that were used, ``types`` the types; ``unknown`` and ``unknown_types`` must be looked up before it is all known.
    """

    deleted: dict[EntityKey, None] = field(default_factory=dict)
    cleared: dict[EntityKey, list[Hold]] = field(default_factory=dict)
    restricting: list[Hold] = field(default_factory=list)
    written: list[Hold] = field(default_factory=list)
    looked_up: list[Entry] = field(default_factory=list)
    types: set[str] = field(default_factory=set)
    unknown: list[Entry] = field(default_factory=list)
    unknown_types: set[str] = field(default_factory=set)
    building: tuple[str, Reference] | None = None
    """A reference, and its type, whose holds are not all known to anybody yet."""
    exhausted: bool = False
    """There are more references than are ever counted."""

    @property
    def complete(self) -> bool:
        return not self.unknown and not self.unknown_types

    @property
    def touched(self) -> frozenset[EntityKey]:
        return frozenset((*self.deleted, *self.cleared))

    @property
    def too_many(self) -> bool:
        """Whether nothing can be done but refuse, with a count."""
        return (
            self.exhausted or len(self.deleted) + len(self.cleared) > MAX_TOUCHED or len(self.restricting) > MAX_TOUCHED
        )

    def check(self) -> None:
        """Raise ``REFERENCE_BUILDING``, ``REFERENCED`` or ``CASCADE_TOO_LARGE`` if the removal cannot be."""
        if self.building is not None:
            kind, reference = self.building
            raise FailedPrecondition(
                "REFERENCE_BUILDING",
                f"references from {kind} by {reference.field} are still being collected; retry when they are READY",
                type=kind,
                field=reference.field,
            )
        if self.restricting:
            first = self.restricting[0]
            kind, name = first.referrer.type, first.reference.field
            alike = {hold.referrer for hold in self.restricting if hold.reference is first.reference}
            raise self._refused(
                "REFERENCED", f"entities of {kind} refer to it by {name}", len(alike), type=kind, field=name
            )
        if self.too_many:
            message = f"entities would go or change with it, at most {MAX_TOUCHED} may"
            raise self._refused("CASCADE_TOO_LARGE", message, len(self.deleted) + len(self.cleared))

    def _refused(self, reason: str, message: str, count: int, **metadata: str) -> FailedPrecondition:
        counted = self.complete and not self.exhausted
        metadata |= {"count": str(count)} if counted else {"count": str(count), "at_least": "true"}
        refusal = FailedPrecondition(reason, f"{count if counted else f'at least {count}'} {message}")
        refusal.metadata |= metadata
        return refusal


def follow(
    removed: Collection[EntityKey], written: Collection[EntityKey], types: Mapping[str, CompiledType], holders: Holders
) -> Consequences:
    """What follows when *removed* go, by a unit that also writes *written*."""
    found = Consequences()
    staying: list[Hold] = []
    examined = 0
    frontier = list(removed)
    while frontier:
        reached: list[EntityKey] = []
        for hold in _holds(frontier, types, holders, found):
            examined += 1
            if examined > MAX_COUNTED:
                found.exhausted = True
                break
            referrer = hold.referrer
            if referrer in found.deleted or referrer in removed:
                continue
            if referrer in written:
                found.written.append(hold)
            elif hold.reference.on_delete == OnDelete.CASCADE:
                found.deleted[referrer] = None
                reached.append(referrer)
            else:
                staying.append(hold)
        frontier = [] if found.exhausted else reached
    for hold in staying:
        # Who goes anyway holds nobody back.
        if hold.referrer in found.deleted:
            continue
        if hold.reference.on_delete == OnDelete.RESTRICT:
            found.restricting.append(hold)
        else:
            found.cleared.setdefault(hold.referrer, []).append(hold)
    return found


def _holds(
    targets: Iterable[EntityKey], types: Mapping[str, CompiledType], holders: Holders, found: Consequences
) -> Iterator[Hold]:
    for target in targets:
        for type_id, reference in _references_to(target.type, types, found):
            entry = (reference.index_id, encode(target.id))
            if entry not in holders:
                found.unknown.append(entry)
                continue
            found.looked_up.append(entry)
            for entity_id in holders[entry]:
                yield Hold(EntityKey(type_id, entity_id), reference, target)


def _references_to(
    type_id: str, types: Mapping[str, CompiledType], found: Consequences
) -> Iterator[tuple[str, Reference]]:
    found.types.add(type_id)
    if (target := types.get(type_id)) is None:
        found.unknown_types.add(type_id)
        return
    for referrer in target.type.referrers:
        found.types.add(referrer)
        if (compiled := types.get(referrer)) is None:
            found.unknown_types.add(referrer)
            continue
        for reference in compiled.references.values():
            if reference.type != type_id:
                continue
            if reference.state == IndexState.BUILDING:
                found.building = (referrer, reference)
                continue
            yield referrer, reference


def cleared(data: JsonObject, holds: Iterable[Hold], field_types: Mapping[Path, frozenset[str]]) -> JsonObject:
    """*data* without the references of *holds*: an array loses its elements, a field is null if it may be, or gone."""
    for _, reference, target in holds:
        path = reference.path
        value = lookup(data, path)
        left: object = None
        if isinstance(value, list):
            left = [item for item in value if item != target.id]
        elif "null" not in field_types.get(path, ()):
            data = merge(data, {}, [path])
            continue
        content: object = left
        for key in reversed(path):
            content = {key: content}
        assert isinstance(content, dict), "a path has at least one key"
        data = merge(data, content, [path])
    return data


@dataclass(frozen=True, slots=True)
class Claim:
    """What a unit that removes entities must read under the lock and keep others from.

    ``entries`` are looked up; ``touched`` are written; ``holding`` only looked at; ``unique`` are the unique entries
    that cleared entities will have; ``types`` are all that were met. ``refusal``: as long as these types are as they
    are, there is too much to be looked at under the lock.
    """

    entries: frozenset[Entry] = frozenset()
    touched: frozenset[EntityKey] = frozenset()
    holding: frozenset[EntityKey] = frozenset()
    unique: frozenset[Entry] = frozenset()
    types: Mapping[str, CompiledType] = field(default_factory=dict)
    refusal: Error | None = None


NOTHING: Final = Claim()


class Explorer:
    """Follows removals on what is stored now, outside any lock; one for each preparation."""

    def __init__(self, database: Database, catalog: Catalog, namespace: str, types: Mapping[str, CompiledType]) -> None:
        self._database = database
        self._catalog = catalog
        self._namespace = namespace
        self._types = dict(types)
        self._holders: dict[Entry, list[str]] = {}

    async def claims(self, units: Sequence[tuple[Collection[EntityKey], Collection[EntityKey]]]) -> list[Claim]:
        """The claims of *units*, each of (removed, also written); what they look up is read together."""
        found = await self._follow(units)
        return [await self._claim(item) for item in found]

    async def _follow(self, units: Sequence[tuple[Collection[EntityKey], Collection[EntityKey]]]) -> list[Consequences]:
        rounds = 0
        while True:
            rounds += 1
            found: list[Consequences] = []
            entries: dict[Entry, None] = {}
            types: set[str] = set()
            for removed, written in units:
                consequences = follow(removed, written, self._types, self._holders)
                found.append(consequences)
                if not consequences.exhausted and not (consequences.too_many and rounds > MAX_ROUNDS):
                    entries |= dict.fromkeys(consequences.unknown)
                types |= consequences.unknown_types
            if learned := await self._learn(types):
                self._types |= learned
            elif not entries:
                return found
            if entries:
                await self._look_up(list(entries))

    async def _learn(self, types: set[str]) -> dict[str, CompiledType]:
        return await self._catalog.learn(self._namespace, types) if types else {}

    async def _look_up(self, entries: Sequence[Entry]) -> None:
        """Read who holds *entries*; if it is too much for one answer, in halves."""
        (rows,) = await self._database.read(
            self._namespace, store.select_referrers(self._namespace, entries, MAX_COUNTED + 1, total=MAX_COUNTED + 1)
        )
        if len(rows) > MAX_COUNTED and len(entries) > 1:
            middle = len(entries) // 2
            await self._look_up(entries[:middle])
            await self._look_up(entries[middle:])
            return
        for entry in entries:
            self._holders[entry] = []
        for index_id, key, entity_id in rows:
            self._holders[(index_id, key)].append(entity_id)

    async def _claim(self, found: Consequences) -> Claim:
        types = {type_id: self._types[type_id] for type_id in found.types if type_id in self._types}
        if found.too_many:
            try:
                found.check()
            except FailedPrecondition as refusal:
                return Claim(types=types, refusal=refusal)
        return Claim(
            entries=frozenset(found.looked_up),
            touched=found.touched,
            holding=frozenset(hold.referrer for hold in found.restricting),
            unique=await self._unique(found),
            types=types,
        )

    async def _unique(self, found: Consequences) -> frozenset[Entry]:
        keys = [key for key in found.cleared if self._types[key.type].unique]
        if not keys:
            return frozenset()
        (rows,) = await self._database.read(self._namespace, store.select_entities(self._namespace, keys))
        stored: dict[EntityKey, StoredEntity] = dict(map(store.entity_of, rows))
        entries: list[Entry] = []
        for key in stored:
            compiled = self._types[key.type]
            try:
                entries += compiled.unique_entries(cleared(stored[key].data, found.cleared[key], compiled.field_types))
            except InvalidArgument:
                continue  # refused under the lock, if nothing changes
        return frozenset(entries)
