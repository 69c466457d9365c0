"""A copy of entities in this process, that follows the feed and can be asked for no less than a revision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Self, TypeAlias

from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from strandline_client.errors import ApiError, FeedEnded
from strandline_client.position import Start
from strandline_client.retry import Backoff

Change = feed_pb2.Change
_GONE = frozenset({Change.DELETED, Change.EXPIRED, Change.PURGED, Change.LEFT})


@dataclass(frozen=True, slots=True)
class Replaced:
    """The whole copy was made anew from a snapshot. The names say what is different from before.

    ``reason`` says why: empty the first time, else COMPACTED, EPOCH_CHANGED or SNAPSHOT_EXPIRED.
    """

    reason: str
    epoch: str
    revision: int
    added: frozenset[str]
    changed: frozenset[str]
    removed: frozenset[str]


OnChange: TypeAlias = Callable[[Replaced | feed_pb2.Unit], None]


class Cache(Mapping[str, entity_pb2.Entity]):
    """Live entities by full name, as they were at ``revision``: a snapshot, whose sum was verified, and its tail.

    ``async with`` fills it before it is entered. Whole units are applied at once: who reads without ``await`` between
    sees one revision. When the position is lost (COMPACTED, EPOCH_CHANGED) the old copy stays readable until a new
    snapshot is complete.
    """

    def __init__(
        self, feed: Callable[[Start], AsyncGenerator[feed_pb2.WatchResponse, None]], on_change: OnChange | None = None
    ) -> None:
        """*feed* opens the feed; *on_change* is told each unit, and each new copy, after it was applied."""
        self.epoch = ""
        self.revision = 0
        self._feed = feed
        self._on_change = on_change
        self._entities: dict[str, entity_pb2.Entity] = {}
        self._past_epochs: set[str] = set()
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __getitem__(self, name: str) -> entity_pb2.Entity:
        return self._entities[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entities)

    def __len__(self) -> int:
        return len(self._entities)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._wake())
        try:
            return await self._until(lambda: bool(self.epoch))
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def at_least(self, revision: int, epoch: str = "") -> Self:
        """Wait until everything up to *revision* was applied, for example of a write's answer.

        With a selection, revisions that do not concern it are known with the next Progress, within two seconds.

        Raises:
            FeedEnded: EPOCH_CHANGED, *epoch* is a life of the namespace that is over; or what ended the feed for good.
            ApiError, FeedViolation: what ended the feed. The copy stays as it was then.
        """

        def is_there() -> bool:
            if epoch and epoch in self._past_epochs:
                raise FeedEnded("EPOCH_CHANGED", "the namespace has a new life", epoch, revision)
            return self.revision >= revision and epoch in ("", self.epoch)

        return await self._until(is_there)

    async def _until(self, condition: Callable[[], bool]) -> Self:
        while not condition():
            if self._task is None or self._task.done():
                if self._task is not None and not self._task.cancelled():
                    await self._task  # raises what ended it
                raise ApiError("CANCELLED", "", "the cache is closed")
            await self._moved.wait()
        return self

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _run(self) -> None:
        reason, backoff = "", Backoff(None)
        while True:
            try:
                async with aclosing(self._feed(Start(snapshot=True))) as messages:
                    await self._follow(messages, reason)
            except FeedEnded as end:
                if not end.position_is_lost:
                    raise
                reason = end.reason
                await backoff.wait(ApiError("UNAVAILABLE", end.reason, end.detail))

    async def _follow(self, messages: AsyncGenerator[feed_pb2.WatchResponse, None], reason: str) -> None:
        """Apply one snapshot and its tail."""
        fresh: dict[str, entity_pb2.Entity] = {}
        async for message in messages:
            body = message.WhichOneof("body")
            if body == "snapshot_page":
                fresh.update((entity.name, entity) for entity in message.snapshot_page.entities)
                continue
            if body == "snapshot_done":
                self._replace(fresh, message, reason)
                fresh = {}
            elif body == "units":
                for unit in message.units.units:
                    self._apply(unit)
            self.revision = message.revision
            self._wake()

    def _replace(self, fresh: dict[str, entity_pb2.Entity], done: feed_pb2.WatchResponse, reason: str) -> None:
        old, common = self._entities, self._entities.keys() & fresh.keys()
        if self.epoch and self.epoch != done.epoch:
            self._past_epochs.add(self.epoch)
        self._entities, self.epoch, self.revision = fresh, done.epoch, done.revision
        self._tell(
            Replaced(
                reason,
                done.epoch,
                done.revision,
                added=frozenset(fresh.keys() - old.keys()),
                changed=frozenset(name for name in common if fresh[name] != old[name]),
                removed=frozenset(old.keys() - fresh.keys()),
            )
        )

    def _apply(self, unit: feed_pb2.Unit) -> None:
        for change in unit.changes:
            if change.kind in _GONE:
                self._entities.pop(change.entity.name or change.previous.name, None)
            elif change.HasField("entity"):
                self._entities[change.entity.name] = change.entity
        self.revision = unit.revision
        self._tell(unit)

    def _tell(self, change: Replaced | feed_pb2.Unit) -> None:
        if self._on_change is not None:
            self._on_change(change)
