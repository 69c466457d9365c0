"""One reader's feed: what comes next, and how it ends. Knows no transport.

A feed moves two positions. ``_cursor`` is the last revision looked at, ``_sent`` the last one a message covered; they
differ under a filter, and every message covers ``(_sent, ...]``, so that ranges join up whatever was left out.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.changelog import Head
from services.runtime.errors import FailedPrecondition, NotFound, OutOfRange, Unavailable
from services.stream.audiences import Audience
from services.stream.hub import Hub
from services.stream.messages import Message, OtherMessage, UnitsMessage
from services.stream.permit import Ended, Permit
from services.stream.segments import Segments
from services.stream.selection import Selection
from services.stream.snapshots import ResumeTokens, Walk
from services.stream.upstream import Logs

logger = logging.getLogger(__name__)
End = feed_pb2.End
T = TypeVar("T")
# Sends a message at once, or refuses it, because what was sent before is still on its way.
Push = Callable[[Message], bool]

# Unless a reader asks otherwise. Promised are 5 s: a feed that waits looks at the clock every second, and before it
# reads from an owner, which takes 1.5 s at most.
PROGRESS_SECONDS = 3.0
# How long an owner may be away before the feed ends.
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Start:
    """After *revision*; *greet*: the reader is told at once that it is up to date; *walk*: with a snapshot first."""

    revision: int
    greet: bool = False
    walk: Walk | None = None


class Feed:
    """What one reader gets. ``head`` is where the log was when the feed began.

    *once*: it ends there, or with its snapshot. *progress_seconds*: the longest silence, looked at once a second; 0:
    not chosen.
    """

    def __init__(
        self,
        *,
        hub: Hub,
        head: Head,
        logs: Logs,
        segments: Segments,
        permit: Permit,
        selection: Selection,
        start: Start,
        tokens: ResumeTokens,
        once: bool = False,
        progress_seconds: float = 0,
    ) -> None:
        self.head = head
        self._hub = hub
        self._logs = logs
        self._segments = segments
        self._permit = permit
        self._selection = selection
        self._start = start
        self._tokens = tokens
        if start.walk is not None:
            start.walk.token = tokens.seal(start.walk, selection)
        self._progress_seconds = progress_seconds or PROGRESS_SECONDS
        self._audience: Audience | None = None
        self._stop = None if not once else head.revision if start.walk is None else start.revision
        self._cursor = self._sent = start.revision
        self._sent_at = time.monotonic()
        self._is_sending = False
        self._failing_since: float | None = None
        self._walking = start.walk  # until its end was told
        self._is_over = False
        self._push: Push | None = None

    async def messages(self, push: Push | None = None) -> AsyncGenerator[Message, None]:
        """Everything in order. Without end, unless we end it: then ``End`` is the last message.

        What comes while the feed waits may go to *push*, instead of being yielded.
        """
        self._push = push if self._stop is None else None
        # One that ends soon looks at the units itself.
        if self._stop is None and not self._selection.is_everything:
            self._audience = self._hub.join(self._selection)
            self._selection = self._audience.selection  # one for all
        try:
            async with aclosing(self._run()) as messages:
                async for message in messages:
                    self._sent = message.revision
                    self._is_sending = True
                    yield message
                    self._is_sending = False
                    self._sent_at = time.monotonic()
        except Ended as end:
            yield self._end(end)
        except Exception:
            logger.exception("a feed of %s broke", self._hub.namespace)
            yield self._end(Ended(End.UNAVAILABLE, "the feed broke; resume"))
        finally:
            if self._audience is not None:
                self._hub.leave(self._audience)

    @property
    def waits_since(self) -> float | None:
        """As ``stalls.Stream`` has it."""
        return self._sent_at if self._is_sending else None

    async def check(self) -> None:
        """Raises ``Error`` if the reader may have nothing more."""
        try:
            await self._permit.check()
        except Ended as end:
            raise end.as_error() from end

    async def position(self) -> Message | None:
        """Where the feed is, for one who asks between two of its messages; None after its ``End``.

        It claims what was yielded before, and what was looked at and does not match.
        """
        await self._permit.demand()
        if self._is_over:
            return None
        if self._walking is not None:
            message = self._page(self._walking)
        else:
            audience, position = self._audience, self._hub.position
            # Nobody wakes a reader for what does not match, so it may be further than it knows.
            if audience and self._cursor >= audience.since and audience.batch(self._cursor, position) is None:
                self._cursor = max(self._cursor, position)
            message = self._progress()
        self._sent, self._sent_at = message.revision, time.monotonic()
        return message

    async def _run(self) -> AsyncGenerator[Message, None]:
        if self._start.walk is not None:
            async with aclosing(self._snapshot(self._start.walk)) as pages:
                async for page in pages:
                    yield page
        elif self._start.greet:
            yield self._progress()
        # What the hub has not seen may be a purge of what it holds, answered before this feed began.
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._cursor < self.head.revision and self._hub.position < self.head.revision:
            await self._permit.demand()
            if self._is_overdue():
                yield self._progress()  # and demand again: who ends meanwhile wakes nobody
            elif time.monotonic() > deadline:
                raise Ended(End.UNAVAILABLE, "the log cannot be read right now; resume later")
            else:
                await self._hub.changed()
        while True:
            await self._permit.demand()
            if self._stop is not None and self._cursor >= self._stop:
                if self._sent < self._stop:
                    yield self._progress()
                raise Ended(End.COMPLETED, "everything up to here was sent")
            # From here to `yield` nothing awaits while the ring is read: what the floor allows stays allowed.
            if self._audience is not None and self._cursor >= self._audience.since:
                batch = self._look(self._audience)
                message = batch and batch.covering(self._sent)
            else:
                if self._cursor >= self._hub.floor:
                    batch = self._hub.batch(self._cursor)
                else:
                    if self._is_overdue():
                        yield self._progress()
                    batch = await self._read_log()
                if batch is not None and self._stop is not None:
                    batch = batch.up_to(self._stop)
                self._cursor = batch.revision if batch else self._cursor
                message = batch and self._selection.of_units(batch, self._sent)
            if message is not None:
                yield message
            elif self._is_overdue():
                yield self._progress()
            elif batch is None:
                await (self._audience or self._hub).changed(self._take if self._push else None)
            else:
                await asyncio.sleep(0)  # nothing matched: let others run before the next batch

    def _take(self) -> bool:
        """Push what is new, from where the feed waits; False: that cannot be had, or not be sent, without waiting."""
        before = self._cursor
        try:
            while self._permit.stands() and self._cursor >= self._known_since():
                if self._audience is not None:
                    batch = self._look(self._audience)
                elif (batch := self._hub.batch(self._cursor)) is not None:
                    self._cursor = batch.revision
                if batch is None:
                    before = self._cursor
                    return True
                assert self._push is not None
                if not self._push(batch.covering(self._sent)):
                    return False
                before = self._sent = self._cursor
                self._sent_at = time.monotonic()
            return False
        finally:
            self._cursor = before  # what was not sent is looked at again

    def _known_since(self) -> int:
        """After which revision what belongs to the feed is in memory."""
        return self._hub.floor if self._audience is None else self._audience.since

    def _look(self, audience: Audience) -> UnitsMessage | None:
        """What follows the cursor, which moves over it and over everything that is known not to match."""
        batch = audience.batch(self._cursor, self._hub.position)
        self._cursor = max(self._cursor, batch.revision if batch else self._hub.position)
        return batch

    async def _read_log(self) -> UnitsMessage | None:
        """Units after the cursor from their owner; None: not now."""
        while True:
            segment = await self._patiently(self._segments.after(self._hub, self._cursor))
            if segment is None:
                return None
            # Who waits for the reader holds nothing, and must not send what was purged meanwhile.
            kept, segment = weakref.ref(segment), None
            await self._permit.demand()
            segment = kept()
            if segment is not None and segment.seen >= self._hub.purged_to:
                return segment.batch(self._cursor)

    async def _snapshot(self, walk: Walk) -> AsyncGenerator[Message, None]:
        while not walk.done:
            await self._permit.demand()
            if self._is_overdue():
                yield self._page(walk)
            page = await self._patiently(walk.next_page(self._logs, self._selection))
            entities: list[entity_pb2.Entity] = []
            if page is not None:
                await self._permit.demand()
                entities = walk.take(page, self._selection)
                if walk.lease_is_due:
                    if self._is_overdue():
                        yield self._page(walk)
                    await self._patiently(walk.hold(self._logs))
                walk.token = self._tokens.seal(walk, self._selection)
            if entities or self._is_overdue():
                yield self._page(walk, entities)
            elif page is None:
                await self._hub.changed()
        self._walking = None
        yield self._message(snapshot_done=walk.summary())
        await walk.release(self._logs)

    async def _patiently(self, read: Awaitable[T]) -> T | None:
        """The outcome of *read*; None while its owner is away, for at most ``PATIENCE_SECONDS``."""
        try:
            outcome = await read
        except Unavailable as failure:
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            if now - self._failing_since > PATIENCE_SECONDS:
                raise Ended(End.UNAVAILABLE, "the log cannot be read right now; resume later") from failure
            return None
        except OutOfRange as failure:
            if self._walk_is_open():
                raise Ended(End.SNAPSHOT_EXPIRED, "the snapshot's revision was cut from the log") from failure
            horizon = failure.metadata.get("horizon_revision", self._hub.horizon)
            raise Ended(End.COMPACTED, f"{failure.message} (horizon_revision: {horizon})") from failure
        except (FailedPrecondition, NotFound):
            await self._permit.lose_log()
        self._failing_since = None
        return outcome

    def _is_overdue(self) -> bool:
        return time.monotonic() - self._sent_at > self._progress_seconds

    def _walk_is_open(self) -> bool:
        return self._start.walk is not None and not self._start.walk.done

    def _page(self, walk: Walk, entities: Sequence[entity_pb2.Entity] = ()) -> Message:
        body = feed_pb2.SnapshotPage(entities=entities, resume_token=walk.token)
        return self._message(snapshot_page=body, event_id=f"s.{walk.token}")

    def _progress(self) -> Message:
        head = max(self._hub.head, self._cursor)
        body = feed_pb2.Progress(head_revision=head, horizon_revision=self._hub.horizon)
        return self._message(progress=body)

    def _end(self, end: Ended) -> Message:
        self._is_over = self._is_sending = True  # for good: the transport has a last word of its own
        # Nothing looked at but not sent is lost on the reader: it resumes after what it was sent.
        self._cursor = self._sent
        if (walk := self._start.walk) is not None and not walk.done:
            # No revision stands for a part of a snapshot. One who resumes by number all the same loses nothing at 0.
            body = End(reason=end.reason, detail=f"{end.detail} (inside a snapshot: with the last resume_token)")
            return self._message(end=body, event_id=f"s.{walk.token}" if walk.token else "")
        return self._message(end=End(reason=end.reason, resume_after_revision=self._sent, detail=end.detail))

    def _message(
        self,
        *,
        snapshot_page: feed_pb2.SnapshotPage | None = None,
        snapshot_done: feed_pb2.SnapshotDone | None = None,
        progress: feed_pb2.Progress | None = None,
        end: feed_pb2.End | None = None,
        event_id: str | None = None,
    ) -> Message:
        """A message that covers ``(_sent, _cursor]``."""
        response = feed_pb2.WatchResponse(
            after_revision=self._sent,
            revision=self._cursor,
            epoch=self._hub.epoch,
            snapshot_page=snapshot_page,
            snapshot_done=snapshot_done,
            progress=progress,
            end=end,
        )
        return OtherMessage(response, event_id)
