"""Declaring, changing and removing types: units of the same log as the entities, decided under the same lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from services.entity import operation_store, retention_store, type_store
from services.entity.catalog import missing_type
from services.entity.compatibility import Mode
from services.entity.content import canonical
from services.entity.evolution import Judgement, StaleJudgement, check_fields, index_uses, lease_uses
from services.entity.index_keys import IndexSpec, parse_index, parse_plain_field
from services.entity.model import EntityType, Index, IndexState, OnDelete, Reference, encode_type, type_name
from services.entity.operation_store import OperationKey
from services.entity.retention_store import Lease
from services.entity.schemas import field_types, no_field, rules_out
from services.runtime.changelog import SCHEMA_CHANGED, Change
from services.runtime.committer import Decision, Stamp
from services.runtime.database import Row, Statement
from services.runtime.errors import Aborted, AlreadyExists, FailedPrecondition, invalid_field
from services.runtime.filters.ast import Path
from services.runtime.filters.types import ITEMS
from services.runtime.units import Unit
from services.runtime.wire import JsonObject


class TypeOperation(IntEnum):
    """What a change does."""

    CREATE = 1
    UPDATE = 2
    DELETE = 3


@dataclass(frozen=True, slots=True)
class DeclaredIndex:
    """An index as a request writes it."""

    fields: tuple[str, ...]
    unique: bool
    full_text: bool = False


@dataclass(frozen=True, slots=True)
class DeclaredReference:
    """A reference as a request writes it."""

    field: str
    type: str
    on_delete: OnDelete


@dataclass(kw_only=True, eq=False)
class TypeChange(Unit):
    """One change of one type. Of an update, what is None stays as it is.

    ``index_ids`` are for the indexes it makes, and from the end for the references. ``judgement`` is about the
    ``schema`` of an update; where entities may be invalid by that, ``validation`` will say which.
    """

    operation: TypeOperation
    type_id: str
    schema: JsonObject | None = None
    compatibility: int | None = None
    indexes: Sequence[DeclaredIndex] | None = None
    references: Sequence[DeclaredReference] | None = None
    index_ids: Sequence[int] = ()
    etag: str = ""
    by_if_match: bool = False
    judgement: Judgement | None = None
    validation: OperationKey | None = None


@dataclass
class TypeRound:
    """The changes of types in one batch; each touches another type."""

    namespace: str
    rows: Sequence[list[Row]]
    _statements: dict[int, list[Statement]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        type_rows, populated, leases = self.rows
        stored = (type_store.type_of(row) for row in type_rows)
        self._types = {type_.id: type_ for type_ in stored if type_ is not None}
        self._populated = {type_id for type_id, any_, _ in populated if any_}
        self._live = {type_id for type_id, _, live in populated if live}
        self._leases = [Lease(*row) for row in leases]

    @staticmethod
    def reads(namespace: str, changes: Sequence[TypeChange]) -> list[Statement]:
        """What deciding *changes* needs: the rows that a round is made of."""
        type_ids = [change.type_id for change in changes]
        targets = [reference.type for change in changes for reference in change.references or ()]
        return [
            type_store.select_types(namespace, dict.fromkeys((*type_ids, *targets), 0)),
            type_store.select_populated(namespace, type_ids),
            retention_store.select_leases(namespace),
        ]

    def decide(self, change: TypeChange, stamp: Stamp) -> Decision:
        """See ``committer.Round``. The answer is the serialized type: as it is now, or as it was when removed."""
        if change.operation == TypeOperation.CREATE:
            return self._create(change, stamp)
        stored = self._types.get(change.type_id)
        if stored is None:
            raise missing_type(change.type_id)
        if change.etag and change.etag != stored.etag:
            status = 412 if change.by_if_match else None
            raise Aborted(
                "ETAG_MISMATCH",
                "the type has changed since that etag; read it again",
                http_status=status,
                etag=stored.etag,
            )
        if change.operation == TypeOperation.DELETE:
            return self._delete(change, stored)
        return self._update(change, stored, stamp)

    def writes(self, accepted: Iterable[TypeChange]) -> list[Statement]:
        """See ``committer.Round``."""
        return [statement for change in accepted for statement in self._statements[id(change)]]

    def _create(self, change: TypeChange, stamp: Stamp) -> Decision:
        if change.type_id in self._types:
            name = type_name(self.namespace, change.type_id)
            raise AlreadyExists("ALREADY_EXISTS", f"{name} exists", name=name)
        schema = change.schema or {}
        type_ = EntityType(
            id=change.type_id,
            generation=0,
            schema_version=1,
            compatibility=change.compatibility or Mode.BACKWARD,
            schema=schema,
            indexes=self._indexes(change, schema, change.indexes or (), ()),
            revision=stamp.revision,
            create_time=stamp.commit_time,
            update_time=stamp.commit_time,
            references=self._references(change, schema, change.references or (), ()),
        )
        return self._store(change, type_, None)

    def _update(self, change: TypeChange, stored: EntityType, stamp: Stamp) -> Decision:
        compatibility = change.compatibility or stored.compatibility
        schema, version, judgement = stored.schema, stored.schema_version, None
        if change.schema is not None and canonical(change.schema) != canonical(schema):
            judgement = _judgement(change, stored, compatibility)
            schema, version = change.schema, version + 1
        declared = change.indexes
        if declared is None:
            declared = [
                DeclaredIndex(index.fields, index.spec.unique, index.spec.full_text) for index in stored.indexes
            ]
        references = change.references
        if references is None:
            references = [DeclaredReference(one.field, one.type, one.on_delete) for one in stored.references]
        type_ = replace(
            stored,
            schema_version=version,
            compatibility=compatibility,
            schema=schema,
            indexes=self._indexes(change, schema, declared, stored.indexes),
            references=self._references(change, schema, references, stored.references),
        )
        if type_ == stored:
            return Decision((), encode_type(self.namespace, stored))
        if judgement is not None:
            _check_uses(judgement, type_, self._leases)
        decision = self._store(change, replace(type_, revision=stamp.revision, update_time=stamp.commit_time), stored)
        key = change.validation
        if judgement is None or judgement.keeps_old or stored.id not in self._live or key is None:
            return decision
        if change.validate_only:
            return decision  # nothing is stored, so there will be no operation to name
        self._statements[id(change)] += operation_store.begin_validation(key, stored.id, schema)
        return Decision(decision.changes, decision.answer, key.name)

    def _delete(self, change: TypeChange, stored: EntityType) -> Decision:
        if stored.id in self._live:
            raise FailedPrecondition("TYPE_NOT_EMPTY", "the type has entities; delete them first", type=stored.id)
        if others := sorted(set(stored.referrers) - {stored.id}):
            raise FailedPrecondition(
                "TYPE_REFERENCED", f"the type {others[0]} refers to it; remove that first", type=others[0]
            )
        statements = type_store.remove_type(self.namespace, stored.id)
        statements += self._tell_targets(stored.id, stored.references, ())
        if stored.index_ids:
            jobs = [(index_id, True) for index_id in sorted(stored.index_ids)]
            statements.append(type_store.put_jobs(self.namespace, stored.id, jobs))
        self._statements[id(change)] = statements
        previous = encode_type(self.namespace, stored)
        return Decision([Change(SCHEMA_CHANGED, stored.id, "", b"", previous)], previous)

    def _indexes(
        self, change: TypeChange, schema: JsonObject, declared: Sequence[DeclaredIndex], stored: Sequence[Index]
    ) -> tuple[Index, ...]:
        """The declared indexes: those that are there already, and new ones. One that failed is tried again as new."""
        types = field_types(schema)
        # Nothing is written to the type while this is decided, so an index of nothing is complete.
        state = IndexState.BUILDING if change.type_id in self._populated else IndexState.READY
        kept = {(index.fields, index.spec): index for index in stored if index.state != IndexState.FAILED}
        fresh = iter(change.index_ids)
        indexes = []
        for place, index in enumerate(declared):
            # Whether a field is an array is part of the spec: when the schema changes that, the keys change with it.
            spec = parse_index(index.fields, unique=index.unique, full_text=index.full_text, field_types=types)
            known = kept.get((index.fields, spec))
            if known is None and change.indexes is not None:
                _check_fields_of_index(spec, schema, types, f"type.indexes[{place}].fields")
            indexes.append(known or Index(next(fresh), index.fields, spec, state))
        return tuple(indexes)

    def _references(
        self,
        change: TypeChange,
        schema: JsonObject,
        declared: Sequence[DeclaredReference],
        stored: Sequence[Reference],
    ) -> tuple[Reference, ...]:
        """The declared references: those that are there already, and new ones, as with indexes."""
        if not declared:
            return ()
        types = field_types(schema)
        state = IndexState.BUILDING if change.type_id in self._populated else IndexState.READY
        kept = {(one.field, one.type): one for one in stored if one.state != IndexState.FAILED}
        fresh = iter(reversed(change.index_ids))
        references = []
        for place, one in enumerate(declared):
            where = f"type.references[{place}]"
            path = parse_plain_field(one.field, f"{where}.field")
            if not _holds_ids(types, path):
                raise invalid_field(f"{where}.field", "the schema must declare a string there, or an array of strings")
            # Of an update that says nothing of references: a type that is referred to is not removed.
            if change.references is not None and one.type != change.type_id and one.type not in self._types:
                raise invalid_field(f"{where}.type", f"there is no type {one.type}")
            known = kept.get((one.field, one.type))
            if known is not None:
                references.append(replace(known, on_delete=one.on_delete))
            else:
                references.append(Reference(next(fresh), one.field, path, one.type, one.on_delete, state))
        return tuple(references)

    def _tell_targets(self, type_id: str, before: Sequence[Reference], now: Sequence[Reference]) -> list[Statement]:
        """Keep ``referrers`` of the types that *type_id* referred to *before*, and refers to *now*."""
        old, new = {one.type for one in before}, {one.type for one in now}
        return [type_store.put_referrer(self.namespace, type_id, old, new)] if old != new else []

    def _store(self, change: TypeChange, type_: EntityType, stored: EntityType | None) -> Decision:
        statements = [type_store.put_type(self.namespace, type_), type_store.put_schema_version(self.namespace, type_)]
        statements += self._tell_targets(type_.id, stored.references if stored is not None else (), type_.references)
        before = stored.index_ids if stored is not None else set()
        jobs = [(index_id, True) for index_id in sorted(before - type_.index_ids)]
        building = [index.id for index in type_.indexes if index.state == IndexState.BUILDING]
        building += [one.index_id for one in type_.references if one.state == IndexState.BUILDING]
        jobs += [(index_id, False) for index_id in building if index_id not in before]
        if jobs:
            statements.append(type_store.put_jobs(self.namespace, type_.id, jobs))
        self._statements[id(change)] = statements
        message = encode_type(self.namespace, type_)
        previous = encode_type(self.namespace, stored) if stored is not None else b""
        return Decision([Change(SCHEMA_CHANGED, type_.id, "", message, previous)], message)


def _check_fields_of_index(
    spec: IndexSpec, schema: JsonObject, types: Mapping[Path, frozenset[str]], where: str
) -> None:
    """Refuse a new index of a field that *schema* rules out, or whose values could never be in it."""
    for one in spec.fields:
        if rules_out(schema, one.path):
            raise invalid_field(where, no_field(one.path))
        kinds = types.get(one.path)
        if kinds is None or one.array or spec.full_text:
            continue
        if kinds <= {"object", "null"} and "object" in kinds:
            raise invalid_field(where, f"{one} is an object: name a field inside it")
        if one.folded and "string" not in kinds:
            raise invalid_field(where, f"{one}: lower() is for text, the field is {' or '.join(sorted(kinds))}")


def _holds_ids(types: Mapping[Path, frozenset[str]], path: Path) -> bool:
    """Whether a schema whose fields have *types* allows nothing but strings, one or an array, and null at *path*."""
    nothing: frozenset[str] = frozenset()
    kinds = types.get(path, nothing) - {"null"}
    return kinds == {"string"} or (kinds == {"array"} and types.get((*path, ITEMS), nothing) == {"string"})


def _judgement(change: TypeChange, stored: EntityType, compatibility: int) -> Judgement:
    """What was found about the schema of *change*, if that is about what is stored and allows it."""
    found = change.judgement
    if found is None or (found.schema_version, found.mode) != (stored.schema_version, compatibility):
        raise StaleJudgement
    if found.refusal is not None:
        raise found.refusal
    return found


def _check_uses(judgement: Judgement, type_: EntityType, leases: Sequence[Lease]) -> None:
    """Nobody who reads the changed *type_* names a field that the change removes."""
    uses = [*index_uses(type_), *lease_uses(type_.id, leases)]
    if not judgement.asked.issuperset(path for use in uses for path in use.paths):
        raise StaleJudgement
    check_fields(judgement.removed, uses)
