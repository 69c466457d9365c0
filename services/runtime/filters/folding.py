"""Case folding, the same in Python, in SQL and in index keys, whatever the versions of Python and PostgreSQL.

``fold`` replaces each upper- or title-case letter by its lower-case letter, one code point by one: the simple mapping
of Unicode 14 less U+0130, which has none (Python gives two letters). It depends on nothing around the letter, keeps the
number of code points, and folding twice is folding once. ``ß`` and ``ss``, and ``ς`` and ``σ``, stay different.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

# Where Unicode 14 has letters with a lower-case form. A later Python knows more of them in these blocks; the test of
# this module holds the mapping to what it is, because index keys were made with it.
_BLOCKS = (
    range(0x0041, 0x0588),  # Latin, Greek, Cyrillic, Armenian
    range(0x10A0, 0x1400),  # Georgian, Cherokee
    range(0x1C90, 0x2190),  # Georgian, Latin, Greek, letter-like symbols
    range(0x24B6, 0x24D0),  # circled letters
    range(0x2C00, 0x2CF4),  # Glagolitic, Latin, Coptic
    range(0xA640, 0xAB70),  # Cyrillic, Latin
    range(0xFF21, 0xFF3B),  # full-width Latin
    range(0x10400, 0x1E944),  # Deseret, Osage, Vithkuqi, Old Hungarian, Warang Citi, Medefaidrin, Adlam
)


def fold(text: str) -> str:
    """Return *text* in lower case."""
    return text.lower() if text.isascii() else text.translate(_mapping())


def mapping_into(folded: str) -> tuple[str, str]:
    """Return the letters that fold into one of *folded*, and what each becomes: arguments of SQL's ``translate``.

    To compare with *folded* for equality no other letter matters: folded or not, it equals none of these.
    """
    wanted = set(folded)
    pairs = [(upper, lower) for upper, lower in letters().items() if lower in wanted]
    return "".join(upper for upper, _ in pairs), "".join(lower for _, lower in pairs)


@functools.cache
def letters() -> Mapping[str, str]:
    """Every letter that ``fold`` changes, and what it becomes."""
    return {chr(upper): chr(lower) for upper, lower in _mapping().items()}


@functools.cache
def _mapping() -> Mapping[int, int]:
    # Made at first use: 10 ms that most processes never need.
    pairs = ((code, chr(code).lower()) for block in _BLOCKS for code in block)
    return {code: ord(lower) for code, lower in pairs if len(lower) == 1 and ord(lower) != code}
