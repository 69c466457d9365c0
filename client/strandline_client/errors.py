"""What a caller of the client has to tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Check: TypeAlias = Literal[
    "ordered",
    "unique",
    "reliable",
    "atomic",
    "dense",
    "resumable",
    "bookmarkable",
    "filter",
    "enter_leave",
    "previous_value",
    "snapshot",
    "durable",
]
"""The promises of a feed, by name; ``validation`` says what each means."""

# Ends after which the position is worth nothing any more: only a new snapshot helps.
LOST = frozenset({"COMPACTED", "EPOCH_CHANGED", "SNAPSHOT_EXPIRED"})


@dataclass(eq=False)
class ApiError(Exception):
    """A refusal by the platform, or a failure that outlasted all retries.

    ``code`` is the name of the gRPC status (over HTTP: of the one it stands for), ``reason`` the stable word from the
    contract; empty when the answer came from somewhere in between.
    """

    code: str
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        head = self.metadata.get("head_revision")  # of FUTURE_REVISION: what there is instead
        return f"{self.reason or self.code}: {self.message}{f' (head_revision {head})' if head else ''}"


@dataclass(eq=False)
class FeedEnded(Exception):
    """The server ended the feed, and resuming cannot help: start anew, or stop.

    ``reason`` is the name of an ``End.Reason``; ``epoch`` and ``revision`` are the last position that was reached.
    """

    reason: str
    detail: str
    epoch: str
    revision: int

    @property
    def position_is_lost(self) -> bool:
        """Whether the namespace lives on and only this position does not: begin anew with a snapshot."""
        return self.reason in LOST

    def __str__(self) -> str:
        return f"{self.reason} at {self.epoch}.{self.revision}: {self.detail}"


@dataclass(eq=False)
class FeedViolation(Exception):
    """The feed broke a promise. ``check`` is the name of the promise, as in ``validation``."""

    check: Check
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"
