"""What a caller of the client has to tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
        return f"{self.reason or self.code}: {self.message}"


@dataclass(eq=False)
class FeedEnded(Exception):
    """The server ended the feed, and resuming cannot help: start anew, or stop.

    ``reason`` is the name of an ``End.Reason``; ``epoch`` and ``revision`` are the last position that was reached.
    """

    reason: str
    detail: str
    epoch: str
    revision: int

    def __str__(self) -> str:
        return f"{self.reason} at {self.epoch}.{self.revision}: {self.detail}"


class FeedViolation(Exception):
    """The feed broke a promise: ranges that do not join up, a unit twice or missing, a snapshot of another sum."""
