"""What ``system`` holds: entities of the types ``user``, ``namespace``, ``membership`` and ``revocation``; ids only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from strandline.entity.v1.entity_pb2 import Entity

from services.runtime.call import NO_QUOTA
from services.runtime.changelog import CREATED, DELETED, UPDATED, Change
from services.runtime.committer import Stamp
from services.runtime.ids import uuid7
from services.runtime.tokens import REVOCATION_SECONDS
from services.user.model import SYSTEM, Member, Namespace, etag

Key = tuple[str, str]
"""(type, id) of a record."""


def user_key(user_id: str) -> Key:
    return ("user", user_id)


def namespace_key(namespace_id: str) -> Key:
    return ("namespace", namespace_id)


def membership_key(namespace_id: str, user_id: str) -> Key:
    return ("membership", f"{namespace_id}~{user_id}")


def revocation_key(session_id: str) -> Key:
    return ("revocation", session_id)


def user_data() -> dict[str, Any]:
    return {"state": "ACTIVE"}


def namespace_data(namespace: Namespace) -> dict[str, Any]:
    data: dict[str, Any] = {
        "epoch": namespace.epoch,
        "state": "DELETING" if namespace.deleting else "ACTIVE",
        "massChangeGuard": "ON" if namespace.mass_change_guard else "OFF",
    }
    if namespace.quota != NO_QUOTA:
        data["quota"] = {
            "maxEntities": namespace.quota.max_entities,
            "maxBytes": namespace.quota.max_bytes,
            "maxWritesPerSecond": namespace.quota.max_writes_per_second,
        }
    return data


def membership_data(member: Member) -> dict[str, Any]:
    return {"namespace": member.namespace, "user": member.user_id, "role": member.role.name}


def revocation_data(user_id: str, ended_at: datetime) -> dict[str, Any]:
    return {"user": user_id, "expiresAt": int(ended_at.timestamp()) + REVOCATION_SECONDS}


def created(key: Key, data: Mapping[str, Any], actor: str, stamp: Stamp) -> Change:
    """A new record."""
    entity = Entity(uid=uuid7(), created_by=actor)
    entity.create_time.FromDatetime(stamp.commit_time)
    return Change(CREATED, *key, _finished(entity, key, data, actor, stamp))


def updated(key: Key, data: Mapping[str, Any], previous: bytes, actor: str, stamp: Stamp) -> Change:
    """A record whose last version is *previous*, with new data."""
    return Change(UPDATED, *key, _finished(Entity.FromString(previous), key, data, actor, stamp), previous)


def deleted(key: Key, previous: bytes, actor: str, stamp: Stamp) -> Change:
    """A record that is gone; what it held goes with the change, so that readers know what to forget."""
    entity = Entity.FromString(previous)
    entity.delete_time.FromDatetime(stamp.commit_time)
    return Change(DELETED, *key, _finished(entity, key, None, actor, stamp), previous)


def _finished(entity: Entity, key: Key, data: Mapping[str, Any] | None, actor: str, stamp: Stamp) -> bytes:
    entity.type, record_id = key
    entity.name = f"namespaces/{SYSTEM}/types/{entity.type}/entities/{record_id}"
    if data is not None:
        entity.data.Clear()
        entity.data.update(data)
    entity.etag = etag(stamp.revision)
    entity.revision = stamp.revision
    entity.update_time.FromDatetime(stamp.commit_time)
    entity.updated_by = actor
    return entity.SerializeToString(deterministic=True)
