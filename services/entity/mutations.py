"""Requests to mutations: names, content, masks and the fingerprint by which a repeated request is known.

What is refused here can never work, whatever the state of the namespace.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, NamedTuple

from strandline.entity.v1 import entity_pb2, entity_service_pb2

from services.entity import fast_json
from services.entity.content import canonical, merge
from services.entity.model import EntityKey, parse_entity_name
from services.entity.operations import FieldOperation, apply, parse_operations
from services.entity.preconditions import Precondition
from services.runtime import wire
from services.runtime.errors import invalid_field
from services.runtime.filters.ast import Path
from services.runtime.masks import EVERYTHING, parse_mask
from services.runtime.wire import JsonObject


class Kind(IntEnum):
    """What a mutation does."""

    CREATE = 1
    UPDATE = 2
    DELETE = 3
    UNDELETE = 4
    EXPIRE = 5
    ROLLBACK = 6


class Expiry(NamedTuple):
    """When an entity is to expire; None: never. ``field`` is where a caller wrote it."""

    time: datetime | None
    field: str


class Mutation(NamedTuple):
    """One write to the entity *name*, which *key* is inside its namespace.

    ``content`` is what create, update and rollback carry, ``json`` its canonical form. ``mask`` names what an update
    takes from it; empty: its top-level keys. ``operations`` apply to what that gives. ``by_if_match`` says where
    ``etag`` came from, because HTTP has a status for that. ``field`` is where the content stands in the request, for
    violations.
    """

    kind: Kind
    name: str
    key: EntityKey
    field: str
    content: JsonObject | None = None
    json: bytes = b""
    mask: tuple[Path, ...] = ()
    etag: str = ""
    by_if_match: bool = False
    allow_missing: bool = False
    named: bool = True
    """Whether the caller chose the name; otherwise it is no part of the request's identity."""
    operations: tuple[FieldOperation, ...] = ()
    expiry: Expiry | None = None
    """None: what it is stays as it is."""

    @property
    def replaces(self) -> bool:
        """Whether the new content is ``content``, whatever was there."""
        return self.kind == Kind.CREATE or self.mask == EVERYTHING

    @property
    def removes(self) -> bool:
        """Whether a live entity is to be none afterwards."""
        return self.kind in (Kind.DELETE, Kind.EXPIRE)

    @property
    def may_end_or_begin_life(self) -> bool:
        return self.kind != Kind.UPDATE or self.allow_missing

    def applied(self, stored: JsonObject | None) -> JsonObject:
        """What a create or update makes of the *stored* content; None: there is none.

        Raises:
            InvalidArgument: an operation does not fit.
        """
        assert self.content is not None, "creates and updates carry content"
        if stored is None or self.replaces:
            data = self.content
        else:
            data = merge(stored, self.content, self.mask) if self.mask else {**stored, **self.content}
        return apply(data, self.operations) if self.operations else data


def parse_mutation(message: entity_pb2.Mutation, namespace: str, field: str) -> Mutation:
    """The mutation in *message*, which must lie in *namespace*.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` below *field*.
    """
    operation = message.WhichOneof("operation")
    if operation == "create":
        create = message.create
        field = f"{field}.create"
        content, field_of_content = _content(create, field)
        key = parse_entity_name(create.name, namespace, f"{field}.name")
        return creation(create.name, key, content, field_of_content, expiry=given_expiry(create, field))
    if operation == "update":
        update = message.update
        field = f"{field}.update"
        mask = parse_update_mask(update.update_mask, f"{field}.update_mask")
        if not mask.takes_content or only_operates(update, update.WhichOneof("content") is not None):
            content, field_of_content = {}, field
        else:
            content, field_of_content = _content(update, field)
        return replacement(
            update.name,
            parse_entity_name(update.name, namespace, f"{field}.name"),
            content,
            field_of_content,
            mask=mask.paths,
            etag=update.etag,
            allow_missing=update.allow_missing,
            operations=update.operations,
            field_of_operations=f"{field}.operations",
            expiry=given_expiry(update, field, masked=mask.takes_expiry),
        )
    if operation == "delete":
        delete = message.delete
        key = parse_entity_name(delete.name, namespace, f"{field}.delete.name")
        return Mutation(Kind.DELETE, delete.name, key, field, etag=delete.etag, allow_missing=delete.allow_missing)
    if operation == "undelete":
        name = message.undelete.name
        return Mutation(Kind.UNDELETE, name, parse_entity_name(name, namespace, f"{field}.undelete.name"), field)
    raise invalid_field(field, "must say create, update, delete or undelete")


def creation(
    name: str, key: EntityKey, content: JsonObject, field: str, *, named: bool = True, expiry: Expiry | None = None
) -> Mutation:
    """Make a new entity of *content*."""
    return Mutation(Kind.CREATE, name, key, field, content, canonical(content), named=named, expiry=expiry)


def replacement(
    name: str,
    key: EntityKey,
    content: JsonObject,
    field: str,
    *,
    mask: tuple[Path, ...],
    etag: str,
    by_if_match: bool = False,
    allow_missing: bool = False,
    operations: Sequence[entity_pb2.FieldOperation] = (),
    field_of_operations: str = "operations",
    expiry: Expiry | None = None,
) -> Mutation:
    """Take the paths of *mask* from *content* (no mask: its top-level keys), then apply *operations*."""
    parsed: tuple[FieldOperation, ...] = ()
    if operations:
        parsed = parse_operations(operations, mask or [(key,) for key in content], field_of_operations)
    return Mutation(
        Kind.UPDATE,
        name,
        key,
        field,
        content,
        canonical(content),
        mask,
        etag,
        by_if_match,
        allow_missing,
        operations=parsed,
        expiry=expiry,
    )


def only_operates(update: entity_pb2.UpdateMutation | entity_service_pb2.UpdateEntityRequest, content: bool) -> bool:
    """Whether *update*, which has *content* or not, needs none: it consists of operations."""
    return not content and bool(update.operations) and not update.update_mask


def restoration(name: str, key: EntityKey, then: bytes, *, etag: str, by_if_match: bool) -> Mutation:
    """Take all content from *then*, an earlier version of the entity, serialized; undelete it if it is deleted."""
    content = wire.decode_struct(entity_pb2.Entity.FromString(then).data)
    json = canonical(content)
    return Mutation(Kind.ROLLBACK, name, key, "to_revision", content, json, EVERYTHING, etag, by_if_match)


def _content(message: Any, field: str) -> tuple[JsonObject, str]:
    """The content of a create or update message, from whichever of its two forms, and the field it was in."""
    form = message.WhichOneof("content")
    if form == "data_json":
        return fast_json.parse_json(message.data_json, f"{field}.data_json"), f"{field}.data_json"
    if form == "data":
        return wire.decode_struct(message.data, f"{field}.data"), f"{field}.data"
    raise invalid_field(field, "needs data or data_json")


class UpdateMask(NamedTuple):
    """What an update takes: the *paths* inside ``data``, anything of the content at all, the expiry even if absent."""

    paths: tuple[Path, ...]
    takes_content: bool = True
    takes_expiry: bool = False


def parse_update_mask(mask: Sequence[str], field: str) -> UpdateMask:
    """*mask* as ``parse_mask`` reads it, which may hold ``expire_time`` (in JSON ``expireTime``) too.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` for *field*.
    """
    inside = [text for text in mask if text not in ("expire_time", "expireTime")]
    paths = parse_mask(inside, field)
    return UpdateMask(paths, bool(inside) or not mask, "*" in mask or len(inside) < len(mask))


def given_expiry(message: Any, field: str, *, masked: bool = False) -> Expiry | None:
    """The ``expire_time`` of *message*, which stands at *field*; when it is absent: never if *masked*, else None.

    Raises:
        InvalidArgument: ``INVALID_FIELD``, it is no time.
    """
    field = f"{field}.expire_time"
    if not message.HasField("expire_time"):
        return Expiry(None, field) if masked else None
    try:
        return Expiry(message.expire_time.ToDatetime(tzinfo=UTC), field)
    except (ValueError, OverflowError):
        raise invalid_field(field, "is no time between the years 1 and 9999") from None


def fingerprint(mutations: Sequence[Mutation], preconditions: Sequence[Precondition] = ()) -> bytes:
    """16 bytes that are equal for requests that ask for the same: names, operations and values, not wire bytes."""
    parts: list[bytes] = []
    for mutation in mutations:
        name = mutation.name if mutation.named else mutation.key.type
        rest = (int(mutation.kind), name, mutation.etag, mutation.allow_missing, mutation.mask, len(mutation.json))
        parts += (repr(rest).encode(), mutation.json)
        for path, operator, operand, _ in mutation.operations:
            parts.append(repr((path, operator.value, canonical(operand))).encode())
        if mutation.expiry is not None:
            parts.append(str(mutation.expiry.time).encode())
    for condition in preconditions:
        parts.append(repr((condition.name, condition.exists, condition.etag, condition.filter)).encode())
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()
