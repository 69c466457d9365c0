"""`strandline schema check`: two files in, the service's own answer out, with no service."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from services.entity.compatibility import Comparison, Mode, NotASchema, as_type, is_legacy


class Unreadable(Exception):
    """A file, or the mode, cannot be used; the text says which and why."""


def check(old: Path, new: Path, mode: str, *, as_written: bool) -> dict[str, Any]:
    """Whether *new* may follow *old*, ready to be printed as JSON.

    Raises:
        Unreadable: one of them holds no JSON Schema, or there is no such mode.
    """
    if mode.upper() not in Mode.__members__:
        raise Unreadable(f"there is no mode {mode}; the modes are {', '.join(Mode.__members__)}")
    before, after = (_read(path, as_written) for path in (old, new))
    # Each alone first, so that the message can say which file it is about.
    for path, schema in ((old, before), (new, after)):
        try:
            Comparison([], schema)
        except NotASchema as failure:
            raise Unreadable(f"{path}: {failure.pointer or '/'}: {failure.message}") from None
    differences = Comparison([before], after).differences(Mode[mode.upper()])
    return {"compatible": not differences, "differences": [one._asdict() for one in differences]}


def _read(path: Path, as_written: bool) -> Any:
    pairs = None if as_written else _unique_keys
    try:
        schema = json.loads(path.read_bytes(), parse_constant=_refuse, object_pairs_hook=pairs)
    except OSError as failure:
        raise Unreadable(f"{path}: {failure.strerror}") from None
    except (ValueError, RecursionError) as failure:
        raise Unreadable(f"{path}: no JSON: {failure}") from None
    if as_written or (isinstance(schema, dict) and is_legacy(schema)):
        return schema
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise Unreadable(f'{path}: /type: the top of a type says "type": "object" (or: --as-written)')
    return as_type(schema)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice!r} stands twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")
