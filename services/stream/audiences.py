"""Readers of one hub who asked for the same: what of the ring is theirs is found, evaluated and encoded once.

When units join the ring, the index says which audiences they may concern. These are evaluated and, if anything matched,
told; all others sleep on: that nothing of theirs happened is known without asking, and their feeds say so with their
next ``Progress``.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Sequence
from itertools import takewhile
from typing import Final

from services.stream.messages import LogUnit, UnitsMessage, share, that_fit
from services.stream.news import News, Take
from services.stream.selection import Selection
from services.stream.selection_index import SelectionIndex
from services.stream.views import UnitView

logger = logging.getLogger(__name__)

MAX_EVALUATIONS: Final = 10_000
"""Of changes, when units join the ring: about 15 ms. The rest is left to the readers, each in its own time."""
_ENTRY_BYTES: Final = 100


class Audience:
    """Everybody on a hub with one selection.

    What matches after revision ``since``, up to the hub's position, is known; who has not come so far has to look at
    the units themselves.
    """

    def __init__(self, selection: Selection, epoch: str, since: int) -> None:
        self.selection = selection
        self.epoch = epoch
        self.since = since
        self.members = 0
        self._units: dict[int, LogUnit] = {}
        self._batches: dict[int, UnitsMessage] = {}
        self._news = News()

    def batch(self, cursor: int, position: int) -> UnitsMessage | None:
        """What matches after *cursor*, at least ``since``, as far as it fits into one message; None: nothing does.

        It covers everything up to *position*, the hub's, or else up to its last unit.
        """
        if (made := self._batches.get(cursor)) is not None:
            return made
        later = list(takewhile(lambda revision: revision > cursor, reversed(self._units)))
        if not later:
            return None
        later.reverse()
        units = that_fit(self._units[revision] for revision in later)
        end = position if len(units) == len(later) else later[len(units) - 1]
        made = UnitsMessage(self.epoch, cursor, end, units)
        share(self._batches, made)
        return made

    def keep(self, revision: int, unit: LogUnit) -> None:
        """Remember *unit*, which is newer than all others, as what matches at *revision*."""
        self._units[revision] = unit

    def drop(self, revision: int) -> None:
        """Forget what matches at *revision*, and know only what comes after it."""
        if self._units.pop(revision, None) is not None:
            self.since = max(self.since, revision)
            self._batches.clear()

    def begin_again(self, position: int) -> None:
        """Know nothing but what comes after *position*."""
        self.since = position
        self._units.clear()
        self._batches.clear()

    def tell(self) -> None:
        """There is something new, or something to be looked at."""
        self._batches.clear()
        self._news.tell()

    def wake(self) -> None:
        """Let every reader that waits look again."""
        self._batches.clear()
        self._news.wake()

    async def changed(self, take: Take | None = None) -> None:
        """Wait for what is new, unless *take* takes it, or for the next ``wake``."""
        await self._news.wait(take)


class Audiences:
    """The audiences of one hub. What they hold together is bounded, units of the ring apart, by *max_bytes*."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._audiences: dict[Selection, Audience] = {}
        self._index: SelectionIndex[Audience] = SelectionIndex()
        # Everything kept, oldest first: revision, whose, and how many bytes that no ring holds.
        self._kept: deque[tuple[int, Audience, int]] = deque()

    def join(self, selection: Selection, epoch: str, position: int) -> Audience:
        """The audience of *selection* for one more reader, who must ``leave``; *position* is the hub's."""
        audience = self._audiences.get(selection)
        if audience is None:
            audience = self._audiences[selection] = Audience(selection, epoch, position)
            self._index.add(audience, selection)
        audience.members += 1
        return audience

    def leave(self, audience: Audience) -> None:
        """One reader less."""
        audience.members -= 1
        if not audience.members:
            del self._audiences[audience.selection]
            self._index.discard(audience)
            audience.begin_again(audience.since)

    def take(self, units: Sequence[LogUnit], position: int, floor: int) -> None:
        """Evaluate *units*, the newest of the ring, which goes from *floor* to *position* now; tell those concerned.

        They take what is theirs while they are told, so what left the ring with these units is forgotten before.
        """
        touched: Collection[Audience] = ()
        if self._audiences:
            try:
                touched = self._evaluate(units, position)
            except Exception:
                # Nobody may take for granted that nothing of theirs is in there: each looks, and its feed breaks
                # audibly.
                logger.exception("units up to revision %s cannot be evaluated", position)
                touched = self._audiences.values()
                for audience in touched:
                    audience.begin_again(position)
        self._forget(floor)
        for audience in touched:
            audience.tell()

    def _evaluate(self, units: Sequence[LogUnit], position: int) -> Collection[Audience]:
        """Those whom *units* concern, who now know what is theirs, or that they have to look."""
        left = MAX_EVALUATIONS
        touched: dict[Audience, None] = {}
        for revision, unit in enumerate(units, position - len(units) + 1):
            view = UnitView(unit.body)
            for audience, changes in self._index.concerned(view).items():
                left -= len(changes)
                if left < 0:
                    audience.begin_again(position)
                    touched[audience] = None
                elif kept := audience.selection.of_unit(unit, view, changes):
                    self._keep(audience, revision, unit, kept)
                    touched[audience] = None
        return touched

    def _keep(self, audience: Audience, revision: int, unit: LogUnit, kept: LogUnit) -> None:
        if revision > audience.since:
            size = _ENTRY_BYTES if kept is unit else _ENTRY_BYTES + len(kept.body)
            audience.keep(revision, kept)
            self._kept.append((revision, audience, size))
            self._bytes += size

    def _forget(self, floor: int) -> None:
        """Drop what stands at or below *floor*, the ring's, and the oldest beyond the bound."""
        while self._kept and (self._kept[0][0] <= floor or self._bytes > self._max_bytes):
            revision, audience, size = self._kept.popleft()
            self._bytes -= size
            audience.drop(revision)

    def begin_again(self, position: int) -> None:
        """The ring is empty, and begins after *position*."""
        self._kept.clear()
        self._bytes = 0
        for audience in self._audiences.values():
            audience.begin_again(position)

    def wake(self) -> None:
        """Let every reader that waits look again."""
        for audience in self._audiences.values():
            audience.wake()
