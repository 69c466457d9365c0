"""Lines of a file to mutations. A line that is no row becomes a refusal of its own, with the line's place kept."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from enum import IntEnum
from typing import Final, NamedTuple

from services.entity import fast_json
from services.entity.content import canonical
from services.entity.model import EntityKey, check_entity_id, entity_name
from services.entity.mutations import Kind, Mutation
from services.runtime.errors import Error, InvalidArgument, invalid_field
from services.runtime.masks import EVERYTHING
from services.runtime.wire import JsonObject

MAX_LINES: Final = 2000
_MAX_TEXT: Final = 300
_TYPE: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_KEYS: Final = frozenset(("type", "id", "data"))


class Mode(IntEnum):
    """As ``Import.Mode`` in the proto."""

    INSERT = 1
    UPSERT = 2
    REPLACE_SET = 3


class Row(NamedTuple):
    """One line that is not blank. ``mutation`` is what it asks for, or why it cannot be asked for.

    ``type`` and ``id`` are as far as they could be read, and not longer than those that are allowed.
    """

    line: int
    type: str
    id: str
    mutation: Mutation | Error

    @property
    def is_named(self) -> bool:
        """Whether it says which entity it is about, right or wrong."""
        return isinstance(self.mutation, Mutation) or bool(self.type and self.id)


class RowReader:
    """Reads the lines of one import."""

    def __init__(self, namespace: str, mode: Mode, only_type: str, replaced_types: Collection[str]) -> None:
        """*only_type* stands in for a missing type and must not be contradicted; of *replaced_types*, if there are
        any, every row must be."""
        self._namespace = namespace
        self._kind = Kind.CREATE if mode == Mode.INSERT else Kind.UPDATE
        self._only_type = only_type
        self._replaced_types = replaced_types

    def read(self, raw: bytes, offset: int) -> tuple[list[Row], int]:
        """The rows of the lines in *raw*, the first of which is number *offset* + 1; and the number of lines.

        Raises:
            InvalidArgument: too many lines.
        """
        lines = raw.split(b"\n")
        if not lines[-1]:
            lines.pop()
        if len(lines) > MAX_LINES:
            raise invalid_field("rows", f"has {len(lines)} lines, at most {MAX_LINES} are allowed")
        rows = [self._row(line, number) for number, line in enumerate(lines, offset + 1) if line and not line.isspace()]
        return rows, len(lines)

    def _row(self, line: bytes, number: int) -> Row:
        try:
            # The row's own keys are one level above the content.
            row = fast_json.parse_json(line, "row", above=1)
        except InvalidArgument as failure:
            return _unreadable(line, number, failure)
        type_id, entity_id, data = row.get("type", self._only_type or None), row.get("id"), row.get("data")
        if not (isinstance(type_id, str) and isinstance(entity_id, str) and isinstance(data, dict)):
            problem = row.get("error")
            if not isinstance(problem, str):
                problem = 'a row is {"type": string, "id": string, "data": object}'
            return _refused(row, number, _invalid_row(problem))
        if not row.keys() <= _KEYS:
            return _refused(row, number, _invalid_row(f"has the unknown key {min(row.keys() - _KEYS)!r}"))
        try:
            return Row(number, type_id, entity_id, self._mutation(type_id, entity_id, data))
        except InvalidArgument as failure:
            return _refused(row | {"type": type_id}, number, failure)

    def _mutation(self, type_id: str, entity_id: str, data: JsonObject) -> Mutation:
        if self._only_type and type_id != self._only_type:
            raise _invalid_row(f"is of type {type_id}, not {self._only_type}")
        if self._replaced_types and type_id not in self._replaced_types:
            raise _invalid_row(f"is of type {type_id}, which is not among those that are replaced")
        if not _TYPE.fullmatch(type_id):
            raise invalid_field("type", f"must match {_TYPE.pattern}")
        key = EntityKey(type_id, check_entity_id(entity_id, "id"))
        name = entity_name(self._namespace, key)
        if self._kind == Kind.CREATE:
            return Mutation(Kind.CREATE, name, key, "data", data, canonical(data))
        return Mutation(Kind.UPDATE, name, key, "data", data, canonical(data), EVERYTHING, allow_missing=True)


def _invalid_row(problem: str) -> InvalidArgument:
    return InvalidArgument("ROW_INVALID", problem[:_MAX_TEXT])


def _refused(row: JsonObject, number: int, failure: Error) -> Row:
    type_id, entity_id = row.get("type"), row.get("id")
    return Row(
        number,
        type_id if isinstance(type_id, str) and _TYPE.fullmatch(type_id) else "",
        _storable(entity_id) if isinstance(entity_id, str) else "",
        failure,
    )


def _storable(text: str) -> str:
    return text[:128].encode(errors="replace").decode().replace("\0", "?")


def _unreadable(line: bytes, number: int, failure: InvalidArgument) -> Row:
    """A row whose JSON breaks a rule; its names, if it is JSON at all, are still worth telling."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return Row(number, "", "", _invalid_row("is no JSON object"))
    return _refused(row, number, failure)
