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

# What a subscription that pushes does unless told otherwise: 40 attempts, spread over about three days.
MAX_ATTEMPTS: Final = 40
MIN_BACKOFF: Final = timedelta(seconds=1)
LEAST_BACKOFF: Final = timedelta(milliseconds=100)
MAX_BACKOFF: Final = timedelta(hours=6)
DISABLE_AFTER: Final = timedelta(days=5)
GONE: Final = "GONE"
FAILING: Final = "FAILING"
MAX_RETRY_AFTER: Final = timedelta(hours=1)
MAX_DETAIL: Final = 500
# A run of failures that is long only because little was tried disables nothing.
_LEAST_FAILURES: Final = 5
_HTTP_GONE: Final = 410


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


@dataclass(frozen=True, slots=True)
class Health:
    """How a webhook fares. *disable_reason* is empty while it is enabled."""

    disable_reason: str = ""
    disable_time: datetime | None = None
    failing_since: datetime | None = None
    failures: int = 0

    @property
    def is_disabled(self) -> bool:
        return bool(self.disable_reason)


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


def pause_before_retry(
    attempts: int, least: timedelta, most: timedelta, asked: timedelta | None, draw: float
) -> timedelta:
    """How long to wait after *attempts* attempts, at least 1.

    Args:
        least, most: the bound after the first attempt, and of all bounds.
        asked: what the receiver asked for.
        draw: a random number in [0, 1).
    """
    # The bound stops growing long before its power of two would be too large for a timedelta.
    pause: timedelta = min(most, least * 2 ** min(attempts - 1, 29)) * draw
    return max(pause, asked or timedelta())


def health_after(health: Health, attempt: Attempt, disable_after: timedelta, now: datetime) -> Health:
    """How a webhook fares after *attempt*. What ends after it was disabled changes nothing any more."""
    if health.is_disabled:
        return health
    if attempt.is_delivered:
        return Health()
    failing_since = health.failing_since or now
    failures = health.failures + 1
    if attempt.status == _HTTP_GONE:
        return Health(GONE, now, failing_since, failures)
    if failures >= _LEAST_FAILURES and now - failing_since >= disable_after:
        return Health(FAILING, now, failing_since, failures)
    return Health(failing_since=failing_since, failures=failures)


def printable(body: bytes) -> str:
    """The beginning of *body* as text on one line: nothing in it can act on a terminal or a log."""
    text = body[: 4 * MAX_DETAIL].decode(errors="replace")
    shown = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(shown.split())[:MAX_DETAIL]
