"""What the service keeps, as values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum

from services.runtime.call import NO_QUOTA, Quota
from services.runtime.errors import invalid_field

SYSTEM = "system"
SERVICE_ACTOR = "service:user"
"""Who did what nobody asked for: ending a misused session, completing a deletion."""

_NAMESPACE_ID = re.compile(r"[a-z][a-z0-9-]{1,62}")
_USER_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Role(IntEnum):
    """Each role includes the ones before it. The numbers are those of the protos."""

    VIEWER = 1
    EDITOR = 2
    OWNER = 3


class EndReason(StrEnum):
    """Why a session was ended."""

    LOGOUT = "logout"
    REFRESH_REUSED = "refresh_reused"


@dataclass(frozen=True, slots=True)
class Namespace:
    """A tenant. ``deleting``: it answers NOT_FOUND, and its id is not free yet."""

    id: str
    epoch: str
    display_name: str
    mass_change_guard: bool
    deleting: bool
    revision: int
    create_time: datetime
    update_time: datetime
    quota: Quota = NO_QUOTA


@dataclass(frozen=True, slots=True)
class Member:
    """The role of one user in one namespace."""

    namespace: str
    user_id: str
    role: Role
    revision: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Session:
    """A signed-in user agent; ``generation`` is that of its newest refresh token, issued at ``rotate_time``."""

    id: str
    user_id: str
    generation: int
    rotate_time: datetime
    expire_time: datetime
    end_reason: EndReason | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """What signing in needs."""

    user_id: str
    password_hash: str
    administrator: bool


@dataclass(frozen=True, slots=True)
class SealedUser:
    """A user as stored: unreadable without the key wrapped in ``wrapped_key``."""

    id: str
    email_index: bytes
    password_hash: str
    email: bytes
    given_name: bytes
    family_name: bytes
    kek_version: int
    wrapped_key: bytes
    administrator: bool = False


def etag(revision: int) -> str:
    """The etag of what was last changed at *revision*."""
    return f'"{revision}"'


def check_namespace_id(namespace_id: str) -> None:
    """INVALID_FIELD unless *namespace_id* may name a tenant."""
    if not _NAMESPACE_ID.fullmatch(namespace_id):
        raise invalid_field("namespace_id", "must match [a-z][a-z0-9-]{1,62}")
    if namespace_id == SYSTEM:
        raise invalid_field("namespace_id", "system is reserved")


def check_user_id(user_id: str, field: str) -> str:
    """*user_id*, if it is a lower-case UUID."""
    if not _USER_ID.fullmatch(user_id):
        raise invalid_field(field, "must be a lower-case UUID")
    return user_id


def check_namespace_name(name: str, field: str) -> str:
    """The id in ``namespaces/{namespace}`` and nothing behind it."""
    collection, _, namespace_id = name.partition("/")
    if collection != "namespaces" or not _NAMESPACE_ID.fullmatch(namespace_id):
        raise invalid_field(field, "must be namespaces/{namespace}")
    return namespace_id


def check_quota_name(name: str, field: str) -> str:
    """The namespace's id in ``namespaces/{namespace}/quota``."""
    namespace, slash, rest = name.rpartition("/")
    if not slash or rest != "quota":
        raise invalid_field(field, "must be namespaces/{namespace}/quota")
    return check_namespace_name(namespace, field)


def check_member_name(name: str, field: str) -> tuple[str, str]:
    """The ids in ``namespaces/{namespace}/members/{user}``."""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "namespaces" or parts[2] != "members" or not _NAMESPACE_ID.fullmatch(parts[1]):
        raise invalid_field(field, "must be namespaces/{namespace}/members/{user}")
    return parts[1], check_user_id(parts[3], field)
