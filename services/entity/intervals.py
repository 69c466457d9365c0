"""What comparisons leave of the values of one indexed field, as places in the order of index components."""

from __future__ import annotations

from dataclasses import dataclass

from services.entity.index_keys import encode, invert, successor
from services.runtime.filters.ast import Compare


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


def interval(term: Compare) -> Interval:
    """Return the values that *term*, any comparison but ``!=``, accepts: an order only those of its literal's type."""
    component = encode(term.value)
    before, after = Cut(component, after=False), Cut(component, after=True)
    kind = component[:1]
    match term.operator:
        case "=" if term.value is None:  # never true
            return Interval(after, after, component)
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
