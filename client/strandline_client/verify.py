"""Proof by arithmetic that a feed missed nothing, from the stream alone. Pure: no transport, no clock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from strandline_client.errors import FeedViolation

_MODULUS = 2**256


@dataclass
class RangeVerifier:
    """Checks that the ranges of a feed's messages join up, and that units lie where they belong.

    ``dense``: no selection was given, so every revision of a range must be there. ``revision`` is the last one
    covered; None until a message came, unless the feed continues an older one. Checked are *ordered*, *unique*,
    *atomic*, *dense*, *resumable* and *bookmarkable*, as far as the stream alone tells.
    """

    dense: bool
    epoch: str = ""
    revision: int | None = None
    _resuming: bool = True
    _last: tuple[int, object] = (0, None)

    def reconnected(self) -> None:
        """The next message is the first one of a connection: if it does not join up, resuming has failed."""
        self._resuming = True

    def observe(self, after: int, revision: int, epoch: str, units: Sequence[tuple[int, object]] | None = None) -> None:
        """Take one message that covers ``(after, revision]``.

        Args:
            units: revision and content of each unit in it; contents are only compared. None: it holds no units.

        Raises:
            FeedViolation: the message cannot follow the ones before it. The verifier stays where it was.
        """
        for fault in self.faults(after, revision, epoch, units):
            raise fault
        self.move(revision, epoch, units)

    def move(self, revision: int, epoch: str, units: Sequence[tuple[int, object]] | None) -> None:
        """Stand behind a message, whatever was wrong with it."""
        self.epoch, self.revision, self._resuming = epoch, revision, False
        if units:
            self._last = units[-1]

    def faults(
        self, after: int, revision: int, epoch: str, units: Sequence[tuple[int, object]] | None
    ) -> Iterator[FeedViolation]:
        """Everything that is wrong with a message. Does not move."""
        if self.epoch and epoch != self.epoch:
            yield FeedViolation(self._join, f"epoch {epoch} follows {self.epoch}")
        if self.revision is not None and after != self.revision:
            yield FeedViolation(
                self._join, f"a message covers ({after}, {revision}], but the one before it ended at {self.revision}"
            )
        if revision < after:
            yield FeedViolation("dense", f"a message covers ({after}, {revision}]")
        yield from self._faults_of_units(after, revision, units or ())
        if self.dense:
            missing = range(after + 1, revision + 1) if units is None else _missing(after, revision, units)
            if missing:
                yield FeedViolation("dense", f"({after}, {revision}] lacks {list(missing[:20])}")

    @property
    def _join(self) -> Literal["resumable", "dense"]:
        return "resumable" if self._resuming else "dense"

    def _faults_of_units(
        self, after: int, revision: int, units: Sequence[tuple[int, object]]
    ) -> Iterator[FeedViolation]:
        last, content = self._last
        for number, unit in units:
            where = f"unit {number} of ({after}, {revision}]"
            if number == last:
                check: Literal["unique", "atomic"] = "unique" if unit == content else "atomic"
                yield FeedViolation(
                    check, f"{where} came before" + ("" if check == "unique" else ", with other content")
                )
            elif number < last:
                yield FeedViolation("ordered", f"{where} follows {last}")
            elif number <= after:
                yield FeedViolation("bookmarkable", f"{where} comes after everything up to {after} was there")
            elif number > revision:
                yield FeedViolation("bookmarkable", f"{where} lies beyond the range")
            last, content = number, unit


def _missing(after: int, revision: int, units: Sequence[tuple[int, object]]) -> Sequence[int]:
    # The usual case costs nothing: as many as there must be, and the last one is the last one.
    if len(units) == revision - after and units and units[-1][0] == revision:
        return ()
    there = {number for number, _ in units}
    return [number for number in range(after + 1, revision + 1) if number not in there]


@dataclass
class SnapshotVerifier:
    """Checks that the pages of a snapshot add up to what the server says it sent, each entity once."""

    count: int = 0
    total: int = 0
    _names: set[str] = field(default_factory=set)

    def observe(self, entities: Iterable[tuple[str, int]]) -> None:
        """Take a page, as (name, revision) of its entities."""
        for name, revision in entities:
            if name in self._names:
                raise FeedViolation("snapshot", f"{name} came twice")
            self._names.add(name)
            self.count += 1
            digest = hashlib.sha256(f"{name} {revision}".encode()).digest()
            self.total = (self.total + int.from_bytes(digest)) % _MODULUS

    def check(self, count: int, hash: str) -> None:
        """Compare with the server's sum; may be called when every page was observed."""
        if (count, hash) != (self.count, f"{self.total:064x}"):
            raise FeedViolation("snapshot", f"{self.count} entities came, the server sent {count}, or other ones")
        self._names.clear()
