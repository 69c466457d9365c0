"""Where a feed starts, what was seen of it, and where it goes on after a break."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from strandline_client.errors import ApiError, FeedEnded
from strandline_client.verify import RangeVerifier, SnapshotVerifier

# Ends after which the same position works again, at once or soon.
RESUMABLE = frozenset({"DRAINING", "TOKEN_EXPIRED", "ACCESS_UNVERIFIABLE", "UNAVAILABLE"})
# The end of a feed that was asked to have one.
_COMPLETED = "COMPLETED"


@dataclass(frozen=True, kw_only=True)
class Start:
    """Exactly one of the five; ``epoch`` goes with ``after_revision``.

    Raises:
        ValueError: none of them, more than one, or an ``epoch`` without ``after_revision``.
    """

    now: bool = False
    after_revision: int | None = None
    epoch: str = ""
    snapshot: bool = False
    after_time: datetime | None = None
    resume_token: str = ""

    def __post_init__(self) -> None:
        places = {
            "now": self.now,
            "after_revision": self.after_revision is not None,
            "snapshot": self.snapshot,
            "after_time": self.after_time is not None,
            "resume_token": bool(self.resume_token),
        }
        given = [name for name, is_given in places.items() if is_given]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(places)}: got {' and '.join(given) or 'none'}")
        if self.epoch and self.after_revision is None:
            raise ValueError("epoch goes with after_revision, and with nothing else")

    @property
    def resumes(self) -> bool:
        """Whether it names a place in the feed, rather than whatever the log holds by then."""
        return self.after_revision is not None or bool(self.resume_token)

    def query(self) -> list[tuple[str, str]]:
        """As parameters of a URL."""
        if self.resume_token:
            return [("resume_token", self.resume_token)]
        if self.after_revision is not None:
            return [("after_revision", str(self.after_revision)), *([("epoch", self.epoch)] if self.epoch else [])]
        if self.after_time is not None:
            return [("after_time", self.after_time.astimezone(UTC).isoformat().replace("+00:00", "Z"))]
        return [("snapshot" if self.snapshot else "now", "true")]


@dataclass(frozen=True, slots=True)
class Ending:
    """A server's ``End``."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What matters of one message, however it was carried. Of a unit: its revision, and the unit."""

    after: int
    revision: int
    epoch: str
    units: Sequence[tuple[int, object]] | None = None
    page: Sequence[tuple[str, int]] | None = None
    resume_token: str = ""
    summary: tuple[int, str] | None = None
    end: Ending | None = None


@dataclass
class Position:
    """Verifies what comes, and knows where to go on."""

    start: Start
    dense: bool
    is_complete: bool = False
    _ranges: RangeVerifier = field(init=False)
    _snapshot: SnapshotVerifier | None = field(init=False)

    def __post_init__(self) -> None:
        self._ranges = self._begin()
        # A snapshot taken up again from another process's token cannot be summed here.
        self._snapshot = SnapshotVerifier() if self.start.snapshot else None

    def _begin(self) -> RangeVerifier:
        after = self.start.after_revision
        return RangeVerifier(self.dense, self.start.epoch if after is not None else "", after)

    @property
    def epoch(self) -> str:
        """Of the last message; empty before the first."""
        return self._ranges.epoch

    @property
    def revision(self) -> int:
        """The last one covered; 0 before the first message."""
        return self._ranges.revision or 0

    def resume(self) -> Start:
        """Where the next connection begins."""
        self._ranges.reconnected()
        return self.start

    def take(self, seen: Seen) -> None:
        """Verify a message and move behind it.

        Raises:
            FeedViolation: it broke a promise.
            FeedEnded: it ends the feed for good.
            ApiError: it ends the feed; ``start`` says where to go on.
        """
        self._ranges.observe(seen.after, seen.revision, seen.epoch, seen.units)
        if seen.end is not None and seen.end.reason == _COMPLETED:
            self.is_complete = True
            return
        if seen.end is not None:
            self._end(seen.end, seen)
        if seen.page is not None:
            if self._snapshot is not None:
                self._snapshot.observe(seen.page)
            self.start = Start(resume_token=seen.resume_token)
            return
        if seen.summary is not None and self._snapshot is not None:
            self._snapshot.check(*seen.summary)
        self.start = Start(after_revision=seen.revision, epoch=seen.epoch)

    def _end(self, end: Ending, seen: Seen) -> None:
        if end.reason not in RESUMABLE:
            raise FeedEnded(end.reason, end.detail, seen.epoch, seen.revision)
        if not self.start.resumes:
            # Nothing came yet, so there is nothing to join up with: the next try begins wherever the log is by then.
            self._ranges = self._begin()
        raise ApiError("UNAVAILABLE", end.reason, end.detail)
