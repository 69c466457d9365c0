"""A group of workers: what it may be handed, what it has done, and where its checkpoint is. Pure: no clock, no I/O.

A group has read the log up to ``cursor``. Of what its subscription selects up to there, ``outstanding`` is what is
neither done nor parked. So the checkpoint needs no rules of its own: it is the revision before the first outstanding
change, in whatever order the others were finished. (KurrentDB moves a number instead, and has repaired the rules by
which it moves for years.)

Changes of one key, an entity, are delivered one after the other: only the first outstanding one can be handed out. One
that is parked takes along those of its key that are outstanding, and what is read of that key afterwards joins them.
So it holds up its own key and no other.

Moments are microseconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MAX_OUTSTANDING: Final = 2000
"""When so much is outstanding, nothing more is read. Twice what may be in flight: the rest waits behind an entity."""
MAX_PARKED: Final = 10_000
"""When so much is parked, nothing more can be, and a group that would have to stops reading."""

NO_SUCCESS: Final = "ATTEMPTS"
BEHIND: Final = "BEHIND"


class Position(NamedTuple):
    """A change: the revision of its unit, and its index there."""

    revision: int
    index: int  # type: ignore[assignment]  # hides a method of tuples that nobody needs here


class Selected(NamedTuple):
    """A change that the subscription selects; *kind* is what it is to it (an update may be ENTERED or LEFT)."""

    position: Position
    key: str
    kind: int


class Parked(NamedTuple):
    """A change that was put aside."""

    position: Position
    key: str
    kind: int
    attempts: int
    reason: str


class AckId(NamedTuple):
    """One attempt to deliver one change."""

    position: Position
    delivery: int


@dataclass(frozen=True, slots=True)
class Policy:
    """How a group delivers. Durations are microseconds."""

    max_in_flight: int
    ack_deadline: int
    max_attempts: int
    min_backoff: int
    max_backoff: int

    def backoff(self, attempts: int) -> int:
        """The pause after so many attempts."""
        return int(min(self.max_backoff, self.min_backoff * 2 ** min(attempts - 1, 40)))


@dataclass(slots=True)
class Outstanding:
    """A change that is neither done nor parked.

    ``due`` is when it may be handed out (again), or while it is in flight, until when it must be acknowledged.
    ``delivery`` is the number of its last delivery: whoever has an older one is too late.
    """

    position: Position
    key: str
    kind: int
    attempts: int = 0
    delivery: int = 0
    in_flight: bool = False
    due: int = 0

    @property
    def ack_id(self) -> AckId:
        return AckId(self.position, self.delivery)


@dataclass(slots=True)
class Group:
    """The state of one group.

    ``parked`` counts what is parked; which changes these are is kept outside, but for those that were parked by the
    methods called so far: ``newly_parked``.
    """

    cursor: int
    next_delivery: int
    parked: int = 0
    outstanding: dict[Position, Outstanding] = field(default_factory=dict)
    newly_parked: list[Parked] = field(default_factory=list)

    @property
    def checkpoint(self) -> int:
        """Everything at or below this revision is done or parked."""
        return min(self.outstanding).revision - 1 if self.outstanding else self.cursor

    @property
    def in_flight(self) -> int:
        return sum(item.in_flight for item in self.outstanding.values())

    # Reading the log

    def fits(self, selected: Sequence[Selected], parked_keys: Collection[str]) -> bool:
        """Whether the unit that holds *selected* may be admitted now; *parked_keys*: those of its keys that are."""
        behind = sum(change.key in parked_keys for change in selected)
        return (not behind or self.parked + behind <= MAX_PARKED) and (
            not self.outstanding or len(self.outstanding) + len(selected) - behind <= MAX_OUTSTANDING
        )

    def admit(self, revision: int, selected: Iterable[Selected], parked_keys: Collection[str]) -> None:
        """Take over the unit at *revision*, the one after the cursor."""
        if revision != self.cursor + 1:
            raise AssertionError(f"unit {revision} does not follow {self.cursor}")
        for change in selected:
            if change.key in parked_keys:
                self._put_aside(change, 0, BEHIND)
            else:
                self.outstanding[change.position] = Outstanding(*change)
        self.cursor = revision

    def seek(self, revision: int) -> None:
        """Go on after *revision*; what is under way counts no longer."""
        self.outstanding.clear()
        self.cursor = revision

    def restore(self, parked: Iterable[Parked]) -> None:
        """Deliver again what was *parked*: of each key everything, for what is left parked blocks it."""
        for change in parked:
            self.outstanding[change.position] = Outstanding(change.position, change.key, change.kind)
            self.parked -= 1
        self.outstanding = dict(sorted(self.outstanding.items()))

    # Delivering

    def expire(self, now: int, policy: Policy) -> None:
        """Take back what was not acknowledged in time."""
        for item in list(self.outstanding.values()):
            if item.in_flight and item.due <= now:
                self._fail(item, item.due + policy.backoff(item.attempts), policy)

    def ready(self, now: int) -> int:
        """How many changes could be handed out, but for what may be in flight."""
        return sum(not item.in_flight and item.due <= now for item in self._first_of_each_key())

    def next_due(self, now: int) -> int | None:
        """When time alone lets a change be handed out (again) that cannot be now; None: it never does."""
        return min((item.due for item in self._first_of_each_key() if item.due > now), default=None)

    def hand_out(self, now: int, limit: int, policy: Policy) -> list[Outstanding]:
        """At most *limit* changes, in order, that are now in flight until ``due``."""
        self.expire(now, policy)
        limit = min(limit, policy.max_in_flight - self.in_flight)
        handed: list[Outstanding] = []
        for item in self._first_of_each_key():
            if len(handed) >= limit:
                break
            if item.in_flight or item.due > now:
                continue
            item.in_flight = True
            item.attempts += 1
            item.delivery = self.next_delivery
            item.due = now + policy.ack_deadline
            self.next_delivery += 1
            handed.append(item)
        return handed

    def _first_of_each_key(self) -> Iterator[Outstanding]:
        keys: set[str] = set()
        for item in self.outstanding.values():
            if item.key not in keys:
                keys.add(item.key)
                yield item

    def take_back(self, ack_id: AckId) -> None:
        """Undo a hand-out that never reached a worker."""
        if (item := self._find(ack_id)) is not None and item.in_flight:
            item.in_flight = False
            item.attempts -= 1
            item.due = 0

    # What workers say; False: too late

    def finish(self, ack_id: AckId) -> bool:
        """It is done. Also after the deadline, as long as nobody else was given it."""
        if self._find(ack_id) is None:
            return False
        del self.outstanding[ack_id.position]
        return True

    def retry(self, ack_id: AckId, due: int, policy: Policy) -> bool:
        """It failed: hand it out again at *due*, or park it after the last attempt."""
        item = self._find(ack_id)
        if item is None or not item.in_flight:
            return False
        self._fail(item, due, policy)
        return True

    def park(self, ack_id: AckId, reason: str) -> bool:
        """Put it aside, and the later ones of its key behind it. Not when as much is parked as may be."""
        item = self._find(ack_id)
        if item is None or self.parked >= MAX_PARKED:
            return False
        self._park(item, reason)
        return True

    def extend(self, ack_id: AckId, deadline: int) -> bool:
        """Let the worker have it until *deadline*."""
        item = self._find(ack_id)
        if item is None or not item.in_flight:
            return False
        item.due = deadline
        return True

    def in_flight_of(self, ack_ids: Iterable[AckId]) -> set[AckId]:
        """Those of *ack_ids* that are in flight still."""
        return {ack_id for ack_id in ack_ids if (item := self._find(ack_id)) is not None and item.in_flight}

    def _find(self, ack_id: AckId) -> Outstanding | None:
        item = self.outstanding.get(ack_id.position)
        return item if item is not None and item.delivery == ack_id.delivery and item.attempts else None

    def _fail(self, item: Outstanding, due: int, policy: Policy) -> None:
        item.in_flight = False
        item.due = due
        if item.attempts >= policy.max_attempts and self.parked < MAX_PARKED:
            self._park(item, NO_SUCCESS)

    def _park(self, item: Outstanding, reason: str) -> None:
        for later in [other for other in self.outstanding.values() if other.key == item.key]:
            del self.outstanding[later.position]
            is_first = later is item
            selected = Selected(later.position, later.key, later.kind)
            self._put_aside(selected, later.attempts, reason if is_first else BEHIND)

    def _put_aside(self, change: Selected, attempts: int, reason: str) -> None:
        self.newly_parked.append(Parked(change.position, change.key, change.kind, attempts, reason))
        self.parked += 1
