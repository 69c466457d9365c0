"""Index keys: bytes that sort as the values do, so that one ordered table serves every index.

A key is one component per field. The first byte of a component is the kind of the value: missing, null, false, true,
number, string, in this order. Components are prefix-free (no component begins another), which has two uses: a
concatenation sorts field by field, and a descending field is its bytes inverted.

- number: the IEEE double with its sign bit set when positive, every bit inverted when negative; -0 is 0, 5 is 5.0.
- string: UTF-8 with 0x00 written 0x01 0x01 and 0x01 written 0x01 0x02, closed by 0x00.
- an object, or an array in a field that is no array field, counts as missing: no comparison that an index serves can
  match it, and the entity must be in the index all the same.
- a full-text index has one component only: a word. An entity has an entry per distinct word, and none without words.
- an array field gives one entry per distinct value that ``:`` finds the entity by (``paths.elements``); when there is
  none, one entry as missing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from services.entity.words import MAX_WORDS, words_of
from services.runtime.errors import InvalidArgument, invalid_field, pointer_of
from services.runtime.filters.ast import Path
from services.runtime.filters.folding import fold
from services.runtime.filters.paths import PATH_PATTERN, elements, lookup, parse_path, render_path

MAX_STRING: Final = 1024
"""UTF-8 bytes of an indexed string."""
MAX_KEY: Final = 2000
"""Bytes of an encoded key."""
MAX_ENTRIES: Final = 100
"""Distinct scalar elements of an indexed array."""
MAX_ID: Final = 128
"""Characters of an entity's id."""
MAX_FIELDS: Final = 16
"""Fields of one index, and of one order."""
MAX_ORDER_BY: Final = 4096
"""Characters of ``order_by``."""

# Below 0x80, so that no kind equals an inverted one; gaps leave room for kinds to come.
MISSING: Final = b"\x10"
NULL: Final = b"\x20"
FALSE: Final = b"\x30"
TRUE: Final = b"\x38"
NUMBER: Final = b"\x40"
STRING: Final = b"\x50"

_INVERT: Final = bytes(range(255, -1, -1))
_ABSENT: Final = frozenset(MISSING + NULL + (MISSING + NULL).translate(_INVERT))
_DOUBLE: Final = struct.Struct(">d")
_SIGNED: Final = tuple(bytes((byte | 0x80,)) for byte in range(0x80))
_FIELD: Final = re.compile(
    rf"\s*(?:(?P<plain>{PATH_PATTERN})|lower\(\s*(?P<folded>{PATH_PATTERN})\s*\))(?P<desc>\s+desc)?\s*", re.DOTALL
)
_ITEM: Final = re.compile(r"((?:[^,`]|`(?:[^`\\]|\\.)*`)*),", re.DOTALL)
_NOTHING: Final = object()
_TEXTS: Final = frozenset({"string", "array"})


@dataclass(frozen=True, slots=True)
class IndexField:
    """One component of a key. *path* holds the keys inside ``data``."""

    path: Path
    descending: bool = False
    array: bool = False
    folded: bool = False
    """Text is in the key as ``fold`` gives it."""

    def __str__(self) -> str:
        name = render_path(self.path)
        return (f"lower({name})" if self.folded else name) + (" desc" if self.descending else "")

    @property
    def values(self) -> tuple[Path, bool]:
        """What the field is a component of: the same values, folded or not, whatever the direction."""
        return self.path, self.folded


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """What an index covers, in the order of its key."""

    fields: tuple[IndexField, ...]
    unique: bool = False
    full_text: bool = False
    """Whether the keys are the words of the fields together, instead of a component for each field."""


def parse_index_field(text: str, *, array: bool = False, field: str = "indexes") -> IndexField:
    """Return the field that *text* (``data.population desc``, ``lower(data.name)``) names.

    Args:
        text: a path, in ``lower()`` to be folded, and, for descending order, ``desc``.
        array: whether the type's schema declares an array there.
        field: the request's field that *text* came from, for the error.

    Raises:
        InvalidArgument: ``INVALID_FIELD``.
    """
    match = _FIELD.fullmatch(text)
    if match is None:
        raise invalid_field(field, f"expected data.<name>, lower(data.<name>) or one with desc, found {text[:100]!r}")
    path = parse_path(match["plain"] or match["folded"], field=field)
    return IndexField(path, match["desc"] is not None, array, match["folded"] is not None)


def parse_plain_field(text: str, field: str) -> Path:
    """Return the path that *text* names; ``INVALID_FIELD`` for *field* if it names none, or has ``desc``, ``lower``."""
    parsed = parse_index_field(text, field=field)
    if parsed.descending or parsed.folded:
        raise invalid_field(field, "takes the plain name of a field, such as data.country")
    return parsed.path


def parse_index(
    fields: Sequence[str],
    *,
    unique: bool = False,
    full_text: bool = False,
    field_types: Mapping[Path, frozenset[str]] | None = None,
) -> IndexSpec:
    """Return the index that a type declares; an array field is one where or before which the schema allows an array.

    Raises:
        InvalidArgument: ``INVALID_FIELD``: no field, too many, one twice, or more than one array.
    """
    types = field_types or {}
    if full_text:
        return _parse_full_text(fields, unique, types)
    spec = tuple(replace(one, array=_leads_to_array(one.path, types)) for one in map(parse_index_field, fields))
    if not 1 <= len(spec) <= MAX_FIELDS:
        raise invalid_field("indexes", f"an index has 1 to {MAX_FIELDS} fields")
    if len({one.values for one in spec}) < len(spec):
        raise invalid_field("indexes", "an index names a field once")
    if any(one.array and one.folded for one in spec):
        raise invalid_field("indexes", "lower() is for text, not for an array")
    if sum(one.array for one in spec) > 1:
        raise invalid_field("indexes", "an index has at most one array field")
    return IndexSpec(spec, unique)


def _parse_full_text(fields: Sequence[str], unique: bool, field_types: Mapping[Path, frozenset[str]]) -> IndexSpec:
    spec = tuple(map(parse_index_field, fields))
    if not 1 <= len(spec) <= MAX_FIELDS or len({one.path for one in spec}) < len(spec):
        raise invalid_field("indexes", f"an index has 1 to {MAX_FIELDS} fields, each once")
    if unique or any(one.descending or one.folded for one in spec):
        raise invalid_field("indexes", "a full-text index is not unique, and its fields have neither desc nor lower()")
    for one in spec:
        if not field_types.get(one.path, _TEXTS) & _TEXTS:
            raise invalid_field("indexes", f"{one} is neither text nor an array, so it has no words")
    return IndexSpec(spec, full_text=True)


def _leads_to_array(path: Path, field_types: Mapping[Path, frozenset[str]]) -> bool:
    return any("array" in field_types.get(path[:length], ()) for length in range(1, len(path) + 1))


@lru_cache(maxsize=1000)
def parse_order_by(text: str, field: str = "order_by") -> tuple[IndexField, ...]:
    """Return the fields of ``data.population desc, data.name`` in order; an empty text gives none.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` for *field*: malformed, too long, too many fields, or one twice.
    """
    if len(text) > MAX_ORDER_BY:
        raise invalid_field(field, f"longer than {MAX_ORDER_BY} characters")
    if not text.strip():
        return ()
    fields: list[IndexField] = []
    rest = text + ","
    while rest:
        item = _ITEM.match(rest)
        if item is None:
            raise invalid_field(field, f"a quoted key is not closed in {rest[:100]!r}")
        fields.append(parse_index_field(item[1], field=field))
        rest = rest[item.end() :]
    if len(fields) > MAX_FIELDS or len({one.values for one in fields}) < len(fields):
        raise invalid_field(field, f"at most {MAX_FIELDS} fields, each once")
    return tuple(fields)


def entry_keys(spec: IndexSpec, data: Mapping[str, Any]) -> list[bytes]:
    """Return the keys under which an entity stands in the index: one, or one per element of an array field.

    Args:
        spec: the index.
        data: the entity's fields, as a JSON decoder gives them; numbers must fit a double.

    Raises:
        InvalidArgument: ``INVALID_FIELD``: a string, an array or the key is beyond its limit; the violation names it.
    """
    if spec.full_text:
        found = (word for field in spec.fields for word in words_of(lookup(data, field.path)))
        return [encode(word) for word in islice(dict.fromkeys(found), MAX_WORDS)]
    keys = [b""]
    for field in spec.fields:
        if field.array:
            keys = [key + component for key in keys for component in _elements(field, data)]
            continue
        path = field.path
        value = data.get(path[0], _NOTHING) if len(path) == 1 else lookup(data, path, _NOTHING)
        if field.folded and type(value) is str:
            value = fold(value)
        component = encode(value)
        if len(component) > MAX_STRING:
            _check_length(field, value)
        if field.descending:
            component = component.translate(_INVERT)
        keys = [key + component for key in keys] if len(keys) > 1 else [keys[0] + component]
    for key in keys:
        if len(key) > MAX_KEY:
            names = ", ".join(map(str, spec.fields))
            raise _beyond(spec.fields[0].path, f"the key of ({names}) exceeds {MAX_KEY} bytes")
    return keys


def unique_keys(spec: IndexSpec, data: Mapping[str, Any]) -> list[bytes]:
    """Return the keys that no other entity may have: ``entry_keys`` less those whose fields are all missing or null.

    Raises:
        InvalidArgument: as ``entry_keys``.
    """
    # Missing and null are the only components of one byte besides the booleans.
    return [key for key in entry_keys(spec, data) if len(key) > len(spec.fields) or not _ABSENT.issuperset(key)]


def reference_keys(path: Path, data: Mapping[str, Any]) -> list[bytes]:
    """Return the keys of an entity by what it refers to at *path*: one for each distinct string there, or none.

    Raises:
        InvalidArgument: ``INVALID_FIELD``: a string is longer than any id, or there are too many.
    """
    value = lookup(data, path)
    ids = dict.fromkeys(item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))
    if len(ids) > MAX_ENTRIES:
        raise _beyond(path, f"refers to more than {MAX_ENTRIES} entities")
    if any(len(item) > MAX_ID for item in ids):
        raise _beyond(path, f"an id has at most {MAX_ID} characters")
    return [encode(item) for item in ids]


def id_in(key: bytes) -> str:
    """Return the id that a key of ``reference_keys`` stands for."""
    return key[1:-1].replace(b"\1\2", b"\1").decode()


def encode(value: Any) -> bytes:
    """Return the ascending component of *value*; no limit applies, so a literal of any length has its place."""
    kind = type(value)
    if kind is str:
        text: bytes = value.encode()
        if b"\0" in text or b"\1" in text:
            text = text.replace(b"\1", b"\1\2").replace(b"\0", b"\1\1")
        return STRING + text + b"\0"
    if kind is float or kind is int:
        raw = _DOUBLE.pack(value + 0.0)
        return NUMBER + (raw.translate(_INVERT) if raw[0] & 0x80 else _SIGNED[raw[0]] + raw[1:])
    if value is None:
        return NULL
    if kind is bool:
        return TRUE if value else FALSE
    return MISSING


def invert(component: bytes) -> bytes:
    """Turn an ascending component, or the beginning of one, into a descending one; its own inverse."""
    return component.translate(_INVERT)


def prefix_range(prefix: bytes) -> tuple[bytes, bytes | None]:
    """Return ``(lower, upper)`` of the keys that begin with *prefix*, *upper* exclusive; None is no bound."""
    return prefix, successor(prefix)


def successor(prefix: bytes) -> bytes | None:
    """Return the least byte string above everything that begins with *prefix*, or None if nothing is."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else None


def _elements(field: IndexField, data: Mapping[str, Any]) -> list[bytes]:
    components: dict[bytes, None] = {}
    for element in elements(data, field.path):
        component = encode(element)
        if len(component) > MAX_STRING:
            _check_length(field, element)
        components[_directed(field, component)] = None
        if len(components) > MAX_ENTRIES:
            raise _beyond(field.path, f"an indexed array has at most {MAX_ENTRIES} elements")
    return list(components) or [_directed(field, MISSING)]


def _directed(field: IndexField, component: bytes) -> bytes:
    return component.translate(_INVERT) if field.descending else component


def _beyond(path: Path, message: str) -> InvalidArgument:
    return invalid_field(render_path(path), message, pointer_of(path))


def _check_length(field: IndexField, value: Any) -> None:
    # Escapes make a component longer than its text, so only the text decides.
    if len(value.encode()) > MAX_STRING:
        raise _beyond(field.path, f"an indexed string has at most {MAX_STRING} bytes of UTF-8")
