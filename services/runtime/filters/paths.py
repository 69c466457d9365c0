"""Field paths and quoted text, as filters, ``order_by``, masks and indexes write them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from services.runtime.errors import invalid_field
from services.runtime.filters.ast import Path

_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"
QUOTED = r"`(?:[^`\\]|\\.)*`"
"""Regular expression of a quoted key; like all of these to be compiled with ``re.DOTALL``."""

PATH_PATTERN = rf"{_IDENTIFIER}(?:\.(?:{_IDENTIFIER}|{QUOTED}))*"
"""Regular expression of a path; a quoted key may hold anything, line breaks included (compile with ``re.DOTALL``)."""

STRING = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
"""Regular expression of a text in quotes."""

FILTER_PATH_PATTERN = rf"[^\W\d]\w*(?:\.(?:[\w-]+|{QUOTED}|{STRING}))*"
"""The same as filters write it, where AIP-160 allows more: keys of other letters, digits and ``-``, or in quotes."""

_KEY = re.compile(rf"[\w-]+|{QUOTED}|{STRING}", re.DOTALL)
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"} | {char: char for char in "\\/\"'`*"}


def parse_path(text: str, *, field: str, others: Sequence[str] = ()) -> Path:
    """Return the keys inside ``data`` that *text* names: ``data.port.size`` gives ``("port", "size")``.

    Args:
        text: must match ``PATH_PATTERN`` or ``FILTER_PATH_PATTERN``.
        field: the request's field that *text* came from, for the error.
        others: what else could have been named there, for the error.

    Raises:
        InvalidArgument: ``INVALID_FIELD``, the path does not lie in ``data`` or a quoted key is malformed.
    """
    root, *keys = _KEY.findall(text)
    if root != "data" or not keys:
        raise invalid_field(field, f"unknown field {text[:100]}: fields are {', '.join(('data.<name>', *others))}")
    try:
        return tuple(unquote(key) if key[0] in "`\"'" else key for key in keys)
    except ValueError as error:
        raise invalid_field(field, f"{error} in {text[:100]!r}") from None


def render_path(path: Path) -> str:
    """Write *path* as users do; the inverse of ``parse_path``."""
    return ".".join(["data", *map(_render_key, path)])


def name_of(pointer: str) -> str:
    """Write an RFC 6901 *pointer* into ``data`` as a path: ``data.port.size``, ``data.tags[1]``."""
    keys = (key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:])
    return "data" + "".join(f"[{key}]" if key.isdecimal() else f".{_render_key(key)}" for key in keys)


def lookup(data: Mapping[str, Any], path: Path, default: Any = None) -> Any:
    """Return the value at *path*, or *default* when a key is missing or something on the way is no object.

    An array on the way is not searched: ``data.ports.size`` never reaches into the elements of ``data.ports``.
    """
    value: Any = data
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return default
        value = value[key]
    return value


def reached(data: Mapping[str, Any], path: Path) -> Iterator[Any]:
    """Yield every value at *path*, through arrays: an array on the way (not at the end) stands for its elements."""
    value = data.get(path[0])
    if len(path) > 1:
        for inner in value if isinstance(value, list) else (value,):
            if isinstance(inner, dict):
                yield from reached(inner, path[1:])
    elif path[0] in data:
        yield value


def elements(data: Mapping[str, Any], path: Path) -> Iterator[str | float | bool | None]:
    """Yield what ``data.path:`` finds: scalars of an array, keys of an object that have a value, or the scalar itself.

    The entries of an array field in an index are these, so that index and predicate agree.
    """
    for value in reached(data, path):
        if isinstance(value, list):
            yield from (element for element in value if not isinstance(element, (list, dict)))
        elif isinstance(value, dict):
            yield from (key for key, inner in value.items() if inner is not None)
        else:
            yield value


def unquote(token: str) -> str:
    r"""Return the text between the quotes of *token*: JSON's escapes and ``\'``, ``\```, ``\*``.

    Raises:
        ValueError: an escape is unknown or the text is not storable (U+0000, a lone surrogate).
    """
    return unescape(token[1:-1])


def unescape(text: str) -> str:
    """Return what stands between quotes as *text*; see ``unquote``."""
    text = _ESCAPE.sub(_unescape, text)
    try:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")  # joins escaped pairs
    except UnicodeDecodeError:
        raise ValueError("lone surrogate") from None
    if "\0" in text:
        raise ValueError("U+0000, which no stored text holds")
    return text


def _unescape(match: re.Match[str]) -> str:
    name = match[1]
    if len(name) > 1:
        return chr(int(name[1:], 16))
    if name not in _ESCAPES:
        raise ValueError(f"unknown escape \\{name}")
    return _ESCAPES[name]


def _render_key(key: str) -> str:
    if re.fullmatch(_IDENTIFIER, key):
        return key
    return "`" + key.replace("\\", "\\\\").replace("`", "\\`") + "`"
