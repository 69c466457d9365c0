"""What the service stores, and its bytes on the wire."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

import orjson

from services.entity.index_keys import IndexSpec
from services.runtime import wire
from services.runtime.errors import invalid_field
from services.runtime.filters.ast import Path
from services.runtime.wire import JsonObject

MAX_ENTITY_BYTES: Final = 256 * 1024
"""A serialized entity, as a request may make it."""
MAX_STORED_BYTES: Final = MAX_ENTITY_BYTES + 256
"""The same as it is stored: when it is deleted, the time of that and who did it come in, whatever its size."""
MAX_ANSWER_BYTES: Final = 3 * 2**20
"""Where a page or a batch of reads ends."""
_ORDERED, _FULL_TEXT = 1, 2  # strandline.entity.v1.Index.Kind
_NO_PROGRESS: Final[Mapping[int, tuple[int, int]]] = {}

_NAMESPACE = r"namespaces/(?P<namespace>[a-z][a-z0-9-]{1,62})"
_TYPE = rf"{_NAMESPACE}/types/(?P<type>[a-z][a-z0-9_]{{0,62}})"
_ENTITY_ID = r"[A-Za-z0-9][A-Za-z0-9._~-]{0,127}"
_NAMESPACE_NAME = re.compile(_NAMESPACE)
_TYPE_NAME = re.compile(_TYPE)
_ENTITY_NAME = re.compile(rf"{_TYPE}/entities/(?P<id>{_ENTITY_ID})")
_ID = re.compile(_ENTITY_ID)


class EntityKey(NamedTuple):
    """An entity inside its namespace."""

    type: str
    id: str


class IndexState(IntEnum):
    """As in the proto."""

    BUILDING = 1
    READY = 2
    FAILED = 3


@dataclass(frozen=True, slots=True)
class Index:
    """A declared index. *id* is never used again; *fields* are as they were written."""

    id: int
    fields: tuple[str, ...]
    spec: IndexSpec
    state: IndexState
    failure: str = ""
    failed_names: tuple[str, ...] = ()


class OnDelete(IntEnum):
    """As in the proto."""

    RESTRICT = 1
    SET_NULL = 2
    CASCADE = 3


@dataclass(frozen=True, slots=True)
class Reference:
    """A field that holds ids of entities of *type*, as it was written, and as a path.

    *index_id* is the index by which the entities that refer to one are found; nobody lists by it.
    """

    index_id: int
    field: str
    path: Path
    type: str
    on_delete: OnDelete
    state: IndexState
    failure: str = ""
    failed_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EntityType:
    """A type as it is stored. ``generation`` differs between any two states of any types.

    ``referrers`` are the types that refer to this one; they are no part of what it is to clients.
    """

    id: str
    generation: int
    schema_version: int
    compatibility: int
    schema: JsonObject
    indexes: tuple[Index, ...]
    revision: int
    create_time: datetime
    update_time: datetime
    references: tuple[Reference, ...] = ()
    referrers: tuple[str, ...] = ()

    @property
    def etag(self) -> str:
        return etag_of(self.revision)

    @property
    def index_ids(self) -> set[int]:
        """Of everything that has entries: the indexes and the references."""
        return {*(index.id for index in self.indexes), *(reference.index_id for reference in self.references)}


@dataclass(frozen=True, slots=True)
class StoredEntity:
    """An entity as it is stored: ``json`` is its data, ``message`` the whole serialized Entity."""

    uid: str
    revision: int
    create_time: datetime
    delete_time: datetime | None
    expire_time: datetime | None
    created_by: str
    json: str
    message: bytes

    @property
    def live(self) -> bool:
        return self.delete_time is None

    @property
    def data(self) -> JsonObject:
        """Decoded anew each time: the caller may change it."""
        decoded: JsonObject = orjson.loads(self.json)
        return decoded


def parse_namespace(name: str, field: str) -> str:
    """The id in ``namespaces/{namespace}``, or ``INVALID_FIELD`` for *field*."""
    match = _NAMESPACE_NAME.fullmatch(name)
    if match is None:
        raise invalid_field(field, "must be namespaces/{namespace}")
    return match["namespace"]


def parse_type_name(name: str, field: str) -> str:
    """The type's id in ``namespaces/{namespace}/types/{type}``, or ``INVALID_FIELD`` for *field*."""
    match = _TYPE_NAME.fullmatch(name)
    if match is None:
        raise invalid_field(field, "must be namespaces/{namespace}/types/{type}")
    return match["type"]


def parse_entity_name(name: str, namespace: str, field: str) -> EntityKey:
    """Type and id in a full name that lies in *namespace*, or ``INVALID_FIELD`` for *field*."""
    match = _ENTITY_NAME.fullmatch(name)
    if match is None:
        raise invalid_field(field, "must be namespaces/{namespace}/types/{type}/entities/{entity}")
    lies_in, type_id, entity_id = match.groups()
    if lies_in != namespace:
        raise invalid_field(field, f"must lie in namespaces/{namespace}")
    return EntityKey(type_id, entity_id)


def check_entity_id(entity_id: str, field: str) -> str:
    """*entity_id* if it is well-formed, else ``INVALID_FIELD`` for *field*."""
    if not _ID.fullmatch(entity_id):
        raise invalid_field(field, f"must match {_ENTITY_ID}")
    return entity_id


def entity_name(namespace: str, key: EntityKey) -> str:
    return f"namespaces/{namespace}/types/{key.type}/entities/{key.id}"


def type_name(namespace: str, type_id: str) -> str:
    return f"namespaces/{namespace}/types/{type_id}"


def etag_of(revision: int) -> str:
    return f'"{revision}"'


def encode_entity(
    name: str,
    type_id: str,
    *,
    uid: str,
    struct: bytes,
    revision: int,
    create_time: datetime,
    update_time: datetime,
    delete_time: datetime | None,
    expire_time: datetime | None,
    created_by: str,
    updated_by: str,
) -> bytes:
    """Serialize ``strandline.entity.v1.Entity``; *struct* is its data, serialized."""
    raw_name, raw_uid, etag = name.encode(), uid.encode(), b'"%d"' % revision
    created = wire.timestamp(7, create_time)
    # Often the same moment: then only the field number differs.
    updated = b"\x42" + created[1:] if update_time == create_time else wire.timestamp(8, update_time)
    return b"".join(
        (
            b"\x0a",
            wire.varint(len(raw_name)),
            raw_name,
            _text_of_many(2, type_id),
            b"\x1a%c%b\x22" % (len(raw_uid), raw_uid),
            wire.varint(len(struct)),
            struct,
            b"\x2a%c%b\x30" % (len(etag), etag),
            wire.varint(revision),
            created,
            updated,
            wire.timestamp(9, delete_time) if delete_time is not None else b"",
            wire.timestamp(10, expire_time) if expire_time is not None else b"",
            _text_of_many(11, created_by),
            _text_of_many(12, updated_by),
        )
    )


_text_of_many = lru_cache(maxsize=2048)(wire.text)  # types and principals: few, and short


def last_changed_by(message: bytes, actor: str) -> bool:
    """Whether *actor* made the version that ``encode_entity`` serialized to *message*: it ends with who did."""
    return message.endswith(wire.text(12, actor))


def encode_type(namespace: str, type_: EntityType, progress: Mapping[int, tuple[int, int]] = _NO_PROGRESS) -> bytes:
    """Serialize ``strandline.entity.v1.EntityType``.

    *progress*: entities done and to be done of those indexes, by id, that are being filled.
    """
    return b"".join(
        (
            wire.text(1, type_name(namespace, type_.id)),
            wire.delimited(2, wire.encode_struct(type_.schema)),
            wire.integer(3, type_.compatibility),
            *(wire.delimited(4, _encode_index(index, *progress.get(index.id, (0, 0)))) for index in type_.indexes),
            wire.integer(5, type_.schema_version),
            wire.text(6, type_.etag),
            wire.integer(7, type_.revision),
            wire.timestamp(8, type_.create_time),
            wire.timestamp(9, type_.update_time),
            *(wire.delimited(10, _encode_reference(reference)) for reference in type_.references),
        )
    )


def _encode_reference(reference: Reference) -> bytes:
    return b"".join(
        (
            wire.text(1, reference.field),
            wire.text(2, reference.type),
            wire.integer(3, reference.on_delete),
            wire.integer(4, reference.state),
            wire.text(5, reference.failure),
            _texts(6, reference.failed_names),
        )
    )


def _encode_index(index: Index, indexed: int = 0, estimated_total: int = 0) -> bytes:
    return b"".join(
        (
            _texts(1, index.fields),
            wire.integer(2, int(index.spec.unique)),
            wire.integer(3, index.state),
            wire.text(4, index.failure),
            _texts(5, index.failed_names),
            wire.integer(6, _FULL_TEXT if index.spec.full_text else _ORDERED),
            wire.integer(7, indexed),
            wire.integer(8, estimated_total),
        )
    )


def _texts(field: int, values: Sequence[str]) -> bytes:
    return b"".join(wire.delimited(field, value.encode()) for value in values)
