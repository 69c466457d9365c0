"""What the handlers of both services have in common: where a call may go, its request id, its answer."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from services.entity.history import AsOf
from services.entity.limits import Confirmations, Limits
from services.entity.writes import Writing
from services.runtime import wire
from services.runtime.call import Call, Namespace
from services.runtime.errors import NotFound, invalid_field
from services.runtime.rules import time_of


class WriteRequest(Protocol):
    """What every request of a write has."""

    @property
    def request_id(self) -> str: ...
    @property
    def validate_only(self) -> bool: ...


class AsOfRequest(Protocol):
    """What every request has that can read the past."""

    @property
    def as_of_revision(self) -> int: ...
    @property
    def as_of_time(self) -> Timestamp: ...
    def HasField(self, field_name: Literal["as_of_time"], /) -> bool: ...


def namespace_of_call(call: Call) -> Namespace:
    """The namespace whose role check *call* has passed; ``system`` is not served here."""
    namespace = call.allowed_namespace()
    if namespace.id == "system":
        raise NotFound("NOT_FOUND", "the namespace system holds no entities")
    return namespace


def writing(request: WriteRequest, call: Call, method: str) -> Writing:
    """Who writes, and how a repetition is known."""
    request_id = call.request_id(request.request_id)
    return Writing(namespace_of_call(call), call.actor, method, request_id, request.validate_only)


def limited(writing: Writing, confirmations: Confirmations, operation_id: str = "") -> Writing:
    """*writing* under the namespace's quota and mass-change guard; *operation_id* may confirm a refused mass change.

    Raises:
        InvalidArgument: INVALID_FIELD, *operation_id* confirms nothing here.
    """
    namespace = writing.namespace
    confirmed = confirmations.confirmed(namespace, writing.actor, operation_id)
    return writing._replace(limits=Limits(namespace.quota, namespace.mass_change_guard, confirmed))


def as_of(request: AsOfRequest) -> AsOf | None:
    """The moment that *request* asks for; None: now."""
    if not request.HasField("as_of_time"):
        return AsOf(request.as_of_revision) if request.as_of_revision else None
    if request.as_of_revision:
        raise invalid_field("as_of_time", "cannot stand together with as_of_revision")
    return AsOf(time=time_of(request.as_of_time, "as_of_time"))


def answer_with(call: Call, message: bytes, revision: int, epoch: str) -> bytes:
    """A response that carries one serialized resource (none if empty) and the position."""
    call.position(revision, epoch)
    resource = wire.delimited(1, message) if message else b""
    return resource + _encoded_position(revision, epoch)


@lru_cache(maxsize=1000)  # many reads are of one revision
def _encoded_position(revision: int, epoch: str) -> bytes:
    return wire.integer(2, revision) + wire.text(3, epoch)
