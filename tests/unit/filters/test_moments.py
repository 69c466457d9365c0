"""Timestamps and durations as text, against Python's own reading of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.filters.moments import read_duration, read_timestamp, seconds_text
from tests.unit.filters.strategies import NO_MOMENTS, near_moments

zones = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MICROSECOND = timedelta(microseconds=1)


@given(st.datetimes(timezones=zones))
def test_a_timestamp_is_the_moment_that_python_writes_so(moment: datetime) -> None:
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert read_timestamp(moment.isoformat()) == since // MICROSECOND * 1000


@given(near_moments)
def test_what_looks_like_a_timestamp_is_one_exactly_if_python_can_read_it(text: str) -> None:
    try:
        moment = datetime.fromisoformat(text.upper())
    except ValueError:
        assert read_timestamp(text) is None
    else:
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        assert read_timestamp(text) == since // MICROSECOND * 1000


@pytest.mark.parametrize("text", NO_MOMENTS)
def test_what_is_neither_a_timestamp_nor_a_duration_is_refused(text: str) -> None:
    assert read_timestamp(text) is None
    assert read_duration(text) is None


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0s", 0),
        ("1.000000001s", 1_000_000_001),
        ("-0.5s", -500_000_000),
        ("PT1.5S", 1_500_000_000),
        ("P1W2DT3H4M5S", (((9 * 24 + 3) * 60 + 4) * 60 + 5) * 10**9),
        ("-P1D", -86_400 * 10**9),
        ("P999999999W", 999_999_999 * 604_800 * 10**9),
    ],
)
def test_a_duration_is_read_to_the_nanosecond(text: str, nanoseconds: int) -> None:
    assert read_duration(text) == nanoseconds


def test_seconds_are_written_with_every_digit() -> None:
    assert [seconds_text(n) for n in (0, -1, 1_500_000_000)] == ["0.000000000", "-0.000000001", "1.500000000"]
