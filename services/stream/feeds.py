"""Opens feeds: what is asked for, and whether the log still has it. The answer always comes from the log's owner."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from prometheus_client import Gauge
from strandline.stream.v1 import stream_service_pb2

from services.runtime.call import Call, Namespace
from services.runtime.changelog import Head
from services.runtime.errors import OutOfRange, Unavailable, invalid_field
from services.stream.allowance import Allowance
from services.stream.feed import Feed, Start
from services.stream.hubs import Hubs
from services.stream.members import MembersSelection, selection_of_members
from services.stream.permit import Access, Permit, Way
from services.stream.positions import check_epoch, check_position, position_at
from services.stream.selection import Selection, selection_of
from services.stream.snapshots import ResumeTokens, Walk
from services.stream.upstream import SYSTEM, Logs

OPEN = Gauge("strandline_stream_feeds_open", "Feeds that are being read.")
# Of a drain: how long readers have to take their last words, and then, with every feed at its end, to find out that it
# ended. A connection that is closed earlier breaks under a client that writes, and takes what it had not read with it.
GOODBYE_SECONDS = 2.0
LINGER_SECONDS = 0.2


def feeds_for_each_user(limit: int) -> Allowance:
    """So many open feeds for each, in all transports together."""
    message = "the caller has as many feeds open as one may have at a server"
    return Allowance(limit, "TOO_MANY_FEEDS", message)


class Feeds:
    """Everything a feed needs, once for the process."""

    def __init__(self, hubs: Hubs, logs: Logs, access: Access, tokens: ResumeTokens, allowance: Allowance) -> None:
        self._hubs = hubs
        self._logs = logs
        self._access = access
        self._tokens = tokens
        self._allowance = allowance
        self._open = 0
        self._none_open = asyncio.Event()

    async def drain(self) -> None:
        """Let every feed say goodbye, and return when its reader may be disconnected."""
        self._hubs.drain()
        if not self._open:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._none_open.wait(), GOODBYE_SECONDS)
        await asyncio.sleep(LINGER_SECONDS)

    def open_members(
        self, request: stream_service_pb2.WatchMembersRequest, call: Call
    ) -> AbstractAsyncContextManager[Feed]:
        """The feed of a namespace's members that *request* asks for, for a call whose role was checked.

        Raises:
            Error: as ``open``; Unavailable also while the namespace is so new that little is known of it here.
        """
        namespace = call.allowed_namespace()
        began = self._access.began(namespace)
        if began is None:
            raise Unavailable("ACCESS_UNVERIFIABLE", "the namespace was made a moment ago; retry")
        # Its fields are those of a watch, with the same numbers.
        watch = stream_service_pb2.WatchRequest.FromString(request.SerializeToString())
        return self.open(watch, call, members=selection_of_members(namespace, began))

    @asynccontextmanager
    async def open(
        self,
        request: stream_service_pb2.WatchRequest,
        call: Call,
        way: Way | None = None,
        members: MembersSelection | None = None,
    ) -> AsyncIterator[Feed]:
        """The feed that *request* asks for, for a call whose role was checked.

        *way*: if it shares a connection; *members*: it is of these, in the log of ``system``.

        Raises:
            InvalidArgument: START_REQUIRED, INVALID_FIELD.
            FailedPrecondition: EPOCH_CHANGED, FUTURE_REVISION.
            OutOfRange: COMPACTED, SNAPSHOT_EXPIRED.
            ResourceExhausted: TOO_MANY_FEEDS.
            Unavailable: the log's owner does not answer.
        """
        namespace = call.allowed_namespace()
        if request.parent != f"namespaces/{namespace.id}":
            raise invalid_field("parent", "must be namespaces/{namespace}")
        if request.WhichOneof("start") is None:
            where = "say where: now, after_revision, snapshot, after_time or resume_token"
            raise invalid_field("start", where, reason="START_REQUIRED")
        selection = members or selection_of(
            request.types,
            request.filter,
            ids=request.ids,
            read_mask=request.read_mask,
            include_previous=request.include_previous if request.HasField("include_previous") else True,
        )
        self._allowance.take(call)
        try:
            hub, head = await self._hubs.attach(Namespace(SYSTEM, "") if members else namespace)
            OPEN.inc()
            self._open += 1
            self._none_open.clear()
            try:
                call.min_revision(0).check(head.revision, head.epoch)
                start = await self._start(request, head, selection)
                call.position(head.revision, head.epoch)
                yield Feed(
                    hub=hub,
                    head=head,
                    logs=self._logs,
                    segments=self._hubs.segments,
                    permit=Permit(self._access, self._hubs, hub, call, way),
                    selection=selection,
                    start=start,
                    tokens=self._tokens,
                    once=request.once,
                    progress_seconds=request.progress_interval.ToNanoseconds() / 1e9,
                )
            finally:
                OPEN.dec()
                self._open -= 1
                if not self._open:
                    self._none_open.set()
                self._hubs.detach(hub)
        finally:
            self._allowance.give_back_with_task(call)

    async def _start(self, request: stream_service_pb2.WatchRequest, head: Head, selection: Selection) -> Start:
        check_epoch(request.epoch, head)
        match request.WhichOneof("start"):
            case "after_revision":
                check_position(request.after_revision, request.epoch, head)
                return Start(request.after_revision, greet=request.after_revision == head.revision)
            case "after_time":
                revision = await position_at(self._logs, request.after_time, head, "after_time")
                return Start(revision, greet=revision >= head.revision)
            case "snapshot":
                return Start(head.revision, walk=Walk(head.namespace, head.epoch, head.revision))
            case "resume_token":
                return self._resume(self._tokens.open(request.resume_token, head.namespace, selection), head)
            case _:
                return Start(head.revision, greet=True)

    def _resume(self, walk: Walk, head: Head) -> Start:
        check_epoch(walk.epoch, head)
        if walk.revision < head.horizon:
            raise OutOfRange("SNAPSHOT_EXPIRED", "the snapshot's revision was cut from the log; start again")
        return Start(walk.revision, walk=walk)
