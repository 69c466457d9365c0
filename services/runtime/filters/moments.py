"""Timestamps and durations as text, read alike by Python and by PostgreSQL.

A timestamp is RFC 3339 with up to nine digits of fraction, in the years 0001 to 9999, without leap seconds. A duration
is what protobuf's JSON writes (``1.5s``, up to nine digits of fraction), or ISO 8601 in weeks, days, hours, minutes and
seconds (``P1DT2H``); years and months have no fixed length. Everything else is no timestamp and no duration.

One regular expression serves both sides: it decides alone what is valid, so that no cast in SQL can fail.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    "(?!0000)(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_FRACTION = r"\.[0-9]{1,9}"
TIMESTAMP_PATTERN: Final = f"({_DATE})[Tt]({_TIME})({_FRACTION})?(?:[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))"
"""Groups: date, time of day, fraction, sign, hours and minutes of the offset."""

_COUNT = "[0-9]{1,9}"
DURATION_PATTERN: Final = (
    f"(-?)(?:({_COUNT})({_FRACTION})?s|"
    f"P(?=[0-9T])(?:({_COUNT})W)?(?:({_COUNT})D)?"
    f"(?:T(?=[0-9])(?:({_COUNT})H)?(?:({_COUNT})M)?(?:({_COUNT})({_FRACTION})?S)?)?)"
)
"""Groups: sign; seconds, fraction; or weeks, days, hours, minutes, seconds, fraction."""

_TIMESTAMP = re.compile(TIMESTAMP_PATTERN)
_DURATION = re.compile(DURATION_PATTERN)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WEEK, _DAY, _HOUR, _MINUTE = 604_800, 86_400, 3_600, 60
_SECOND_NS: Final = 1_000_000_000


def read_timestamp(text: str) -> int | None:
    """Return nanoseconds since the epoch, or None if *text* is no timestamp."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        return None
    day, time, fraction, sign, hours, minutes = match.groups()
    since = datetime.fromisoformat(f"{day}T{time}+00:00") - _EPOCH
    seconds = since.days * _DAY + since.seconds
    if sign is not None:
        offset = int(hours) * _HOUR + int(minutes) * _MINUTE
        seconds += offset if sign == "-" else -offset
    return seconds * _SECOND_NS + _nanoseconds(fraction)


def read_duration(text: str) -> int | None:
    """Return nanoseconds, or None if *text* is no duration."""
    match = _DURATION.fullmatch(text)
    if match is None:
        return None
    sign, seconds, fraction, weeks, days, hours, minutes, iso_seconds, iso_fraction = match.groups()
    parts = ((seconds, 1), (weeks, _WEEK), (days, _DAY), (hours, _HOUR), (minutes, _MINUTE), (iso_seconds, 1))
    whole = sum(int(count or 0) * length for count, length in parts)
    nanoseconds = whole * _SECOND_NS + _nanoseconds(fraction or iso_fraction)
    return -nanoseconds if sign else nanoseconds


def timestamp_sql(text: str) -> str:
    """SQL of the seconds since the epoch (numeric) that *text*, a SQL expression, says; NULL if it is no timestamp."""
    offset = f"coalesce((m[4] || '1')::int * (m[5]::int * {_HOUR} + m[6]::int * {_MINUTE}), 0)"
    local = "extract(epoch from (m[1] || ' ' || m[2])::timestamp) + coalesce(m[3], '0')::numeric"
    return f"(select {local} - {offset} from regexp_match({text}, '^(?:{TIMESTAMP_PATTERN})$') m)"  # noqa: S608


def duration_sql(text: str) -> str:
    """SQL of the seconds (numeric) that *text*, a SQL expression, says; NULL if it is no duration."""
    lengths = {2: 1, 3: 1, 4: _WEEK, 5: _DAY, 6: _HOUR, 7: _MINUTE, 8: 1, 9: 1}
    total = " + ".join(f"coalesce(m[{group}]::numeric, 0) * {length}" for group, length in lengths.items())
    return f"(select (m[1] || '1')::int * ({total}) from regexp_match({text}, '^(?:{DURATION_PATTERN})$') m)"  # noqa: S608


def seconds_text(nanoseconds: int) -> str:
    """*nanoseconds* as seconds with nine decimals, for a numeric parameter."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    return f"{sign}{rest // _SECOND_NS}.{rest % _SECOND_NS:09}"


def _nanoseconds(fraction: str | None) -> int:
    return int(fraction[1:].ljust(9, "0")) if fraction else 0
