"""The ring of one namespace: what was committed lately, once in memory for all subscribers.

A subscriber is a cursor (the last revision it has seen), not a queue, so that memory does not grow with slow readers:
one whose cursor falls below ``floor`` reads the owner's log until it has caught up. Nothing here awaits but
``changed``: a subscriber that compares its cursor with the floor and then takes a batch cannot miss a unit in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.runtime.changelog import Head
from services.stream.audiences import Audience, Audiences
from services.stream.messages import LogUnit, UnitsMessage, purges, share, that_fit
from services.stream.news import News, Take
from services.stream.selection import Selection

# Of a ring, as the owner encoded the units; their JSON, about twice as long, comes on top when somebody reads JSON.
MAX_RING_BYTES = 8 * 2**20
MAX_RING_UNITS = 20_000


@dataclass(eq=False)
class Hub:
    """What one process knows about one life of one namespace's log.

    ``position`` is the last revision in the ring (or skipped before it), ``floor`` the last one no longer in it.
    ``head`` is the newest revision heard of; ``access_changes`` counts hints that somebody may have lost access. What
    was read from a log older than ``purged_to`` may hold what was purged since.
    """

    namespace: str
    max_bytes: int = MAX_RING_BYTES
    max_units: int = MAX_RING_UNITS
    epoch: str = ""
    position: int = 0
    floor: int = 0
    head: int = 0
    horizon: int = 0
    purged_to: int = 0
    ended: bool = False
    subscribers: int = 0
    access_changes: int = 0
    _units: dict[int, LogUnit] = field(default_factory=dict)
    _bytes: int = 0
    _batches: dict[int, UnitsMessage] = field(default_factory=dict)
    _news: News = field(default_factory=News)
    _audiences: Audiences = field(init=False)

    def __post_init__(self) -> None:
        self._audiences = Audiences(self.max_bytes)

    @property
    def started(self) -> bool:
        """Whether the hub knows which life of the log it follows."""
        return bool(self.epoch)

    def start(self, head: Head) -> None:
        """Begin, or begin again, after *head*, with an empty ring."""
        self.epoch = head.epoch
        self.position = self.floor = self.purged_to = head.revision
        self._units.clear()
        self._bytes = 0
        self._audiences.begin_again(self.position)
        self.learn(head)

    def learn(self, head: Head) -> None:
        """Remember how far the log is. *head* may be older than what is known already."""
        self.head = max(self.head, head.revision, self.position)
        self.horizon = max(self.horizon, head.horizon)

    def append(self, after: int, bodies: Sequence[bytes]) -> bool:
        """Take the units that follow revision *after*, but for those already held. False: a gap comes before them."""
        if after > self.position:
            return False
        fresh = [LogUnit(body) for body in bodies[self.position - after :]]
        if fresh:
            for unit in fresh:
                self.position += 1
                self._units[self.position] = unit
                self._bytes += len(unit.body)
                if purges(unit.body):
                    self._forget_before(self.position)
            self.head = max(self.head, self.position)
            self._evict()
            self._batches.clear()
            self._news.tell()
            self._audiences.take(fresh, self.position, self.floor)
        return True

    def _forget_before(self, revision: int) -> None:
        """Drop the units before *revision*, which may hold what it purged: who still needs them reads the log."""
        for dropped in range(self.floor + 1, revision):
            self._bytes -= len(self._units.pop(dropped).body)
        self.floor = revision - 1
        self.purged_to = revision

    def _evict(self) -> None:
        while self._bytes > self.max_bytes or len(self._units) > self.max_units:
            self.floor += 1
            self._bytes -= len(self._units.pop(self.floor).body)

    def batch(self, cursor: int) -> UnitsMessage | None:
        """As many units after *cursor* as fit into one message, at least one; None while there is none.

        *cursor* must not be below ``floor``. Subscribers with equal cursors get the same object until the next change.
        """
        if cursor >= self.position:
            return None
        if (made := self._batches.get(cursor)) is None:
            units = that_fit(self._units[revision] for revision in range(cursor + 1, self.position + 1))
            made = UnitsMessage(self.epoch, cursor, cursor + len(units), units)
            share(self._batches, made)
        return made

    def end(self) -> None:
        """This life of the log is over."""
        self.ended = True
        self.wake()

    def wake(self) -> None:
        """Let every subscriber that waits look again."""
        self._batches.clear()
        self._news.wake()
        self._audiences.wake()

    async def changed(self, take: Take | None = None) -> None:
        """Wait for the next unit, unless *take* takes it, or ``wake``, which comes at least every second."""
        await self._news.wait(take)

    def join(self, selection: Selection) -> Audience:
        """The audience of *selection*, which is not everything, for one more reader, who must ``leave`` it."""
        return self._audiences.join(selection, self.epoch, self.position)

    def leave(self, audience: Audience) -> None:
        """One reader less."""
        self._audiences.leave(audience)
