"""The logs that feeds are made of, read from the services that own them. The only file that knows their stubs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from strandline.stream.v1 import log_service_pb2 as pb
from strandline.stream.v1 import log_service_pb2_grpc

from services.runtime.changelog import Head
from services.runtime.errors import Error, FailedPrecondition, NotFound, OutOfRange, Unavailable

SYSTEM = "system"
# A feed owes its reader a message every 5 s; see `feed.PROGRESS_SECONDS`.
CALL_SECONDS = 1.5
# To keep the log for a consumer, its owner writes, and may have to wait for others who do.
LEASE_SECONDS = 5.0
# Of a consumer's lease. The whole service may be away for so long without losing its place.
LEASE_TTL = timedelta(days=7)
# GetHeads takes no more.
MAX_NAMES = 10_000
T = TypeVar("T")

# What an owner may answer and a feed treats differently; everything else is "not now".
_ERRORS: dict[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.NOT_FOUND: NotFound,
}


@dataclass(frozen=True, slots=True)
class Notice:
    """Units ``(after, head.revision]`` were committed; *units* is all of them, or empty: the log has to be read."""

    head: Head
    after: int
    units: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a snapshot, serialized ``Entity`` each; *end* is its last (type, id), None when nothing follows."""

    entities: Sequence[bytes]
    end: tuple[str, str] | None


@dataclass(frozen=True, slots=True)
class Lease:
    """A consumer that has everything up to *acknowledged*, and whose filter names *types* (empty: all) and *fields*.

    The log after that is kept for *ttl*.
    """

    namespace: str
    epoch: str
    name: str
    types: Sequence[str]
    fields: Sequence[str]
    acknowledged: int
    ttl: timedelta = LEASE_TTL


class Logs:
    """Reads every log, each from its owner.

    Every method raises ``Unavailable`` while the owner does not answer, ``OutOfRange`` for what was cut from the log,
    ``FailedPrecondition`` for another life of it and ``NotFound`` when there is none.
    """

    def __init__(self, user_service: grpc.aio.Channel, entity_service: grpc.aio.Channel) -> None:
        self._user = log_service_pb2_grpc.LogServiceStub(user_service)
        self._entity = log_service_pb2_grpc.LogServiceStub(entity_service)
        self._deleting: set[asyncio.Future[pb.DeleteConsumerLeaseResponse]] = set()

    def _owner(self, namespace: str) -> log_service_pb2_grpc.LogServiceAsyncStub:
        return self._user if namespace == SYSTEM else self._entity

    async def heads(self, namespaces: Sequence[str]) -> dict[str, Head]:
        """The heads of those *namespaces* that have one, by one call for each owner (and each 10,000 names).

        Those of an owner that does not answer are missing too, unless no owner does.
        """
        system = [name for name in namespaces if name == SYSTEM]
        others = [name for name in namespaces if name != SYSTEM]
        groups = [system, *(others[start : start + MAX_NAMES] for start in range(0, len(others), MAX_NAMES))]
        calls = [
            _call(self._owner(group[0]).GetHeads(pb.GetHeadsRequest(namespace_ids=group), timeout=CALL_SECONDS))
            for group in groups
            if group
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        answers = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not (answers and isinstance(outcome, Error)):
                raise outcome
        return {head.namespace_id: _head(head) for answer in answers for head in answer.heads}

    async def units(self, namespace: str, after: int, to: int = 0, max_bytes: int = 0) -> tuple[Head, Sequence[bytes]]:
        """Units in ``(after, to]`` (0: the head), as fit into *max_bytes* (0: 1 MiB) but at least one; and the head.

        All is from one snapshot: what had been committed up to the head shows in the units.
        """
        request = pb.ReadUnitsRequest(namespace_id=namespace, after_revision=after, to_revision=to, max_bytes=max_bytes)
        answer = await _call(self._owner(namespace).ReadUnits(request, timeout=CALL_SECONDS))
        return _head(answer.head), answer.units

    async def revision_at(self, namespace: str, moment: Timestamp) -> tuple[int, Head]:
        """The last revision committed at or before *moment*, and the head."""
        request = pb.FindRevisionRequest(namespace_id=namespace, time=moment)
        answer = await _call(self._owner(namespace).FindRevision(request, timeout=CALL_SECONDS))
        return answer.revision, _head(answer.head)

    async def snapshot(
        self,
        namespace: str,
        epoch: str,
        revision: int,
        types: Sequence[str],
        after: tuple[str, str],
        ids: Sequence[str] = (),
    ) -> Page:
        """About 1 MiB of the live entities at *revision*, in the order of (type, id), that come after *after*.

        *ids* (``{type}/{id}``, of *types*) are the only ones that are wanted, if there are any; more may come.
        """
        request = pb.ReadSnapshotRequest(
            namespace_id=namespace,
            epoch=epoch,
            revision=revision,
            types=types,
            after_type=after[0],
            after_id=after[1],
            ids=ids,
        )
        answer = await _call(self._owner(namespace).ReadSnapshot(request, timeout=CALL_SECONDS))
        # Between two types the place is (next type, ""): only when both are empty does nothing follow.
        return Page(answer.entities, (answer.next_type, answer.next_id) if answer.next_type else None)

    async def put_lease(self, lease: Lease, seconds: float = LEASE_SECONDS) -> None:
        """Keep the log from being cut after what the consumer has acknowledged. The owner has *seconds* to answer."""
        request = pb.PutConsumerLeaseRequest(
            namespace_id=lease.namespace,
            epoch=lease.epoch,
            name=lease.name,
            types=lease.types,
            fields=lease.fields,
            acknowledged_revision=lease.acknowledged,
        )
        request.ttl.FromTimedelta(lease.ttl)
        await _call(self._owner(lease.namespace).PutConsumerLease(request, timeout=seconds))

    async def delete_lease(self, namespace: str, epoch: str, name: str) -> None:
        """Let it be cut; one that is not there is no error. Done also when whoever waits for it goes away."""
        request = pb.DeleteConsumerLeaseRequest(namespace_id=namespace, epoch=epoch, name=name)
        call = self._owner(namespace).DeleteConsumerLease(request, timeout=CALL_SECONDS)
        deleting = asyncio.ensure_future(_call(call))
        self._deleting.add(deleting)
        deleting.add_done_callback(self._deleting.discard)
        await asyncio.shield(deleting)


def read_notice(payload: bytes) -> Notice | None:
    """What the bus says; None if it cannot be read."""
    try:
        notice = pb.CommitNotice.FromString(payload)
    except DecodeError:
        return None
    head = _head(notice.head)
    # Units are numbered by counting, so a wrong count would number everything that follows wrongly.
    complete = len(notice.units) == head.revision - notice.after_revision
    return Notice(head, notice.after_revision, notice.units if complete else ())


def _head(head: pb.Head) -> Head:
    return Head(head.namespace_id, head.epoch, head.revision, head.horizon_revision)


async def _call(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise _error(failure) from failure


def _error(failure: grpc.aio.AioRpcError) -> Error:
    kind = _ERRORS.get(failure.code())
    if kind is None:
        return Unavailable("OVERLOADED", "the log cannot be read right now; retry")
    info = error_details_pb2.ErrorInfo()
    for key, value in failure.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)
    return kind(info.reason or "NOT_FOUND", failure.details() or "", **info.metadata)
