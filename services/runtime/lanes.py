"""What waits to be committed in one namespace, and which of it goes into the next transaction.

A batch takes all waiting units whose footprints are disjoint. With many writers a lane lets units gather for some
milliseconds, because a commit costs about the same for one as for fifty; a lone writer never waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from services.runtime.call import Namespace
from services.runtime.errors import Unavailable
from services.runtime.units import Outcomes, Receipt, Unit

MAX_BATCH_UNITS = 1000
MAX_BATCH_BYTES = 8 * 2**20
MAX_WAITING_UNITS = 20_000
# How many waiting units are looked at for one batch: all that wait may want the same name, one batch each.
MAX_LOOKED_AT = 4 * MAX_BATCH_UNITS
# A recent batch of this size says that there are many writers. Then the next one begins when enough units wait, when
# none has come for a moment, or after this time.
MANY_UNITS = 4
ENOUGH_UNITS = 128
GATHER_SECONDS = 0.005
MOMENT_SECONDS = 0.002
# How much of a batch's size counts after the next one: two writers are few again after some ten commits.
FADING = 0.8


U = TypeVar("U", bound=Unit)


class Submission:
    """Units that were submitted together, and are answered together."""

    __slots__ = ("done", "missing", "outcomes")

    def __init__(self, units: int) -> None:
        self.done: asyncio.Future[Outcomes] = asyncio.get_running_loop().create_future()
        self.missing = units
        self.outcomes: Outcomes = [_UNANSWERED] * units

    def answer(self, place: int, outcome: Receipt | Exception) -> None:
        """Say what became of the unit at *place*; the last one that is told answers all."""
        self.missing -= self.outcomes[place] is _UNANSWERED
        self.outcomes[place] = outcome
        if not self.missing and not self.done.done():
            self.done.set_result(self.outcomes)


_UNANSWERED: Final = Unavailable("OVERLOADED", "not answered")


class Waiting(NamedTuple, Generic[U]):
    """A unit, and where its outcome goes."""

    unit: U
    submission: Submission
    place: int


def unanswered(batch: Sequence[Waiting[U]]) -> Sequence[Waiting[U]]:
    """Those of *batch* that no transaction has settled: whoever heard of a refusal must not be committed after all."""
    return [item for item in batch if item.submission.outcomes[item.place] is _UNANSWERED]


@dataclass(eq=False)
class Lane(Generic[U]):
    """What waits in one namespace; ``worker`` commits it."""

    namespace: Namespace
    waiting: deque[Waiting[U]] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None
    busy: float = 0.0
    """The size of recent batches, fading."""

    async def gather(self, committed: int) -> None:
        """Let units come in if there are many writers; the last batch had *committed* units."""
        self.busy = max(committed, self.busy * FADING)
        if self.busy < MANY_UNITS:
            return
        clock = asyncio.get_running_loop().time
        until = clock() + GATHER_SECONDS
        known = 0
        while len(self.waiting) < ENOUGH_UNITS and clock() < until and not 0 < len(self.waiting) == known:
            known = len(self.waiting)
            await asyncio.sleep(MOMENT_SECONDS)
            await asyncio.sleep(0)  # a loop runs its timers before it looks who has come

    def take(self) -> list[Waiting[U]]:
        """The next batch: waiting units in order, without those that conflict with an earlier one.

        After ``MAX_LOOKED_AT`` units the rest stays as it is, behind those that have to wait.
        """
        batch: list[Waiting[U]] = []
        left: deque[Waiting[U]] = deque()
        asked: set[tuple[str, str, str]] = set()
        written: set[Hashable] = set()
        referred: set[Hashable] = set()
        size = 0
        while self.waiting and len(batch) + len(left) < MAX_LOOKED_AT:
            item = self.waiting.popleft()
            if item.submission.done.done():  # the caller went away
                continue
            unit = item.unit
            request, exclusive, shared = unit.request_key, unit.exclusive, unit.shared
            full = len(batch) >= MAX_BATCH_UNITS or (bool(batch) and size + unit.size > MAX_BATCH_BYTES)
            conflict = (
                request in asked
                or not written.isdisjoint(exclusive)
                or not written.isdisjoint(shared)
                or not referred.isdisjoint(exclusive)
            )
            # A unit that has to wait still blocks its footprint: later units on the same names must not overtake it.
            asked.add(request)
            written |= exclusive
            referred |= shared
            if full or conflict:
                left.append(item)
                if full:
                    break
            else:
                batch.append(item)
                size += unit.size
        self.waiting.extendleft(reversed(left))
        return batch
