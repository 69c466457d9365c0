"""Ids that the services give out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

_IDS_PER_BLOCK: Final = 512
_VARIANT: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
"""A random digit to one whose first two bits say that the layout is RFC 9562's."""


def _draw() -> Iterator[str]:
    """All of an id behind its time. A system call for each took 5 % of a batch of creates; one block serves many."""
    while True:
        digits = os.urandom(10 * _IDS_PER_BLOCK).hex()
        for at in range(0, len(digits), 20):
            one = digits[at : at + 19]
            yield f"-7{one[:3]}-{_VARIANT[one[3]]}{one[4:7]}-{one[7:]}"


_random = _draw()


@lru_cache(maxsize=1)
def _time(milliseconds: int) -> str:
    text = f"{milliseconds:012x}"
    return f"{text[:8]}-{text[8:]}"


def uuid7() -> str:
    """A lower-case UUIDv7 (RFC 9562): milliseconds, then 74 random bits. For the event loop's thread only."""
    return _time(time.time_ns() // 1_000_000) + next(_random)
