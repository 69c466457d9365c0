"""What follows from an attempt to deliver."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.stream.egress import Answer, EgressFailure
from services.stream.webhook_policy import (
    FAILING,
    GONE,
    MAX_ATTEMPTS,
    MAX_BACKOFF,
    MAX_DETAIL,
    MAX_RETRY_AFTER,
    MIN_BACKOFF,
    Health,
    Outcome,
    attempt_of,
    health_after,
    pause_before_retry,
    printable,
    retry_after,
)

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
draws = st.floats(0, 1, exclude_max=True)
pauses = st.timedeltas(timedelta(), timedelta(days=1))


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, 0.25)


@given(st.integers(200, 299), st.binary(max_size=50))
def test_every_2xx_is_a_delivery_and_its_body_is_nobodys_business(status: int, body: bytes) -> None:
    attempt = attempt_of(answer(status, body), NOW)
    assert attempt.is_delivered
    assert (attempt.status, attempt.detail, attempt.latency) == (status, "", timedelta(seconds=0.25))


@given(st.one_of(st.integers(100, 199), st.integers(300, 599)))
def test_every_other_status_is_a_failure_and_redirects_are_too(status: int) -> None:
    attempt = attempt_of(answer(status, b"no"), NOW)
    assert (attempt.outcome, attempt.status, attempt.detail) == (Outcome.HTTP_STATUS, status, "no")


@pytest.mark.parametrize(
    "reason", ["TIMEOUT", "NAME_NOT_FOUND", "ADDRESS_REFUSED", "TLS_FAILED", "CONNECTION_FAILED", "BAD_RESPONSE"]
)
def test_every_reason_for_having_no_answer_is_an_outcome(reason: str) -> None:
    attempt = attempt_of(EgressFailure(reason, "why", 1.5), NOW)
    assert (Outcome.Name(attempt.outcome), attempt.status, attempt.detail) == (reason, 0, "why")


@given(st.integers(1, 10_000), pauses, pauses, draws)
def test_a_pause_lies_between_nothing_and_a_bound_that_doubles_up_to_its_limit(
    attempts: int, least: timedelta, most: timedelta, draw: float
) -> None:
    pause = pause_before_retry(attempts, least, most, None, draw)
    assert timedelta() <= pause <= most
    assert pause <= least * 2 ** min(attempts - 1, 29)
    assert pause_before_retry(attempts, least, most, None, 0) == timedelta()
    assert pause_before_retry(attempts + 1, least, most, None, draw) >= pause


@given(st.integers(1, 50), st.timedeltas(timedelta(), MAX_RETRY_AFTER), draws)
def test_a_receiver_that_asks_for_a_pause_gets_at_least_that(attempts: int, asked: timedelta, draw: float) -> None:
    assert pause_before_retry(attempts, MIN_BACKOFF, MAX_BACKOFF, asked, draw) >= asked


def test_the_attempts_of_a_push_subscription_take_about_three_days() -> None:
    pauses = (pause_before_retry(attempt, MIN_BACKOFF, MAX_BACKOFF, None, 0.5) for attempt in range(1, MAX_ATTEMPTS))
    mean = sum(pauses, timedelta())
    assert 3 * DAY <= mean <= 4 * DAY


@given(st.integers(0, 10**30))
def test_a_pause_in_seconds_is_honoured_up_to_an_hour(seconds: int) -> None:
    assert retry_after({"retry-after": f" {seconds} "}, NOW) == timedelta(seconds=min(seconds, 3600))


@given(st.timedeltas(-DAY, DAY).map(lambda pause: pause - timedelta(microseconds=pause.microseconds)))
def test_a_pause_until_a_date_is_honoured_between_now_and_an_hour(pause: timedelta) -> None:
    header = format_datetime(NOW + pause, usegmt=True)
    assert retry_after({"retry-after": header}, NOW) == min(max(pause, timedelta()), MAX_RETRY_AFTER)


@given(st.text(max_size=60))
def test_any_other_text_asks_for_no_pause_or_one_within_bounds(text: str) -> None:
    pause = retry_after({"retry-after": text}, NOW)
    assert pause is None or timedelta() <= pause <= MAX_RETRY_AFTER


def test_a_receiver_that_is_gone_disables_the_webhook_at_once() -> None:
    health = health_after(Health(), attempt_of(answer(410), NOW), DAY, NOW)
    assert health == Health(GONE, NOW, NOW, 1)


@given(st.integers(0, 100), st.timedeltas(timedelta(), 3 * DAY))
def test_a_run_of_failures_disables_when_it_is_long_and_more_than_a_few(failures: int, lasted: timedelta) -> None:
    began = NOW - lasted if failures else None
    health = health_after(Health(failing_since=began, failures=failures), attempt_of(answer(500), NOW), DAY, NOW)
    assert health.failures == failures + 1
    assert health.failing_since == (began or NOW)
    assert health.disable_reason == (FAILING if failures >= 4 and lasted >= DAY else "")
    assert health.disable_time == (NOW if health.is_disabled else None)


@given(st.integers(0, 100), st.timedeltas(timedelta(), 3 * DAY))
def test_one_delivery_ends_a_run_of_failures(failures: int, lasted: timedelta) -> None:
    failing = Health(failing_since=NOW - lasted, failures=failures)
    assert health_after(failing, attempt_of(answer(204), NOW), DAY, NOW) == Health()


@pytest.mark.parametrize("status", [204, 410, 500])
def test_what_ends_after_the_webhook_was_disabled_changes_nothing(status: int) -> None:
    disabled = Health(FAILING, NOW - DAY, NOW - 2 * DAY, 7)
    assert health_after(disabled, attempt_of(answer(status), NOW), DAY, NOW) == disabled


@given(st.binary(max_size=5000))
def test_what_is_shown_of_an_answer_is_short_printable_and_on_one_line(body: bytes) -> None:
    text = printable(body)
    assert len(text) <= MAX_DETAIL
    assert text.isprintable()


def test_what_is_shown_of_an_answer_is_its_beginning() -> None:
    assert printable(b"\x1b[31mno\r\nway\x00 " + b"x" * 1000) == "[31mno way " + "x" * 489
