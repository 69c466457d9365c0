"""``LogService`` over the log of one database: how hubs and copies read what was committed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from strandline.stream.v1 import log_service_pb2 as pb

from services.runtime import changelog
from services.runtime.bus import head_message
from services.runtime.call import Call, Namespace
from services.runtime.database import Database
from services.runtime.errors import NotFound
from services.runtime.rules import time_of

NAME = "strandline.stream.v1.LogService"
DEFAULT_BYTES = 2**20


class SnapshotReader(Protocol):
    """Reads live entities as they were at a revision."""

    async def read_snapshot(
        self,
        namespace: str,
        epoch: str,
        revision: int,
        types: list[str],
        after: tuple[str, str],
        max_bytes: int,
        keys: Sequence[tuple[str, str]] = (),
    ) -> tuple[list[bytes], tuple[str, str] | None]:
        """Serialized entities after (type, id) in that order, and where the page ends; None: nothing is left.

        *keys* are the only ones that are wanted, if there are any; more may come.

        Raises:
            FailedPrecondition: EPOCH_CHANGED, *epoch* (if any is given) is not the life that is read.
        """
        ...


class Leases(Protocol):
    """Keeps logs from being cut under their readers."""

    async def put(
        self,
        namespace: Namespace,
        name: str,
        types: Sequence[str],
        fields: Sequence[str],
        acknowledged: int,
        ttl: timedelta,
    ) -> None:
        """Keep what follows the revision *acknowledged* for *ttl*, for the consumer *name*."""
        ...

    async def delete(self, namespace: Namespace, name: str) -> None:
        """Keep it no longer."""
        ...


class Uncut:
    """``Leases`` of a log that is never cut."""

    async def put(
        self,
        namespace: Namespace,
        name: str,
        types: Sequence[str],
        fields: Sequence[str],
        acknowledged: int,
        ttl: timedelta,
    ) -> None:
        return None

    async def delete(self, namespace: Namespace, name: str) -> None:
        return None


class LogHandlers:
    """The handlers of ``LogService``."""

    def __init__(self, database: Database, snapshots: SnapshotReader, leases: Leases) -> None:
        self._database = database
        self._snapshots = snapshots
        self._leases = leases

    async def get_heads(self, request: pb.GetHeadsRequest, call: Call) -> pb.GetHeadsResponse:
        heads = await changelog.read_heads(self._database, request.namespace_ids)
        return pb.GetHeadsResponse(heads=map(head_message, heads))

    async def read_units(self, request: pb.ReadUnitsRequest, call: Call) -> pb.ReadUnitsResponse:
        head, units = await changelog.read_units(
            self._database,
            request.namespace_id,
            request.after_revision,
            request.to_revision,
            request.max_bytes or DEFAULT_BYTES,
        )
        return pb.ReadUnitsResponse(head=head_message(_existing(head)), units=units)

    async def find_revision(self, request: pb.FindRevisionRequest, call: Call) -> pb.FindRevisionResponse:
        moment = time_of(request.time, "time")
        revision, head = await changelog.find_revision(self._database, request.namespace_id, moment)
        return pb.FindRevisionResponse(revision=revision, head=head_message(_existing(head)))

    async def read_snapshot(self, request: pb.ReadSnapshotRequest, call: Call) -> pb.ReadSnapshotResponse:
        entities, end = await self._snapshots.read_snapshot(
            request.namespace_id,
            request.epoch,
            request.revision,
            list(request.types),
            (request.after_type, request.after_id),
            request.max_bytes or DEFAULT_BYTES,
            [(type_id, entity_id) for type_id, _, entity_id in (each.partition("/") for each in request.ids)],
        )
        next_type, next_id = end or ("", "")
        return pb.ReadSnapshotResponse(entities=entities, next_type=next_type, next_id=next_id)

    async def put_consumer_lease(self, request: pb.PutConsumerLeaseRequest, call: Call) -> pb.PutConsumerLeaseResponse:
        await self._leases.put(
            Namespace(request.namespace_id, request.epoch),
            request.name,
            request.types,
            request.fields,
            request.acknowledged_revision,
            request.ttl.ToTimedelta(),
        )
        return pb.PutConsumerLeaseResponse()

    async def delete_consumer_lease(
        self, request: pb.DeleteConsumerLeaseRequest, call: Call
    ) -> pb.DeleteConsumerLeaseResponse:
        await self._leases.delete(Namespace(request.namespace_id, request.epoch), request.name)
        return pb.DeleteConsumerLeaseResponse()


def _existing(head: changelog.Head | None) -> changelog.Head:
    if head is None:
        raise NotFound("NOT_FOUND", "nothing was written to this namespace yet")
    return head
