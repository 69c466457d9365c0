"""What comparisons leave of the values of one indexed field, as places in the order of index components."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from services.entity.index_keys import NULL, STRING, encode, invert, successor
from services.runtime.filters.ast import Compare, Duration, Instant, Like, Node, Operator, Value


@dataclass(frozen=True, slots=True)
class Cut:
    """A place between two values: before or after all ascending components that begin with *prefix*."""

    prefix: bytes
    after: bool

    def position(self, head: bytes = b"", *, descending: bool = False) -> bytes:
        """Return the least key at or behind the place, among the keys that begin with *head*."""
        prefix, after = (invert(self.prefix), not self.after) if descending else (self.prefix, self.after)
        bound = successor(head + prefix) if after else head + prefix
        assert bound is not None, "the first byte of a component is never 0xff"
        return bound


@dataclass(frozen=True, slots=True)
class Interval:
    """The values between two places. *fixed* is the component of an equality among the comparisons, if there is one."""

    low: Cut
    high: Cut
    fixed: bytes | None

    @property
    def empty(self) -> bool:
        """Whether no value can lie between; a range between two adjacent doubles may go unnoticed."""
        return self.low.position() >= self.high.position()

    def intersect(self, other: Interval) -> Interval:
        """Return the interval that both comparisons leave."""
        low = max(self.low, other.low, key=Cut.position)
        high = min(self.high, other.high, key=Cut.position)
        return Interval(low, high, other.fixed if self.fixed is None else self.fixed)


SCALARS: Final = Interval(Cut(NULL, after=True), Cut(STRING, after=True), None)
"""Everything that is neither missing nor null."""


def interval(term: Node) -> Interval | None:
    """Return an interval that holds every value that *term* accepts, or None for a term that no range serves.

    Those are ``!=``, a wildcard at the beginning, durations (their text has another order), and everything that is no
    comparison. ``exact`` says whether the interval holds only what the term accepts.
    """
    match term:
        case Compare(_, "!=") | Compare(_, _, Duration()):
            return None
        case Compare(_, operator, Instant(nanoseconds)):
            return _days(operator, nanoseconds)
        case Compare(_, operator, value):
            return _range(operator, value)
        case Like(_, parts) if parts[0]:
            beginning = encode(parts[0])[:-1]  # less what closes a text
            return Interval(Cut(beginning, after=False), Cut(beginning, after=True), None)
    return None


def exact(term: Node) -> bool:
    """Whether ``interval(term)`` holds exactly what *term* accepts."""
    match term:
        case Compare(_, "!=") | Compare(_, _, Instant() | Duration()):
            return False
        case Like(_, (first, last)):
            return bool(first) and not last
    return isinstance(term, Compare)


def _range(operator: Operator, value: Value) -> Interval:
    """An order accepts only values of its literal's type."""
    component = encode(value)
    before, after = Cut(component, after=False), Cut(component, after=True)
    kind = component[:1]
    match operator:
        case "=":
            return Interval(before, after, component)
        case ">":
            return Interval(after, Cut(kind, after=True), None)
        case ">=":
            return Interval(before, Cut(kind, after=True), None)
        case "<":
            return Interval(Cut(kind, after=False), before, None)
        case _:
            return Interval(Cut(kind, after=False), after, None)


def _days(operator: Operator, nanoseconds: int) -> Interval:
    """Texts that may say a moment in the range: they begin with a local date, less than a day from that of UTC."""
    low = high = STRING
    if operator in ("=", ">", ">="):
        low += _date(nanoseconds, days=-1)
    if operator in ("=", "<", "<="):
        high += _date(nanoseconds, days=1)
    return Interval(Cut(low, after=False), Cut(high, after=True), None)


def _date(nanoseconds: int, days: int) -> bytes:
    """The date of UTC that many days later, as it is written; empty beyond the years that can be written."""
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=nanoseconds // 10**9, days=days)
    except OverflowError:
        return b""
    return moment.date().isoformat().encode()
