"""What is left of a filter without its values: filters of one shape are parsed once.

A caller asks for the same fields over and over with other values, and the grammar takes twice as long as everything
else about a filter. A shape is a filter itself, with ``""`` and ``0`` in the places of the values, and whatever reads
it reads the same tokens: quotes begin nothing else anywhere, and a number is taken only behind an operator and before
a blank, a parenthesis or the end.
"""

from __future__ import annotations

import re
from typing import Final

from services.runtime.filters.paths import QUOTED, STRING

NUMBER: Final = r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_VALUE: Final = re.compile(
    rf"{QUOTED}|\.{STRING}|(?P<text>{STRING})|(?P<before>[=<>][ \t\r\n]*)(?P<number>{NUMBER})(?=[ \t\r\n)]|\Z)",
    re.DOTALL,
)


def shape_of(text: str) -> tuple[str, dict[int, str]]:
    """The shape of the filter *text*, and its values as they are written, by their places in the shape."""
    parts: list[str] = []
    literals: dict[int, str] = {}
    end = length = 0
    for match in _VALUE.finditer(text):
        kind = match.lastgroup
        if kind is None:
            continue  # a quoted key belongs to the shape
        start = match.start(kind)
        parts += (text[end:start], '""' if kind == "text" else "0")
        length += start - end
        literals[length] = match[kind]
        length += len(parts[-1])
        end = match.end()
    parts.append(text[end:])
    return "".join(parts), literals
