"""Timestamps and durations as text, read alike by Python and by PostgreSQL.

A timestamp is RFC 3339 with up to nine digits of fraction, in the years 0001 to 9999, without leap seconds. A duration
is what protobuf's JSON writes (``1.5s``, up to nine digits of fraction), or ISO 8601 in weeks, days, hours, minutes and
seconds (``P1DT2H``); years and months have no fixed length. Everything else is no timestamp and no duration.

One regular expression serves both sides: it decides alone what is valid, so that no cast in SQL can fail.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    "(?!0000)(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    f"|{_LEAP_YEAR}-02-29)"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_FRACTION = r"\.[0-9]{1,9}"


def _timestamp_pattern(group: str) -> str:
    """Groups, if *group* opens them: date, time of day, fraction, sign, hours and minutes of the offset."""
    offset = f"{group}[+-]){group}[01][0-9]|2[0-3]):{group}[0-5][0-9])"
    return f"{group}{_DATE})[Tt]{group}{_TIME}){group}{_FRACTION})?(?:[Zz]|{offset})"


_COUNT = "[0-9]{1,9}"
_SECONDS = f"-?{_COUNT}(?:{_FRACTION})?"


def _iso_duration_pattern(group: str) -> str:
    """Groups, if *group* opens them: sign, weeks, days, hours, minutes, seconds with their fraction."""
    date = f"(?:{group}{_COUNT})W)?(?:{group}{_COUNT})D)?"
    time = f"(?:{group}{_COUNT})H)?(?:{group}{_COUNT})M)?(?:{group}{_COUNT}(?:{_FRACTION})?)S)?"
    return f"{group}-?)P(?=[0-9T]){date}(?:T(?=[0-9]){time})?"


_TIMESTAMP = re.compile(_timestamp_pattern("("))
_PROTO_DURATION = re.compile(f"({_SECONDS})s")
_ISO_DURATION = re.compile(_iso_duration_pattern("("))
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
    if match := _PROTO_DURATION.fullmatch(text):
        return int(Decimal(match[1]) * _SECOND_NS)
    if match := _ISO_DURATION.fullmatch(text):
        sign, *counts = match.groups()
        lengths = (_WEEK, _DAY, _HOUR, _MINUTE, 1)
        seconds = sum(Decimal(count or 0) * length for count, length in zip(counts, lengths, strict=True))
        return int(seconds * _SECOND_NS) * (-1 if sign else 1)
    return None


def timestamp_sql(text: str) -> str:
    """SQL of the seconds since the epoch (numeric) that *text*, a SQL expression, says; NULL if it is no timestamp."""
    # PostgreSQL takes ten times as long to find the groups of an expression as to match it; the places are fixed.
    local = "extract(epoch from (left(t, 10) || ' ' || substr(t, 12, 8))::timestamp)"
    fraction = "('0' || split_part(translate(substr(t, 20), 'Zz+-', '    '), ' ', 1))::numeric"
    seconds = f"substr(t, length(t) - 4, 2)::int * {_HOUR} + right(t, 2)::int * {_MINUTE}"
    offset = f"case when t ~ '[Zz]$' then 0 else (substr(t, length(t) - 5, 1) || '1')::int * ({seconds}) end"
    valid = f"t ~ '^(?:{_timestamp_pattern('(?:')})$'"
    return f"(select case when {valid} then {local} + {fraction} - {offset} end from (select {text} as t) s)"  # noqa: S608


def duration_sql(text: str) -> str:
    """SQL of the seconds (numeric) that *text*, a SQL expression, says; NULL if it is no duration."""
    lengths = {"W": _WEEK, "D": _DAY, "H": _HOUR, "M": _MINUTE, "S": 1}
    counts = (
        f"coalesce(substring(t from '([0-9.]+){unit}')::numeric, 0) * {length}" for unit, length in lengths.items()
    )
    iso = f"case when left(t, 1) = '-' then -1 else 1 end * ({' + '.join(counts)})"
    return f"""(select case when t ~ '^{_SECONDS}s$' then left(t, -1)::numeric
        when t ~ '^(?:{_iso_duration_pattern("(?:")})$' then {iso} end from (select {text} as t) s)"""  # noqa: S608


def seconds_text(nanoseconds: int) -> str:
    """*nanoseconds* as seconds with nine decimals, for a numeric parameter."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    return f"{sign}{rest // _SECOND_NS}.{rest % _SECOND_NS:09}"


def _nanoseconds(fraction: str | None) -> int:
    return int(fraction[1:].ljust(9, "0")) if fraction else 0
