"""One worker on one subscription: it is handed changes, and waits for more."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias, cast

import psycopg
from prometheus_client import Counter, Histogram
from strandline.stream.v1 import feed_pb2, subscription_pb2

from services.runtime.call import Namespace
from services.runtime.changelog import Head
from services.runtime.database import Database
from services.runtime.errors import Error, FailedPrecondition, NotFound, OutOfRange, Unavailable, invalid_field
from services.stream import subscription_store as store
from services.stream.checkpoint import AckId, Group, Outstanding, Position, Selected
from services.stream.definitions import compiled
from services.stream.hub import Hub
from services.stream.positions import SEEK, compacted
from services.stream.selection import Selection
from services.stream.subscription_store import Locked, of_this_life
from services.stream.upstream import Logs
from services.stream.views import UnitView

DELIVERED = Counter("strandline_stream_subscription_deliveries", "Changes handed to workers, each attempt.")
PARKED = Counter("strandline_stream_subscription_parked", "Changes put aside.")
AGE = Histogram(
    "strandline_stream_subscription_age_seconds",
    "Age of changes when they were first handed out.",
    buckets=(0.01, 0.1, 1, 10, 100, 1000, 10_000, 100_000),
)

MAX_ANSWER_BYTES: Final = 3 * 2**20
# One call of `take` looks for so long through a log in which nothing is selected.
LOOK_SECONDS: Final = 1.0
# Read from the log at once: so much for each change that is asked for, and at most.
BYTES_EACH: Final = 4096
FULL_BYTES: Final = 2**20
# Looked at in one go.
MANY_UNITS: Final = 256
# A worker that hears of nothing looks again when the time of a change has come, and after so long: while something is
# not done that another replica may be told of, and while there is nothing, which only a seek at another can change.
BUSY_SECONDS: Final = 1.0
IDLE_SECONDS: Final = 5.0
# No shorter, lest changes that fall due one shortly after the other are a transaction each.
LEAST_SECONDS: Final = 0.05
# Redelivered changes lie scattered: two that are no further apart are read in one go.
NEAR: Final = 50
_ACK_ID: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,9})\.([0-9]{1,18})")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Units: TypeAlias = dict[int, UnitView]


@dataclass(slots=True)
class Shared:
    """What the workers of this process on one subscription share; none of it is needed to be right.

    ``turn``: one of them at a time looks for something; ``cursor``: where the group was when one of them looked;
    ``settlements``: how often something was said of deliveries, after which others may be handed out.
    """

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    settlements: int = 0
    cursor: int | None = None
    workers: int = 0

    def tell(self) -> None:
        """Let those that wait look again."""
        self.settlements += 1
        self.settled.set()
        self.settled.clear()


class _Run:
    """Units that follow a revision, each parsed when somebody looks at it."""

    def __init__(self, after: int, bodies: Sequence[bytes]) -> None:
        self._after = after
        self._bodies = bodies
        self._views: dict[int, UnitView] = {}

    def has(self, revision: int) -> bool:
        return self._after < revision <= self._after + len(self._bodies)

    def view(self, revision: int) -> UnitView:
        """The unit at *revision*, which it has."""
        if (view := self._views.get(revision)) is None:
            view = self._views[revision] = UnitView(self._bodies[revision - self._after - 1])
        return view


class Worker:
    """One worker on one subscription. ``hub`` is the one of the namespace.

    *pushes*: it sends to the receiver of a webhook; any other is refused the deliveries of one.
    """

    def __init__(
        self,
        database: Database,
        logs: Logs,
        hub: Hub,
        namespace: Namespace,
        id: str,
        shared: Shared,
        share: int,
        *,
        pushes: bool = False,
    ) -> None:
        self.hub = hub
        self._database = database
        self._logs = logs
        self._namespace = namespace
        self._id = id
        self._shared = shared
        self._share = share
        self._pushes = pushes
        self._mine: set[AckId] = set()
        self._is_behind = False
        self._seen = (0, 0)
        self._look_at = math.inf

    async def take(self, limit: int) -> list[subscription_pb2.Delivery]:
        """At most *limit* changes, in order, 3 MiB of them. Empty: there is nothing right now."""
        self._seen = self._news()
        self._is_behind = False
        async with self._shared.turn:
            deadline = time.monotonic() + LOOK_SECONDS
            while True:
                # What is asked for, and more once that was not enough: a filter may leave out nearly everything.
                units = await self._read(FULL_BYTES if self._is_behind else limit * BYTES_EACH)
                items, moved = await self._hand_out(limit, units)
                self._is_behind = (moved or bool(items)) and (self._shared.cursor or 0) < self.hub.head
                if items or not self._is_behind or time.monotonic() > deadline:
                    break
        return await self._deliveries(items, units) if items else []

    async def give_back(self, deliveries: Sequence[subscription_pb2.Delivery]) -> None:
        """They were taken and not tried: it does not count as an attempt."""
        if deliveries:
            await self._give_back([parse_ack_id(delivery.ack_id, index) for index, delivery in enumerate(deliveries)])

    async def wait(self, seconds: float) -> None:
        """Return when there may be something to take, at the latest after so many *seconds*, and now and then."""
        if self.should_look:
            return
        waiting = {asyncio.ensure_future(self.hub.changed()), asyncio.ensure_future(self._shared.settled.wait())}
        try:
            # They wait from their first step on: what was told before that, none of them hears.
            await asyncio.sleep(0)
            if not self._has_news:
                left = min(seconds, self._look_at - time.monotonic())
                await asyncio.wait(waiting, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    @property
    def should_look(self) -> bool:
        """Whether there may be something to take: there is news, or it was long ago that this worker looked."""
        return self._has_news or time.monotonic() >= self._look_at

    @property
    def _has_news(self) -> bool:
        """Whether there may be something to take that was not there when this worker last looked."""
        return self._is_behind or self._seen != self._news()

    def _news(self) -> tuple[int, int]:
        return self.hub.head, self._shared.settlements

    async def _read(self, max_bytes: int) -> _Run:
        """Units after where the group was last seen; only a guess, for another worker may have moved it since."""
        cursor = self._shared.cursor
        if cursor is None or cursor >= self.hub.head:
            return _Run(0, [])
        if cursor >= self.hub.floor and (batch := self.hub.batch(cursor)) is not None:
            return _Run(cursor, [unit.body for unit in batch.units])
        try:
            head, bodies = await self._logs.units(self._namespace.id, cursor, max_bytes=min(max_bytes, FULL_BYTES))
        except OutOfRange:
            await self._lose_place(cursor)
            self._shared.cursor = None
            return _Run(0, [])
        self._check_life(head)
        return _Run(cursor, bodies)

    async def _hand_out(self, limit: int, units: _Run) -> tuple[list[Outstanding], bool]:
        """What this worker is given, and whether the group has read on."""
        async with store.locked(self._database, self._namespace.id, self._id) as found:
            held = of_this_life(found, self._namespace)
            check_who_takes(held, pushes=self._pushes)
            if held.progress.state == store.COMPACTED:
                raise compacted(self.hub.horizon, SEEK)
            group = held.progress.group
            definition = compiled(held.definition.definition)
            before = self._shared.cursor
            if self._share:
                self._mine = group.in_flight_of(self._mine)
                limit = min(limit, self._share - len(self._mine))
            group.expire(held.now, definition.policy)
            limit = min(limit, definition.policy.max_in_flight - group.in_flight)
            await self._admit(held, definition.selection, units, limit)
            items = group.hand_out(held.now, limit, definition.policy)
            PARKED.inc(len(group.newly_parked))
            self._look_at = time.monotonic() + self._patience(group, held.now)
        self._mine.update(item.ack_id for item in items)
        self._shared.cursor = group.cursor
        return items, group.cursor != before

    def _patience(self, group: Group, now: int) -> float:
        """How long to wait for news, in seconds. Every replica pushes: what one is told of concerns no other."""
        most = BUSY_SECONDS if group.outstanding and not self._pushes else IDLE_SECONDS
        due = group.next_due(now)
        return most if due is None else min(most, max((due - now) / 1e6, LEAST_SECONDS))

    async def _admit(self, held: Locked, selection: Selection, units: _Run, limit: int) -> None:
        """Let the group read on until it has *limit* changes to hand out, and no further: its state stays small."""
        group = held.progress.group
        ready = group.ready(held.now)
        keys = {item.key for item in group.outstanding.values()}
        # Another worker may have moved the cursor beyond, or a seek before, what was read.
        while ready < limit and units.has(group.cursor + 1):
            following = _following(selection, units, group.cursor, limit)
            parked = await self._parked_among(held, {change.key for _, selected in following for change in selected})
            for revision, selected in following:
                if not group.fits(selected, parked):
                    return
                group.admit(revision, selected, parked)
                new = {change.key for change in selected} - parked - keys
                ready += len(new)
                keys |= new

    async def _parked_among(self, held: Locked, keys: set[str]) -> set[str]:
        group = held.progress.group
        if not keys or not group.parked:
            return set()
        # What was parked in this transaction is not in the table yet.
        new = {change.key for change in group.newly_parked} & keys
        return new | {key for (key,) in await held.query(store.parked_among(self._namespace.id, self._id, keys))}

    async def _deliveries(self, items: Sequence[Outstanding], units: _Run) -> list[subscription_pb2.Delivery]:
        revisions = {item.position.revision for item in items}
        contents = {revision: units.view(revision) for revision in revisions if units.has(revision)}
        try:
            await self._fetch(revisions - contents.keys(), contents)
        except BaseException as failure:
            if isinstance(failure, OutOfRange):
                await self._lose_place(min(item.position.revision for item in items) - 1)
                raise compacted(int(failure.metadata["horizon_revision"]), SEEK) from failure
            if isinstance(failure, Error):
                await self._give_back([item.ack_id for item in items])
            raise
        deliveries: list[subscription_pb2.Delivery] = []
        size = 0
        for index, item in enumerate(items):
            delivery = _delivery(self._namespace.epoch, item, contents[item.position.revision])
            size += delivery.ByteSize()
            if deliveries and size > MAX_ANSWER_BYTES:
                await self._give_back([item.ack_id for item in items[index:]])
                break
            deliveries.append(delivery)
        DELIVERED.inc(len(deliveries))
        for delivery in deliveries:
            if delivery.delivery_attempt == 1:
                AGE.observe(max(0.0, time.time() - delivery.commit_time.ToMicroseconds() / 1e6))
        return deliveries

    async def _fetch(self, revisions: Iterable[int], contents: Units) -> None:
        """Put the units at *revisions* into *contents*."""
        wanted = sorted(revisions)
        while wanted:
            last = wanted[0]
            for revision in wanted:
                if revision - last > NEAR:
                    break
                last = revision
            head, bodies = await self._logs.units(self._namespace.id, wanted[0] - 1, last)
            self._check_life(head)
            for unit in map(UnitView, bodies):
                contents[unit.unit.revision] = unit
            if not bodies:
                raise Unavailable("OVERLOADED", "the log cannot be read right now; retry")
            wanted = [revision for revision in wanted if revision not in contents]

    async def _give_back(self, ack_ids: Sequence[AckId]) -> None:
        """They never reached anybody. If that cannot be written, they come again after their deadline."""
        with contextlib.suppress(Error, psycopg.Error):
            async with store.locked(self._database, self._namespace.id, self._id) as found:
                held = of_this_life(found, self._namespace)
                for ack_id in ack_ids:
                    held.progress.group.take_back(ack_id)
        self._mine.difference_update(ack_ids)
        self._shared.tell()

    async def _lose_place(self, cursor: int) -> None:
        """What follows *cursor* was cut from the log: nothing can be delivered in order any more."""
        async with store.locked(self._database, self._namespace.id, self._id) as found:
            held = of_this_life(found, self._namespace)
            # A seek may have come in between.
            if held.progress.group.checkpoint <= cursor:
                held.progress.state = store.COMPACTED

    def _check_life(self, head: Head) -> None:
        if head.epoch != self._namespace.epoch:
            raise NotFound("NOT_FOUND", "the namespace was deleted, and its subscriptions with it")


def check_who_takes(held: Locked, *, pushes: bool) -> None:
    """Refuse to all but those who push the deliveries of a subscription that does.

    Raises:
        FailedPrecondition: SUBSCRIPTION_PUSHES.
    """
    if not pushes and compiled(held.definition.definition).pushes:
        raise FailedPrecondition(
            "SUBSCRIPTION_PUSHES",
            "the subscription is a webhook, which takes its deliveries itself; update it without `push` to pull",
        )


def _following(selection: Selection, units: _Run, cursor: int, enough: int) -> list[tuple[int, Sequence[Selected]]]:
    """Units after *cursor* with what is selected of each: about *enough* changes."""
    following: list[tuple[int, Sequence[Selected]]] = []
    found = 0
    while found < enough and len(following) < MANY_UNITS and units.has(cursor + 1):
        cursor += 1
        selected = _selected(selection, units.view(cursor))
        following.append((cursor, selected))
        found += len(selected)
    return following


def _selected(selection: Selection, unit: UnitView) -> list[Selected]:
    revision = unit.unit.revision
    return [
        Selected(Position(revision, index), change.entity_id or change.type_id, kind)
        for index, change in enumerate(unit.changes)
        if (kind := selection.kind_of(change))
    ]


def _delivery(epoch: str, item: Outstanding, view: UnitView) -> subscription_pb2.Delivery:
    unit = view.unit
    revision, index = item.position
    delivery = subscription_pb2.Delivery(
        ack_id=f"{revision}.{index}.{item.delivery}",
        id=f"{epoch}.{revision}.{index}",
        delivery_attempt=item.attempts,
        revision=revision,
        index=index,
        commit_time=unit.commit_time,
        actor=unit.actor,
        request_id=unit.request_id,
        change=unit.changes[index],
    )
    delivery.deadline.FromDatetime(_EPOCH + timedelta(microseconds=item.due))
    delivery.change.kind = cast("feed_pb2.Change.Kind.ValueType", item.kind)
    return delivery


def parse_ack_id(ack_id: str, index: int) -> AckId:
    if (match := _ACK_ID.fullmatch(ack_id)) is None:
        raise invalid_field(f"ack_ids[{index}]", "was never given out")
    revision, place, delivery = map(int, match.groups())
    return AckId(Position(revision, place), delivery)
