"""Catch-up pages: aligned segments of the log, one by one, for readers who may read every type."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

from strandline.stream.v1 import stream_service_pb2

from services.runtime import wire
from services.runtime.call import Call
from services.runtime.changelog import Head
from services.runtime.errors import Unavailable, invalid_field
from services.stream.hub import Hub
from services.stream.hubs import Hubs
from services.stream.messages import UnitsMessage
from services.stream.positions import check_position

# A hub is behind its log's head for a moment after a commit, and for about a second if the bus lost the notice.
CATCH_UP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class ChangesPage:
    """A page, with its two encodings. *head* and *horizon* are revisions."""

    units: UnitsMessage
    head: int
    horizon: int

    @property
    def etag(self) -> str:
        """Weak: it stands for the units, not for where the head was when the page was made.

        But for whether the page ends there, so that nobody who keeps one takes it for the last after it no longer is.
        """
        digest = hashlib.blake2b(b"".join([unit.body for unit in self.units.units]), digest_size=12).hexdigest()
        last = ".last" if self.units.revision == self.head else ""
        return f'W/"{self.units.epoch}.{self.units.after}.{self.units.revision}.{digest}{last}"'

    @property
    def protobuf(self) -> bytes:
        """A serialized ``ListChangesResponse``."""
        start = wire.integer(1, self.units.after) + wire.integer(2, self.units.revision)
        units = [wire.delimited(4, unit.body) for unit in self.units.units]
        end = wire.integer(5, self.head) + wire.integer(6, self.horizon)
        return b"".join([start, wire.text(3, self.units.epoch), *units, end])

    @property
    def json(self) -> bytes:
        """The same as JSON."""
        start = f'"afterRevision":"{self.units.after}","revision":"{self.units.revision}","epoch":"{self.units.epoch}"'
        units = b",".join([unit.json for unit in self.units.units])
        end = f'"headRevision":"{self.head}","horizonRevision":"{self.horizon}"'
        return b'{%b,"units":[%b],%b}' % (start.encode(), units, end.encode())


class Changes:
    """Makes pages, from the segments that feeds read too."""

    def __init__(self, hubs: Hubs) -> None:
        self._hubs = hubs

    async def page(self, request: stream_service_pb2.ListChangesRequest, call: Call) -> ChangesPage:
        """The page that *request* asks for, for a call whose role was checked. It shows every purge answered before.

        Raises:
            InvalidArgument: INVALID_FIELD.
            FailedPrecondition: EPOCH_CHANGED, FUTURE_REVISION.
            OutOfRange: COMPACTED.
            Unavailable: the log's owner does not answer.
        """
        namespace = call.allowed_namespace()
        if request.parent != f"namespaces/{namespace.id}":
            raise invalid_field("parent", "must be namespaces/{namespace}")
        hub, head = await self._hubs.attach(namespace)
        try:
            call.min_revision(0).check(head.revision, head.epoch)
            check_position(request.after_revision, request.epoch, head)
            units = await self._units(hub, head, request.after_revision)
            if request.limit:
                units = units.up_to(units.after + request.limit)
            newest = max(head.revision, hub.head, units.revision)
            call.position(newest, head.epoch)
            return ChangesPage(units, newest, max(head.horizon, hub.horizon))
        finally:
            self._hubs.detach(hub)

    async def _units(self, hub: Hub, head: Head, after: int) -> UnitsMessage:
        if after == head.revision:
            return UnitsMessage(head.epoch, after, after, [])
        try:
            async with asyncio.timeout(CATCH_UP_SECONDS):
                # What the hub has not seen may be a purge of what is kept here.
                while hub.position < head.revision and not hub.ended:
                    await hub.changed()
                segment = await self._hubs.segments.after(hub, after, reach=head.revision)
        except TimeoutError:
            segment = None
        if segment is None:
            raise Unavailable("OVERLOADED", "the log cannot be read right now; retry")
        return segment.batch(after)
