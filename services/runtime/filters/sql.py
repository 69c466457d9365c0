"""Syntax tree to a SQL condition; must agree with ``predicate`` on every value that can be stored.

Every leaf is wrapped in ``coalesce(..., false)``, so that SQL's third truth value never reaches NOT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from services.runtime.filters.ast import (
    And,
    Compare,
    Duration,
    Has,
    Instant,
    Like,
    Node,
    Not,
    OfEntity,
    Or,
    Path,
    Present,
    Size,
)
from services.runtime.filters.folding import letters, mapping_into
from services.runtime.filters.moments import duration_sql, seconds_text, timestamp_sql

_LIKE_SPECIAL = re.compile(r"[\\%_]")


def compile_sql(
    node: Node, column: str = "data", entity: Mapping[str, str] = MappingProxyType({})
) -> tuple[str, list[str]]:
    """Return a boolean SQL expression that is never NULL, and its parameters in the order of their ``%s``.

    Paths and values travel only as parameters. The database's encoding must be UTF-8. Numbers are compared as
    numeric: it never overflows and, unlike a cast to double, cannot fail on a stored 1e400. That equals the comparison
    of doubles as long as stored numbers were written with the fewest digits that give the double back.

    Args:
        node: the filter.
        column: a trusted SQL expression of type jsonb, the entity's ``data``; it is repeated in the text.
        entity: trusted SQL expressions of the entity's own fields, as ``attributes`` describes them; only for a filter
            that was parsed with them.
    """
    compiler = _Compiler()
    return compiler.condition(node, column, entity), compiler.parameters


class _Compiler:
    """Writes from left to right, so that ``parameters`` are in the order of the text."""

    def __init__(self) -> None:
        self.parameters: list[str] = []

    def condition(self, node: Node, column: str, entity: Mapping[str, str]) -> str:
        match node:
            case And(terms):
                return f"({' and '.join(self.condition(term, column, entity) for term in terms)})"
            case Or(terms):
                return f"({' or '.join(self.condition(term, column, entity) for term in terms)})"
            case Not(term):
                return f"(not {self.condition(term, column, entity)})"
            case OfEntity(term):
                name = term.path[0]
                return self.condition(term, f"jsonb_build_object('{name}', {entity[name]})", entity)
            case Compare():
                return f"coalesce({self._comparison(node, column)}, false)"
            case Like(path, parts, folded):
                return f"coalesce({self._likeness(path, column, parts, folded)}, false)"
            case Has(path, value):
                held = f'{_member_path(path)} ? (@.type() != "array" && @ == $v)'
                found = self._exists(held, column, {"v": value})
                # An object has its keys; asked of the parent, because a filter looks into an array and type() does not.
                return f"({found} or {self._has_key(path, value, column)})" if isinstance(value, str) else found
            case Present(path):
                return self._exists(f"{_parent_of(path)} && {_is_value(path[-1])})", column, {})
            case Size(path, operator, value):
                length = self._when("array", path, column, _array_length)
                return f"coalesce({length} {operator} {self._number(value)}, false)"

    def _comparison(self, node: Compare, column: str) -> str:
        path, operator, value = node.path, node.operator, node.value
        if operator == "!=" and (node.folded or isinstance(value, (Instant, Duration))):
            equal = Compare(path, "=", value, node.folded)
            return f"{self._value(path, column)} <> 'null' and not {self.condition(equal, column, {})}"
        if isinstance(value, Instant):
            return f"{self._when('string', path, column, timestamp_sql)} {operator} {self._seconds(value)}"
        if isinstance(value, Duration):
            return f"{self._when('string', path, column, duration_sql)} {operator} {self._seconds(value)}"
        if node.folded and isinstance(value, str):
            return self._folded_comparison(path, column, operator, value)
        if value is None:
            return f"{self._value(path, column)} <> 'null'"
        if operator == "=":
            return f"{self._value(path, column)} = {self._json(value)}"
        if operator == "!=":
            return f"nullif({self._value(path, column)}, 'null') <> {self._json(value)}"
        if isinstance(value, str):
            return f"""{self._when("string", path, column, str)} collate "C" {operator} {self._text(value)}"""
        return f"{self._when('number', path, column, _as_numeric)} {operator} {self._number(value)}"

    def _folded_comparison(self, path: Path, column: str, operator: str, value: str) -> str:
        # One code point more than the value has decides every comparison with it; that bounds what folding costs.
        def beginning(text: str) -> str:
            return f"left({text}, {len(value) + 1})"

        if operator == "=":
            return f"{self._translated(path, column, beginning, value)} = {self._text(value)}"
        uppers, lowers = self._text("".join(letters())), self._text("".join(letters().values()))
        folded = f"""case when octet_length(t) = char_length(t) then lower(t collate "C")
            else translate(t, {uppers}, {lowers}) end collate "C" {operator} {self._text(value)}"""
        return f"(select {folded} from (select {self._when('string', path, column, beginning)} as t) f)"  # noqa: S608

    def _likeness(self, path: Path, column: str, parts: tuple[str, ...], folded: bool) -> str:
        pattern = "%".join(_LIKE_SPECIAL.sub(r"\\\g<0>", part) for part in parts)
        if folded:
            found = self._translated(path, column, str, "".join(parts))
        else:
            found = self._when("string", path, column, str)
        return f"""{found} collate "C" like {self._text(pattern)}"""

    def _translated(self, path: Path, column: str, of: Callable[[str], str], wanted: str) -> str:
        """Text with the letters folded that can become one of *wanted*."""
        found = self._when("string", path, column, of)
        uppers, lowers = mapping_into(wanted)
        return f"translate({found}, {self._text(uppers)}, {self._text(lowers)})" if uppers else found

    def _when(self, kind: str, path: Path, column: str, of: Callable[[str], str]) -> str:
        """*of* the value (of its text, if *kind* is string) when it is of this kind, else NULL."""
        # CASE, not AND: only CASE promises that a cast is not tried on a value of another type.
        tested, found = self._value(path, column), self._value(path, column)
        if kind == "string":
            found = f"({found} #>> '{{}}')"
        return f"(case when jsonb_typeof({tested}) = '{kind}' then {of(found)} end)"

    def _exists(self, jsonpath: str, column: str, variables: dict[str, Any]) -> str:
        self.parameters += (jsonpath, json.dumps(variables, ensure_ascii=False))
        return f"coalesce(jsonb_path_exists({column}, %s::jsonpath, %s::jsonb), false)"

    def _has_key(self, path: Path, key: str, column: str) -> str:
        last = _member_path(path[-1:], "@")
        return self._exists(
            f'{_parent_of(path)} && {last}.type() == "object" && {_is_value(path[-1], key)})', column, {}
        )

    def _value(self, path: Path, column: str) -> str:
        # -> with a text key, not #>: the latter would read the key '0' as a position in an array.
        self.parameters.extend(path)
        return f"({column}{' -> %s::text' * len(path)})"

    def _json(self, value: str | float | bool) -> str:
        self.parameters.append(json.dumps(value, ensure_ascii=False))
        return "%s::jsonb"

    def _text(self, value: str) -> str:
        self.parameters.append(value)
        return "%s::text"

    def _number(self, value: float) -> str:
        self.parameters.append(repr(value))
        return "%s::numeric"

    def _seconds(self, value: Instant | Duration) -> str:
        self.parameters.append(seconds_text(value.nanoseconds))
        return "%s::numeric"


def _as_numeric(value: str) -> str:
    return f"{value}::numeric"


def _array_length(value: str) -> str:
    return f"jsonb_array_length({value})"


def _member_path(keys: Path, root: str = "$") -> str:
    """A path in PostgreSQL's jsonpath, keys quoted as in JSON: it looks into an array on the way, one level deep."""
    return root + "".join("." + json.dumps(key, ensure_ascii=False) for key in keys)


def _parent_of(path: Path) -> str:
    return f'{_member_path(path[:-1])} ? (@.type() == "object"'


def _is_value(*keys: str) -> str:
    return f'{_member_path(keys, "@")}.type() != "null"'
