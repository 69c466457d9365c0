"""What the service adds to the committer's transaction: what it reads under the lock, and one batch of decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeAlias

from services.entity import cascades, catalog, preconditions, store
from services.entity.cascades import Claim, Hold
from services.entity.catalog import Catalog, missing_type
from services.entity.content import CompiledType, Entry, canonical
from services.entity.decisions import Effect, Outcome, Prepared, Stale, decide
from services.entity.index_keys import encode, id_in
from services.entity.limits import UNLIMITED, Confirmations, Counters, Delta, Limits
from services.entity.model import EntityKey, Reference, StoredEntity, entity_name, etag_of, last_changed_by
from services.entity.mutations import Kind, Mutation
from services.entity.preconditions import Precondition
from services.entity.purge_changes import Purge, PurgeRound
from services.entity.store import EntityRow
from services.entity.type_changes import TypeChange, TypeRound
from services.runtime import wire
from services.runtime.changelog import DELETED, UPDATED, Change
from services.runtime.committer import Decision, Stamp, TooMuch
from services.runtime.database import Row, Statement
from services.runtime.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound, refusal_of
from services.runtime.masks import EVERYTHING
from services.runtime.rpc import status_of_error
from services.runtime.units import Unit


@dataclass(kw_only=True, eq=False)
class Write(Unit):
    """One atomic unit of writes to entities, no entity named twice.

    ``known`` are the types as they were when the writes were prepared. ``preconditions`` must hold before the unit.
    ``indexed`` says whether a refusal names the place of the mutation that caused it. ``remembers_refusal`` says
    whether a refusal that is about the content, and not about the moment, is an answer too: then a repetition hears it
    again, whatever has happened in between. ``targets`` are the entities that it is expected to refer to anew, and
    ``claim`` what its removals are expected to lead to.
    """

    writes: Sequence[Prepared]
    known: Mapping[str, CompiledType]
    unique: frozenset[Entry]
    preconditions: tuple[Precondition, ...] = ()
    targets: frozenset[EntityKey] = frozenset()
    claim: Claim = cascades.NOTHING
    limits: Limits = UNLIMITED
    indexed: bool = False
    remembers_refusal: bool = False
    changes_stored: bool = field(init=False)
    """See ``limits.LimitedUnit``."""

    def __post_init__(self) -> None:
        self.changes_stored = [write for write in self.writes if write.mutation.kind != Kind.CREATE] != []


EntityUnit: TypeAlias = Write | TypeChange | Purge
MAX_READ_BYTES: Final = 16 * 2**20
"""How much of the entities that a batch is about is read under the lock: small changes may be of large entities."""
# No protobuf message begins with it.
_REFUSAL: Final = b"\x00"


class EntityLedger:
    """Decides writes to entities, changes of types, and purges."""

    def __init__(self, types: Catalog, confirmations: Confirmations) -> None:
        self._types = types
        self._confirmations = confirmations

    def reads(self, namespace: str, units: Sequence[EntityUnit]) -> Sequence[Statement]:
        """See ``committer.Ledger``."""
        batch = _Batch(units)
        statements: list[Statement] = []
        if batch.keys:
            statements.append(catalog.select(namespace, batch.type_ids, batch.known))
            statements.append(store.select_some_entities(namespace, batch.keys, MAX_READ_BYTES))
            statements += Counters.reads(namespace, list(batch.type_ids), batch.writes)
        if batch.unique:
            statements.append(store.select_holders(namespace, batch.unique))
        if batch.targets:
            statements.append(store.select_live(namespace, batch.targets))
        if batch.references:
            statements.append(store.select_referrers(namespace, batch.references, cascades.MAX_COUNTED + 1))
        for purge in batch.purges:
            statements += PurgeRound.reads(namespace, purge)
        if batch.changes:
            statements += TypeRound.reads(namespace, batch.changes)
        return statements

    def open_round(self, namespace: str, units: Sequence[EntityUnit], rows: Sequence[list[Row]]) -> EntityRound:
        """See ``committer.Ledger``."""
        batch = _Batch(units)
        results = iter(rows)
        round_ = EntityRound(namespace)
        if batch.keys:
            round_.types = self._types.refresh(namespace, next(results), batch.known)
            entity_rows = next(results)
            round_.entities = dict(map(store.entity_of, entity_rows))
            round_.unread = frozenset([EntityKey(row[0], row[1]) for row in entity_rows if row[-1] is None])
            round_.alone = len(units) == 1
            round_.counters = Counters.of(namespace, self._confirmations, list(batch.type_ids), batch.writes, results)
        if batch.unique:
            for index_id, key, entity_id in next(results):
                round_.holders.setdefault((index_id, key), set()).add(entity_id)
        if batch.targets:
            round_.live = {EntityKey(*row) for row in next(results)}
        if batch.references:
            round_.referrers = {entry: [] for entry in batch.references}
            for index_id, key, entity_id in next(results):
                round_.referrers[(index_id, key)].append(entity_id)
        if batch.purges:
            round_.purge_round = PurgeRound(namespace, [next(results) for _ in range(PurgeRound.READS)])
        if batch.changes:
            round_.type_round = TypeRound(namespace, list(results))
        return round_


class _Batch:
    """What the units of one batch need. A pure function of them, because it is asked twice."""

    def __init__(self, units: Sequence[EntityUnit]) -> None:
        self.writes = [unit for unit in units if isinstance(unit, Write)]
        self.changes = [unit for unit in units if isinstance(unit, TypeChange)]
        self.purges = [unit for unit in units if isinstance(unit, Purge)]  # one at most
        self.keys = [write.mutation.key for unit in self.writes for write in unit.writes]
        self.type_ids = dict.fromkeys(key.type for key in self.keys)
        for unit in self.writes:
            if unit.preconditions:
                self.keys += [condition.key for condition in unit.preconditions]
                self.type_ids |= dict.fromkeys(condition.key.type for condition in unit.preconditions)
            if unit.claim is not cascades.NOTHING:
                self.keys += unit.claim.touched
                self.type_ids |= dict.fromkeys(unit.claim.types)
        self.targets = list({target: None for unit in self.writes for target in unit.targets})
        self.references = list({entry: None for unit in self.writes for entry in unit.claim.entries})
        self.unique = list({entry: None for unit in self.writes for entry in unit.unique})
        self.known: dict[str, CompiledType] = {}
        # The rows of a batch know the same.
        for known in {id(unit.known): unit.known for unit in self.writes}.values():
            for type_id, compiled in known.items():
                if type_id not in self.known or self.known[type_id].generation < compiled.generation:
                    self.known[type_id] = compiled


@dataclass
class EntityRound:
    """One batch under the lock. Its units touch different entities and unique entries, so each is decided alone."""

    namespace: str
    types: Mapping[str, CompiledType] = field(default_factory=dict)
    entities: Mapping[EntityKey, StoredEntity] = field(default_factory=dict)
    unread: Set[EntityKey] = frozenset()
    """Those of ``entities`` that are without content, because there was too much of it."""
    alone: bool = False
    holders: dict[Entry, set[str]] = field(default_factory=dict)
    live: Set[EntityKey] = frozenset()
    referrers: dict[Entry, list[str]] = field(default_factory=dict)
    counters: Counters | None = None
    type_round: TypeRound | None = None
    purge_round: PurgeRound | None = None
    _rows: dict[int, list[EntityRow]] = field(default_factory=dict)

    def decide(self, unit: EntityUnit, stamp: Stamp) -> Decision:
        """See ``committer.Round``."""
        if isinstance(unit, TypeChange):
            assert self.type_round is not None
            return self.type_round.decide(unit, stamp)
        if isinstance(unit, Purge):
            assert self.purge_round is not None
            return self.purge_round.decide(unit, stamp)
        if self.unread:
            self._check_read(unit)
        try:
            if unit.preconditions:
                for condition in unit.preconditions:
                    # A misspelt type has no entities: that one does not exist would hold, and say nothing.
                    if condition.key.type not in self.types:
                        raise missing_type(condition.key.type)
                preconditions.check(unit.preconditions, self.entities)
            effects = [self._effect(unit, place, write, stamp) for place, write in enumerate(unit.writes)]
            if not all(map(self._concerns_nobody, effects)):
                effects += self._consequences(unit, effects, stamp)
                self._check_references(unit, effects)
                self._check_unique(unit, effects)
        except (InvalidArgument, NotFound, AlreadyExists) as failure:
            if not unit.remembers_refusal:
                raise
            refusal = encode_refusal(failure)
            return Decision((), refusal, refusal)
        assert self.counters is not None
        rows, changes, deltas = [], [], []
        for effect in effects:
            if effect.row is not None and effect.change is not None:
                rows.append(effect.row)
                changes.append(effect.change)
                deltas.append(self._delta(effect.row, effect.change, unit.actor))
        counted = self.counters.count(unit, stamp.epoch, deltas, stamp.commit_time, stamp.revision)
        self._rows[id(unit)] = rows
        outcomes = [effect.outcome for effect in effects[: len(unit.writes)]]
        return Decision(changes, encode_answer(outcomes), outcomes, partial(self.counters.add, unit, counted))

    def writes(self, accepted: Sequence[tuple[EntityUnit, Stamp]]) -> Sequence[Statement]:
        """See ``committer.Round``."""
        rows = [row for unit, _ in accepted for row in self._rows.get(id(unit), ())]
        statements = store.write_entities(self.namespace, rows, self._building()) if rows else []
        if rows:
            assert self.counters is not None
            writes = [unit for unit, _ in accepted if isinstance(unit, Write)]
            statements += self.counters.statements(writes, accepted[-1][1].commit_time)
        if self.type_round is not None:
            statements += self.type_round.writes(unit for unit, _ in accepted if isinstance(unit, TypeChange))
        if self.purge_round is not None:
            statements += self.purge_round.writes(unit for unit, _ in accepted if isinstance(unit, Purge))
        return statements

    def _building(self) -> frozenset[int]:
        """Indexes that are being filled."""
        return frozenset().union(*(compiled.building for compiled in self.types.values()))

    def _check_read(self, unit: Write) -> None:
        keys = {*(write.mutation.key for write in unit.writes), *(one.key for one in unit.preconditions)}
        if self.unread.isdisjoint(keys | unit.claim.touched):
            return
        if not self.alone:
            raise TooMuch
        message = f"the entities of the unit take more than {MAX_READ_BYTES} bytes; split it"
        raise refusal_of(unit.field, "UNIT_TOO_LARGE", message, limit=str(MAX_READ_BYTES))

    def _effect(self, unit: Write, place: int, write: Prepared, stamp: Stamp) -> Effect:
        key = write.mutation.key
        try:
            if (compiled := self.types.get(key.type)) is None:
                raise missing_type(key.type)
            return decide(write, self.entities.get(key), compiled, unit.actor, stamp)
        except Error as failure:
            if unit.indexed and not isinstance(failure, Stale):
                name_mutation(failure, place)
            raise

    def _concerns_nobody(self, effect: Effect) -> bool:
        """Whether no other entity has anything to do with *effect*."""
        row = effect.row
        if row is None:
            return True
        return row.delete_time is None and not effect.taken and not self.types[row.key.type].references

    def _consequences(self, unit: Write, effects: Sequence[Effect], stamp: Stamp) -> list[Effect]:
        """What the removals among *effects* do to entities that refer to what is removed."""
        removed = {
            effect.row.key for effect in effects if effect.row is not None and effect.row.delete_time is not None
        }
        if not removed or not any(self.types[key.type].type.referrers for key in removed):
            return []
        if unit.claim.refusal is not None:
            as_they_were = {type_id: compiled.generation for type_id, compiled in unit.claim.types.items()}
            if as_they_were != {id_: self.types[id_].generation for id_ in as_they_were if id_ in self.types}:
                raise Stale
            raise unit.claim.refusal
        # An entity that turned out not to be due is only another referrer.
        written = {
            write.mutation.key: effect
            for write, effect in zip(unit.writes, effects, strict=True)
            if effect.row is not None or write.mutation.kind != Kind.EXPIRE
        }
        found = cascades.follow(removed, written.keys(), self.types, self.referrers)
        if not found.complete:
            raise Stale
        found.check()
        if not found.touched <= unit.claim.touched | {write.mutation.key for write in unit.writes}:
            raise Stale
        for hold in found.written:
            row, entry = written[hold.referrer].row, (hold.reference.index_id, encode(hold.target.id))
            if row is None or (False, entry) not in row.removed:
                raise _not_found(hold.reference, hold.target)
        deletions = [
            Prepared(Mutation(Kind.DELETE, entity_name(self.namespace, key), key, "mutations")) for key in found.deleted
        ]
        return [
            *(self._decided(unit, deletion, stamp) for deletion in deletions),
            *(self._cleared(unit, key, holds, stamp) for key, holds in found.cleared.items()),
        ]

    def _cleared(self, unit: Write, key: EntityKey, holds: Sequence[Hold], stamp: Stamp) -> Effect:
        compiled = self.types[key.type]
        data = cascades.cleared(self.entities[key].data, holds, compiled.field_types)
        name, field_ = entity_name(self.namespace, key), holds[0].reference.field
        mutation = Mutation(Kind.UPDATE, name, key, "mutations", data, canonical(data), EVERYTHING)
        try:
            return self._decided(unit, Prepared(mutation), stamp)
        except InvalidArgument as failure:
            raise FailedPrecondition(
                "REFERENCED",
                f"{name} refers to it by {field_}, and its type does not let it be without: {failure.message}",
                type=key.type,
                field=field_,
                count="1",
            ) from None

    def _decided(self, unit: Write, prepared: Prepared, stamp: Stamp) -> Effect:
        key = prepared.mutation.key
        return decide(prepared, self.entities.get(key), self.types[key.type], unit.actor, stamp)

    def _check_references(self, unit: Write, effects: Sequence[Effect]) -> None:
        """Refuse a unit that refers anew to what is not live at its end."""
        rows: dict[EntityKey, EntityRow] = {}
        for place, effect in enumerate(effects):
            if effect.row is None or not (references := self.types[effect.row.key.type].references):
                continue
            rows = rows or {effect.row.key: effect.row for effect in effects if effect.row is not None}
            for deleted, entry in effect.row.added:
                if deleted or (reference := references.get(entry[0])) is None:
                    continue
                target = EntityKey(reference.type, id_in(entry[1]))
                if target not in unit.targets:
                    raise Stale
                row = rows.get(target)
                if target not in self.live if row is None else row.delete_time is not None:
                    failure = _not_found(reference, target)
                    if unit.indexed:
                        name_mutation(failure, place)
                    raise failure

    def _delta(self, row: EntityRow, change: Change, actor: str) -> Delta:
        """What an effect does to the counts."""
        current = self.entities.get(row.key)
        if current is None:
            return Delta(row.key.type, 1, len(row.message))
        mine = current.revision if change.kind == UPDATED and last_changed_by(current.message, actor) else 0
        return Delta(
            row.key.type,
            (row.delete_time is None) - current.live,
            len(row.message) - len(current.message),
            changed=change.kind in (UPDATED, DELETED),
            deleted=change.kind == DELETED,
            recount=mine,
        )

    def _check_unique(self, unit: Write, effects: Sequence[Effect]) -> None:
        """Refuse a unit that leaves two live entities with one unique entry; within it, only the end counts."""
        freed = {
            (entry, effect.row.key.id)
            for effect in effects
            if effect.row is not None
            for deleted, entry in effect.row.removed
            if not deleted
        }
        taken: set[Entry] = set()
        for place, effect in enumerate(effects):
            for entry in effect.taken:
                if entry not in unit.unique:
                    raise Stale
                assert effect.row is not None
                others = self.holders.get(entry, set()) - {effect.row.key.id}
                if entry in taken or any((entry, other) not in freed for other in others):
                    failure = _taken(self.types[effect.row.key.type], entry)
                    if unit.indexed and place < len(unit.writes):
                        name_mutation(failure, place)
                    raise failure
                taken.add(entry)


def name_mutation(failure: Error, place: int) -> None:
    """Say in *failure* which mutation of a unit it is about."""
    failure.metadata.setdefault("mutation", str(place))


def _not_found(reference: Reference, target: EntityKey) -> FailedPrecondition:
    return FailedPrecondition(
        "REFERENCE_NOT_FOUND",
        f"{reference.field} refers to {target.id[:200]!r}, which is no live {target.type}",
        type=target.type,
        field=reference.field,
        id=target.id,
    )


def _taken(compiled: CompiledType, entry: Entry) -> AlreadyExists:
    fields = ", ".join(compiled.index(entry[0]).fields)
    return AlreadyExists("UNIQUE_VIOLATION", f"another entity has the same {fields}", fields=fields)


def encode_answer(outcomes: Sequence[Outcome]) -> bytes:
    """What is kept to answer a repeated request: the results of ``TransactResponse``."""
    results = []
    for name, revision, _, made in outcomes:
        raw = name.encode()
        etag = etag_of(revision).encode() if revision else b""
        result = b"\x0a%b%b%b\x18%c" % (
            wire.varint(len(raw)),
            raw,
            b"\x12%c%b" % (len(etag), etag) if etag else b"",
            made,
        )
        results.append(b"\x0a%b%b" % (wire.varint(len(result)), result))
    return b"".join(results)


def encode_refusal(failure: Error) -> bytes:
    """What is kept of a refusal that is remembered: told from results by its first byte."""
    status: bytes = status_of_error(failure).SerializeToString()
    return _REFUSAL + status


def refusal_in(answer: bytes) -> bytes:
    """The serialized ``google.rpc.Status`` in an *answer* that is a refusal; else nothing."""
    return answer[1:] if answer[:1] == _REFUSAL else b""
