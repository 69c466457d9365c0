"""Proof by arithmetic that a feed missed nothing. Pure: no transport, no clock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from strandline_client.errors import FeedViolation

_MODULUS = 2**256


@dataclass
class RangeVerifier:
    """Checks that the ranges of a feed's messages join up, and that units lie where they belong.

    ``dense``: no filter and no types were given, so every revision of a range must be there. ``revision`` is the last
    one covered; None until a message came, unless the feed continues an older one.
    """

    dense: bool
    epoch: str = ""
    revision: int | None = None

    def observe(self, after: int, revision: int, epoch: str, units: Sequence[int] | None = None) -> None:
        """Take one message that covers ``(after, revision]``; *units* are the revisions in it (None: not units).

        Raises:
            FeedViolation: the message cannot follow the ones before it. The verifier stays where it was.
        """
        if self.epoch and epoch != self.epoch:
            raise FeedViolation(f"epoch {epoch} follows {self.epoch}")
        if self.revision is not None and after != self.revision:
            raise FeedViolation(
                f"a message covers ({after}, {revision}], but the one before it ended at {self.revision}"
            )
        if revision < after:
            raise FeedViolation(f"a message covers ({after}, {revision}]")
        if units is None and self.dense and revision != after:
            raise FeedViolation(f"({after}, {revision}] was skipped, although everything was asked for")
        if units is not None:
            self._check_units(after, revision, units)
        self.epoch, self.revision = epoch, revision

    def _check_units(self, after: int, revision: int, units: Sequence[int]) -> None:
        if self.dense and list(units) != list(range(after + 1, revision + 1)):
            raise FeedViolation(f"({after}, {revision}] holds the units {list(units)[:20]}")
        previous = after
        for unit in units:
            if not previous < unit <= revision:
                raise FeedViolation(f"unit {unit} follows {previous} in ({after}, {revision}]")
            previous = unit


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
                raise FeedViolation(f"{name} came twice in one snapshot")
            self._names.add(name)
            self.count += 1
            digest = hashlib.sha256(f"{name} {revision}".encode()).digest()
            self.total = (self.total + int.from_bytes(digest)) % _MODULUS

    def check(self, count: int, hash: str) -> None:
        """Compare with the server's sum; may be called when every page was observed."""
        if (count, hash) != (self.count, f"{self.total:064x}"):
            raise FeedViolation(f"the snapshot holds {self.count} entities, the server sent {count}, or other ones")
        self._names.clear()
