"""What follows from an attempt to deliver: pure, without clock, chance or IO of its own.

Delivered is what is answered with 2xx. Everything else fails and is tried again: after a pause that is drawn between
nothing and a bound which doubles with each attempt (full jitter: receivers that come back are not met by everybody at
once), or later if the receiver says so in ``Retry-After``, but no more than an hour later. After the last attempt
the change is parked. 410 disables the webhook at once; a run of failures disables it when it has lasted long enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final

from strandline.stream.v1 import webhook_pb2

from services.stream.egress import Answer, EgressFailure

Outcome = webhook_pb2.WebhookDelivery.Outcome

GONE: Final = "GONE"
FAILING: Final = "FAILING"
MAX_RETRY_AFTER: Final = timedelta(hours=1)
MAX_DETAIL: Final = 500
# A run of failures that is long only because little was tried disables nothing.
_LEAST_FAILURES: Final = 5
_HTTP_GONE: Final = 410


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently one change is tried.

    The defaults of a push subscription spread 40 attempts over about three days.
    """

    max_attempts: int = 40
    min_backoff: timedelta = timedelta(seconds=1)
    max_backoff: timedelta = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of one request: an outcome, the HTTP status (0: none), and a text for people."""

    outcome: webhook_pb2.WebhookDelivery.Outcome.ValueType
    status: int
    detail: str
    latency: timedelta
    retry_after: timedelta | None = None

    @property
    def is_delivered(self) -> bool:
        return self.outcome == Outcome.DELIVERED

    @property
    def is_gone(self) -> bool:
        """Whether the receiver wants no more of it, ever."""
        return self.status == _HTTP_GONE


def attempt_of(answer: Answer | EgressFailure, now: datetime) -> Attempt:
    """What *answer* means; *now* is what an HTTP date in it is measured from."""
    latency = timedelta(seconds=answer.seconds)
    if isinstance(answer, EgressFailure):
        return Attempt(Outcome.Value(answer.reason), 0, answer.message, latency)
    if 200 <= answer.status < 300:
        return Attempt(Outcome.DELIVERED, answer.status, "", latency)
    pause = retry_after(answer.headers, now)
    return Attempt(Outcome.HTTP_STATUS, answer.status, printable(answer.body), latency, pause)


def retry_after(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    """The pause that a receiver asks for, in seconds or until a date, between nothing and an hour; None: none."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        # Of a number as long as a header may be, ten digits are enough to be too long.
        return min(timedelta(seconds=int(text[:10])), MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    pause = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now
    return min(max(pause, timedelta()), MAX_RETRY_AFTER)


def pause_before_retry(attempts: int, policy: RetryPolicy, asked: timedelta | None, draw: float) -> timedelta:
    """How long to wait after *attempts* attempts, at least 1; *draw* is a random number in [0, 1)."""
    # The bound stops growing long before its power of two would be too large for a timedelta.
    bound = min(policy.max_backoff, policy.min_backoff * 2 ** min(attempts - 1, 29))
    pause: timedelta = bound * draw
    return max(pause, asked or timedelta())


def reason_to_disable(
    attempt: Attempt, *, failures: int, failing_since: datetime, disable_after: timedelta, now: datetime
) -> str | None:
    """GONE or FAILING after *attempt*, which failed as the last of *failures*; None: the webhook goes on."""
    if attempt.is_gone:
        return GONE
    return FAILING if failures >= _LEAST_FAILURES and now - failing_since >= disable_after else None


def printable(body: bytes) -> str:
    """The beginning of *body* as text on one line: nothing in it can act on a terminal or a log."""
    text = body[: 4 * MAX_DETAIL].decode(errors="replace")
    shown = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(shown.split())[:MAX_DETAIL]
