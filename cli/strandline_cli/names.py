"""Names as the contract has them, checked before they become part of a URL."""

from __future__ import annotations

import re
from typing import Final

NAMESPACE: Final = re.compile(r"[a-z][a-z0-9-]{1,62}")
TYPE: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
IMPORT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check(name: str, pattern: re.Pattern[str]) -> str:
    """*name*, if it is one.

    Raises:
        ValueError: it is none; the message says what one looks like.
    """
    if not pattern.fullmatch(name):
        raise ValueError(f"{name!r} must match {pattern.pattern}")
    return name
