"""What one mutation makes of one entity. Pure: stored state and type in, the new row or a refusal out."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, NamedTuple

from services.entity.content import CompiledType, Entry, Rendered, canonical
from services.entity.model import MAX_ENTITY_BYTES, EntityKey, StoredEntity, encode_entity, etag_of
from services.entity.mutations import Kind, Mutation
from services.entity.store import EntityRow
from services.runtime import wire
from services.runtime.changelog import CREATED, DELETED, EXPIRED, UNDELETED, UPDATED, Change
from services.runtime.committer import Stamp
from services.runtime.errors import Aborted, AlreadyExists, Error, NotFound, invalid_field, refusal_of
from services.runtime.ids import uuid7
from services.runtime.wire import JsonObject

_REMOVALS: Final = (DELETED, EXPIRED)
_NO_ENTRIES: Final[frozenset[Entry]] = frozenset()


@dataclass(slots=True)
class Prepared:
    """A mutation with what could be worked out before the lock.

    ``rendered`` is the content as it is if nothing is merged into it, for one generation of the type; ``failure`` says
    why that generation refuses it. ``unique`` are the unique entries that the mutation is expected to take, ``targets``
    the entities it may come to refer to: only those are looked up under the lock.
    """

    mutation: Mutation
    rendered: Rendered | None = None
    failure: Error | None = None
    refused_by: int = 0
    unique: tuple[Entry, ...] = ()
    targets: frozenset[EntityKey] = frozenset()


class Made(IntEnum):
    """What a mutation made of its entity; as ``Mutation.Outcome`` in the proto."""

    CREATED = 1
    UPDATED = 2
    UNCHANGED = 3
    DELETED = 4
    UNDELETED = 5


_MADE: Final = {
    CREATED: Made.CREATED,
    UPDATED: Made.UPDATED,
    DELETED: Made.DELETED,
    UNDELETED: Made.UNDELETED,
    EXPIRED: Made.DELETED,
}


class Outcome(NamedTuple):
    """What a mutation left: the entity's name, its revision and serialized form; without them if there is none."""

    name: str
    revision: int = 0
    message: bytes = b""
    made: int = Made.UNCHANGED


class Effect(NamedTuple):
    """What a mutation changes, if it changes anything."""

    outcome: Outcome
    change: Change | None = None
    row: EntityRow | None = None
    taken: tuple[Entry, ...] = ()


class Stale(Aborted):
    """What was prepared no longer fits what is stored: prepare it again. No caller ever sees this."""

    def __init__(self) -> None:
        super().__init__("STALE", "prepare again")


def decide(prepared: Prepared, current: StoredEntity | None, type_: CompiledType, actor: str, stamp: Stamp) -> Effect:
    """The effect of a mutation at *stamp*.

    Raises:
        Error: it is refused.
    """
    mutation = prepared.mutation
    name = mutation.name
    if mutation.kind == Kind.EXPIRE and not _is_due(current, stamp):
        return Effect(Outcome(name))  # meanwhile deleted, or given more time
    stored = current.data if current is not None else {}
    step = _Step(prepared, name, current, stored, type_, actor, stamp)
    if mutation.kind == Kind.CREATE:
        if current is not None and current.live:
            raise AlreadyExists("ALREADY_EXISTS", f"{name} exists", name=name)
        return step.create()
    if mutation.kind == Kind.UNDELETE:
        return step.undelete(_existing(current, name))
    if mutation.kind == Kind.ROLLBACK:
        _check_etag(mutation, _existing(current, name))
        return step.roll_back(_existing(current, name))
    if current is None or not current.live:
        if not mutation.allow_missing:
            raise NotFound("NOT_FOUND", f"there is no {name}", name=name)
        if mutation.kind == Kind.DELETE:
            return Effect(Outcome(name))
        _check_etag(mutation, None)
        return step.create()
    _check_etag(mutation, current)
    if mutation.kind == Kind.UPDATE:
        return step.update(current)
    return step.delete(current, EXPIRED if mutation.kind == Kind.EXPIRE else DELETED)


@dataclass(slots=True)
class _Step:
    prepared: Prepared
    name: str
    current: StoredEntity | None
    stored: JsonObject
    type: CompiledType
    actor: str
    stamp: Stamp

    def create(self) -> Effect:
        mutation = self.prepared.mutation
        content = mutation.applied(None)
        rendered = self._render(content, canonical(content) if mutation.operations else mutation.json)
        # A deleted entity gives its name away: this is a new life, with nothing before it.
        return self._store(
            CREATED,
            rendered,
            uuid7(),
            self.stamp.commit_time,
            self.actor,
            expire_time=self._expire_time(None),
            previous=b"",
        )

    def update(self, current: StoredEntity) -> Effect:
        mutation = self.prepared.mutation
        data = mutation.applied(self.stored)
        json = mutation.json if mutation.replaces else canonical(data)
        expire_time = self._expire_time(current.expire_time)
        if json == canonical(self.stored) and expire_time == current.expire_time:
            return Effect(Outcome(self.name, current.revision, current.message))
        rendered = self._render(data, json)
        return self._replace(UPDATED, rendered, current, expire_time)

    def delete(self, current: StoredEntity, kind: int) -> Effect:
        entries = self.type.stored_entries(self.stored)
        rendered = Rendered(self.type.generation, current.json.encode(), wire.encode_struct(self.stored), entries, ())
        return self._replace(kind, rendered, current, current.expire_time)

    def undelete(self, current: StoredEntity) -> Effect:
        if current.live:
            raise AlreadyExists("ALREADY_EXISTS", f"{self.name} is not deleted", name=self.name)
        _check_etag(self.prepared.mutation, current)
        return self._bring_back(current, self._render(self.stored, canonical(self.stored)))

    def roll_back(self, current: StoredEntity) -> Effect:
        if current.live:
            return self.update(current)
        mutation = self.prepared.mutation
        return self._bring_back(current, self._render(mutation.applied(None), mutation.json))

    def _bring_back(self, current: StoredEntity, rendered: Rendered) -> Effect:
        # It lives again, so a time that has passed means nothing any more.
        passed = current.expire_time is not None and current.expire_time <= self.stamp.commit_time
        return self._replace(UNDELETED, rendered, current, None if passed else current.expire_time)

    def _expire_time(self, current: datetime | None) -> datetime | None:
        expiry = self.prepared.mutation.expiry
        if expiry is None:
            return current
        if expiry.time is not None and expiry.time <= self.stamp.commit_time and expiry.time != current:
            raise invalid_field(expiry.field, "must lie in the future")
        return expiry.time

    def _render(self, data: JsonObject, json: bytes) -> Rendered:
        prepared = self.prepared
        if json is prepared.mutation.json or json == prepared.mutation.json:
            if prepared.rendered is not None and prepared.rendered.generation == self.type.generation:
                return prepared.rendered
            if prepared.failure is not None and prepared.refused_by == self.type.generation:
                raise prepared.failure
        return self.type.render(data, json, prepared.mutation.field)

    def _replace(self, kind: int, rendered: Rendered, current: StoredEntity, expire_time: datetime | None) -> Effect:
        return self._store(
            kind,
            rendered,
            current.uid,
            current.create_time,
            current.created_by,
            expire_time=expire_time,
            previous=current.message,
        )

    def _store(
        self,
        kind: int,
        rendered: Rendered,
        uid: str,
        create_time: datetime,
        created_by: str,
        *,
        expire_time: datetime | None,
        previous: bytes,
    ) -> Effect:
        stamp, key = self.stamp, self.prepared.mutation.key
        delete_time = stamp.commit_time if kind in _REMOVALS else None
        message = encode_entity(
            self.name,
            key.type,
            uid=uid,
            struct=rendered.struct,
            revision=stamp.revision,
            create_time=create_time,
            update_time=stamp.commit_time,
            delete_time=delete_time,
            expire_time=expire_time,
            created_by=created_by,
            updated_by=self.actor,
        )
        if len(message) > MAX_ENTITY_BYTES and kind in (CREATED, UPDATED):
            problem = f"the entity takes {len(message)} bytes, at most {MAX_ENTITY_BYTES} are allowed"
            raise refusal_of(self.prepared.mutation.field, "ENTITY_TOO_LARGE", problem, limit=str(MAX_ENTITY_BYTES))
        removed, added = self._moved(rendered.entries, deleted=delete_time is not None)
        row = EntityRow(
            key,
            uid,
            stamp.revision,
            create_time,
            delete_time,
            expire_time,
            created_by,
            rendered.json,
            message,
            self._due() != (expire_time if delete_time is None else None),
            self.current is None,
            removed,
            added,
        )
        return Effect(
            Outcome(self.name, stamp.revision, message, _MADE[kind]),
            Change(kind, key.type, key.id, message, previous),
            row,
            () if kind in _REMOVALS else rendered.unique,
        )

    def _due(self) -> datetime | None:
        """When the entity as it is stored will expire."""
        return self.current.expire_time if self.current is not None and self.current.live else None

    def _moved(
        self, entries: frozenset[Entry], *, deleted: bool
    ) -> tuple[Collection[tuple[bool, Entry]], Collection[tuple[bool, Entry]]]:
        """The (deleted, entry) pairs that the entity leaves, and those that it takes."""
        if self.current is None:
            return (), [(deleted, entry) for entry in entries]
        stored = self.type.stored_entries(self.stored)
        was_deleted = not self.current.live
        kept = stored & entries if was_deleted == deleted else _NO_ENTRIES
        return (
            [(was_deleted, entry) for entry in stored - kept],
            [(deleted, entry) for entry in entries - kept],
        )


def _is_due(current: StoredEntity | None, stamp: Stamp) -> bool:
    if current is None or not current.live or current.expire_time is None:
        return False
    return current.expire_time <= stamp.commit_time


def _existing(current: StoredEntity | None, name: str) -> StoredEntity:
    if current is None:
        raise NotFound("NOT_FOUND", f"there is no {name}", name=name)
    return current


def _check_etag(mutation: Mutation, current: StoredEntity | None) -> None:
    """Refuse a write that was made for another version; *current* None: for none."""
    etag = etag_of(current.revision) if current is not None else ""
    if mutation.etag and mutation.etag != etag:
        raise Aborted(
            "ETAG_MISMATCH",
            "the entity has changed since that etag; read it again",
            http_status=412 if mutation.by_if_match else None,
            etag=etag,
        )
