"""Ids that the services give out."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

_IDS_PER_BLOCK: Final = 512
_RANDOM_BITS: Final = 74


def _draw() -> Iterator[int]:
    """Random numbers. A system call for each took 5 % of the time of a batch of creates; one block serves many."""
    while True:
        block = os.urandom(10 * _IDS_PER_BLOCK)
        for start in range(0, len(block), 10):
            yield int.from_bytes(block[start : start + 10], "big") & (1 << _RANDOM_BITS) - 1


_random = _draw()


def uuid7() -> str:
    """A lower-case UUIDv7 (RFC 9562): milliseconds, then 74 random bits. For the event loop's thread only."""
    random = next(_random)
    value = time.time_ns() // 1_000_000 << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    text = f"{value:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
