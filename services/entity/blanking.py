"""Taking the content out of serialized entities without moving a byte of what is around them.

``data`` becomes a field that no reader knows, of the same length and filled with zeros. Offsets into a unit stay as
they are, and whoever parses the message finds name, uid, revision and times, and no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_DATA: Final = 0x22
"""The tag of ``Entity.data``."""
_BLANK: Final = 0x7A
"""The tag of field 15, reserved for this."""
_PREVIOUS: Final = 0x1A
"""The tag of ``Change.previous``, which follows ``Change.entity``."""


def is_blank(message: bytes) -> bool:
    """Whether the serialized Entity *message* has lost its data."""
    for tag, _, _ in delimited_fields(message, 0, len(message)):
        if message[tag] in (_DATA, _BLANK):
            return message[tag] == _BLANK
    return False


def blank_change(stored: bytes, length: int) -> bytes:
    """Blank a change: *stored* holds the new version (*length* bytes) and what follows it, maybe the previous version.

    Returns:
        The same number of bytes as these versions take.
    """
    blanked = bytearray(stored)
    _blank(blanked, 0, length)
    end = length
    if len(stored) > length and stored[length] == _PREVIOUS:
        size, start = _varint(stored, length + 1)
        end = start + size
        _blank(blanked, start, end)
    return bytes(blanked[:end])


def _blank(message: bytearray, start: int, end: int) -> None:
    for tag, content, after in delimited_fields(message, start, end):
        if message[tag] == _DATA:
            message[tag] = _BLANK
            message[content:after] = bytes(after - content)


def delimited_fields(message: bytes | bytearray, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(place of the tag, start, end) of every length-delimited field; all tags of an Entity take one byte."""
    while at < end:
        tag = at
        value, at = _varint(message, at + 1)
        if message[tag] & 7 == 2:
            yield tag, at, at + value
            at += value


def _varint(message: bytes | bytearray, at: int) -> tuple[int, int]:
    """The number at *at*, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
