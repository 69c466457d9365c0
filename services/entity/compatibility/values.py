"""Whether one JSON value meets a schema: what the checker asks where a schema leaves only a few values.

Every answer is True, False, or None where it is not decided here (``unevaluated...`` beside alternatives, patterns of
another dialect of regular expressions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import lru_cache
from typing import Any, Final

import jsonschema_rs

from services.entity.compatibility.evaluated import evaluated_items, evaluated_properties
from services.entity.compatibility.nodes import Node, Part, kind_of, value_key

_PATTERNS: Final = jsonschema_rs.RegexOptions()  # linear time, as where entities are validated
_MAX_DEPTH: Final = 40
_STEPS: Final = 5
"""What it costs to evaluate one schema, in the steps of the budget."""


@lru_cache(maxsize=1024)
def _pattern(pattern: str) -> jsonschema_rs.Draft202012Validator | None:
    try:
        return jsonschema_rs.Draft202012Validator({"pattern": pattern}, pattern_options=_PATTERNS)
    except jsonschema_rs.ValidationError:
        return None


def matches(pattern: str, text: str) -> bool | None:
    """Whether *pattern* is found in *text*."""
    compiled = _pattern(pattern)
    return None if compiled is None else compiled.is_valid(text)


def is_multiple(value: float, divisor: float) -> bool:
    """Whether *value*, as it is written in decimal digits, is a multiple of *divisor*."""
    return (Fraction(repr(value)) / Fraction(repr(divisor))).denominator == 1


class Evaluator:
    """Evaluates; *spend* is called with the steps it takes, and raises when there were too many."""

    def __init__(self, spend: Callable[[int], None]) -> None:
        self._spend = spend
        self._depth = 0

    def meets(self, node: Node, value: Any) -> bool | None:
        """Whether *value* is valid by *node*."""
        self._spend(_STEPS)
        if self._depth > _MAX_DEPTH:
            return None
        kind = kind_of(value)
        types = node.keywords.get("type")
        if not node.value or (types is not None and not _is_of(types, kind, value)):
            return False
        self._depth += 1
        try:
            return _all(self.meets_part(node, part, value) for part in node.parts(kind))
        finally:
            self._depth -= 1

    def meets_part(self, node: Node, part: Part, value: Any) -> bool | None:
        """Whether *value*, of a kind that *part* of *node* is about, meets it."""
        keyword = part.keyword
        said = node.said(keyword)
        if keyword == "type":
            return _is_of(said, kind_of(value), value)
        if keyword in ("enum", "const"):
            return value_key(value) in node.listed(keyword)
        if keyword in _COMPARISONS:
            return _COMPARISONS[keyword](value, said)
        if keyword == "pattern":
            return matches(said, value)
        if keyword in _LOGIC:
            return self._logic(node, part, value)
        return self._array(node, part, value) if isinstance(value, list) else self._object(node, part, value)

    def _logic(self, node: Node, part: Part, value: Any) -> bool | None:
        keyword, said = part.keyword, node.said(part.keyword)
        if keyword == "$ref":
            return self.meets(node.target, value)
        if keyword == "allOf":
            return self.meets(said[part.key], value)
        if keyword == "not":
            return _not(self.meets(said, value))
        if keyword == "anyOf":
            return _any(self.meets(branch, value) for branch in said)
        if keyword == "oneOf":
            answers = [self.meets(branch, value) for branch in said]
            if answers.count(True) > 1:
                return False
            return None if None in answers else answers.count(True) == 1
        condition = self.meets(node.keywords["if"], value)
        applies = condition if keyword == "then" else _not(condition)
        return True if applies is False else _any((_not(applies), self.meets(said, value)))

    def _array(self, node: Node, part: Part, value: list[Any]) -> bool | None:
        keyword, said = part.keyword, node.said(part.keyword)
        if keyword == "prefixItems":
            place = part.key
            assert isinstance(place, int)
            return place >= len(value) or self.meets(said[place], value[place])
        if keyword == "items":
            return _all(self.meets(said, item) for item in value[len(node.keywords.get("prefixItems", ())) :])
        if keyword == "uniqueItems":
            return len({value_key(item) for item in value}) == len(value)
        if keyword == "unevaluatedItems":
            sure, possible = evaluated_items(node, sure=True), evaluated_items(node, sure=False)
            if sure != possible or possible.contains:
                return True if not value else None
            return possible.everything or _all(self.meets(said, item) for item in value[possible.prefix :])
        answers = [self.meets(node.keywords["contains"], item) for item in value]
        least, most = answers.count(True), answers.count(True) + answers.count(None)
        if keyword == "minContains":
            bound = node.keywords.get("minContains", 1)
            return True if least >= bound else (False if most < bound else None)
        return False if least > said else (True if most <= said else None)

    def _object(self, node: Node, part: Part, value: dict[str, Any]) -> bool | None:
        keyword, key, said = part.keyword, part.key, node.said(part.keyword)
        if keyword == "required":
            return key in value
        if keyword == "properties":
            return key not in value or self.meets(said[key], value[key])
        if keyword == "patternProperties":
            assert isinstance(key, str)
            return _all(_any((_not(matches(key, name)), self.meets(said[key], value[name]))) for name in value)
        if keyword == "additionalProperties":
            names, patterns = node.keywords.get("properties", {}), node.keywords.get("patternProperties", {})
            return _all(
                _any((*(matches(pattern, name) for pattern in patterns), self.meets(said, item)))
                for name, item in value.items()
                if name not in names
            )
        if keyword == "propertyNames":
            return _all(self.meets(said, name) for name in value)
        if keyword == "dependentRequired":
            assert isinstance(key, tuple)
            return key[0] not in value or key[1] in value
        if keyword == "dependentSchemas":
            name, schema = said[key]
            return name not in value or self.meets(schema, value)
        sure, possible = evaluated_properties(node, sure=True), evaluated_properties(node, sure=False)
        if sure != possible or possible.patterns:
            return True if not value else None
        return possible.everything or _all(
            self.meets(said, item) for name, item in value.items() if name not in possible.names
        )


_LOGIC: Final = frozenset(("$ref", "allOf", "anyOf", "oneOf", "not", "then", "else"))
_COMPARISONS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "minimum": lambda value, said: value >= said,
    "exclusiveMinimum": lambda value, said: value > said,
    "maximum": lambda value, said: value <= said,
    "exclusiveMaximum": lambda value, said: value < said,
    "multipleOf": is_multiple,
    **dict.fromkeys(("minLength", "minItems", "minProperties"), lambda value, said: len(value) >= said),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties"), lambda value, said: len(value) <= said),
}


def _is_of(types: frozenset[str], kind: str, value: Any) -> bool:
    return kind in types or (kind == "number" and "integer" in types and value == int(value))


def _not(answer: bool | None) -> bool | None:
    return None if answer is None else not answer


def _all(answers: Iterable[bool | None]) -> bool | None:
    undecided = False
    for answer in answers:
        if answer is False:
            return False
        undecided = undecided or answer is None
    return None if undecided else True


def _any(answers: Iterable[bool | None]) -> bool | None:
    return _not(_all(map(_not, answers)))
