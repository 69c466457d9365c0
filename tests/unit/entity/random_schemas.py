"""Random schemas with a small vocabulary, so that pairs of them often touch, and documents for them."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

NAMES = ["a", "b", "c", "ab"]
PATTERNS = ["^a", "b", "^a$", "c"]
VALUES = [None, True, False, 0, 1, 2, 3, -1, 1.5, 6, 0.5, "", "a", "b", "ab", "abc", [], [1], ["a", "a"], {}, {"a": 1}]
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]


class Schemas:
    """Makes schemas and changes them; everything comes from *random*."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def schema(self) -> dict[str, Any]:
        """The top of a document, with definitions that may lead to each other below a property or an item."""
        root = self._object(2) if self._random.random() < 0.6 else self._schema(3)
        if isinstance(root, bool):
            root = {"not": {}} if not root else {}
        return {**root, "$defs": {"x": self._guarded(), "y": self._schema(1, references=False)}}

    def changed(self, schema: dict[str, Any]) -> dict[str, Any]:
        """*schema* with some small changes."""
        new = copy.deepcopy(schema)
        for _ in range(self._random.randint(1, 3)):
            self._change(new)
        return new

    def _change(self, schema: dict[str, Any]) -> None:
        places = list(_subschemas(schema))
        where = self._random.choice(places)
        kind = self._random.random()
        if kind < 0.35 and where:
            keyword = self._random.choice([key for key in where if key != "$defs"] or ["$defs"])
            if keyword != "$defs":
                del where[keyword]
        elif kind < 0.75:
            extra = self._schema(1)
            if isinstance(extra, dict) and "$defs" not in extra:
                where.update(extra)
        else:
            keyword = self._random.choice(list(where) or [""])
            if isinstance(where.get(keyword), (int, float)) and not isinstance(where[keyword], bool):
                where[keyword] = max(where[keyword] + self._random.choice([-1, 1]), 1)

    def _guarded(self) -> dict[str, Any]:
        inner: Any = {"$ref": self._random.choice(["#/$defs/x", "#/$defs/y", "#"])}
        if self._random.random() < 0.3:
            inner = {"anyOf": [inner, {"type": "null"}]}
        if self._random.random() < 0.7:
            return {**self._object(1, references=False), "properties": {"a": inner, "b": self._schema(0)}}
        return {"type": "array", "items": inner, **self._array(0)}

    def _schema(self, depth: int, *, references: bool = True) -> Any:
        random = self._random
        draw = random.random()
        if draw < 0.05:
            return random.random() < 0.8
        if references and draw < 0.12:
            return {"$ref": random.choice(["#/$defs/x", "#/$defs/y"])}
        made: dict[str, Any] = {}
        if random.random() < 0.7:
            made["type"] = random.choice(TYPES) if random.random() < 0.7 else random.sample(TYPES, 2)
        for _ in range(random.choice([0, 1, 1, 2])):
            part = random.choice([self._values, self._number, self._string, self._array, self._object, self._logic])
            made.update(part(depth))
        return made

    def _below(self, depth: int) -> Any:
        return self._schema(depth - 1) if depth > 0 else self._random.choice([True, {}, {"type": "string"}, False])

    def _values(self, _: int) -> dict[str, Any]:
        if self._random.random() < 0.3:
            return {"const": self._random.choice(VALUES)}
        return {"enum": self._random.sample(VALUES, self._random.randint(1, 4))}

    def _some(self, offers: dict[str, Any], count: int) -> dict[str, Any]:
        names = self._random.sample(list(offers), min(count, len(offers)))
        return {name: offers[name]() for name in names}

    def _number(self, _: int) -> dict[str, Any]:
        number = self._random.choice
        return self._some(
            {
                "minimum": lambda: number([-1, 0, 1, 1.5, 2]),
                "exclusiveMinimum": lambda: number([-1, 0, 1]),
                "maximum": lambda: number([0, 1, 2, 3, 6]),
                "exclusiveMaximum": lambda: number([1, 2, 3]),
                "multipleOf": lambda: number([0.5, 1, 2, 3, 0.1, 0.01]),
            },
            self._random.randint(1, 2),
        )

    def _string(self, _: int) -> dict[str, Any]:
        return self._some(
            {
                "minLength": lambda: self._random.randint(0, 3),
                "maxLength": lambda: self._random.randint(0, 3),
                "pattern": lambda: self._random.choice(PATTERNS),
                "format": lambda: "date",
            },
            self._random.randint(1, 2),
        )

    def _array(self, depth: int) -> dict[str, Any]:
        made = self._some(
            {
                "items": lambda: self._below(depth),
                "prefixItems": lambda: [self._below(depth) for _ in range(self._random.randint(1, 2))],
                "contains": lambda: self._below(depth),
                "minItems": lambda: self._random.randint(0, 2),
                "maxItems": lambda: self._random.randint(0, 3),
                "uniqueItems": lambda: True,
                "unevaluatedItems": lambda: self._below(depth),
            },
            self._random.randint(1, 3),
        )
        if "contains" in made and self._random.random() < 0.5:
            made["minContains"] = self._random.randint(0, 2)
        if "contains" in made and self._random.random() < 0.4:
            made["maxContains"] = self._random.randint(0, 2)
        return made

    def _object(self, depth: int, *, references: bool = True) -> dict[str, Any]:
        random = self._random
        offers = {
            "patternProperties": lambda: {random.choice(PATTERNS): self._below(depth)},
            "additionalProperties": lambda: random.random() < 0.3 or self._below(depth),
            "propertyNames": lambda: self._string(0),
            "minProperties": lambda: random.randint(0, 2),
            "maxProperties": lambda: random.randint(0, 3),
            "required": lambda: random.sample(NAMES, random.randint(1, 2)),
            "dependentRequired": lambda: {random.choice(NAMES): [random.choice(NAMES)]},
            "dependentSchemas": lambda: {random.choice(NAMES): self._below(depth)},
            "dependencies": lambda: {random.choice(NAMES): [random.choice(NAMES)]},
            "unevaluatedProperties": lambda: random.random() < 0.2 or self._below(depth),
        }
        made = self._some(offers, random.choice([0, 1, 1, 2]))
        if random.random() < 0.8:
            made["properties"] = {name: self._below(depth) for name in random.sample(NAMES, random.randint(1, 3))}
        if random.random() < 0.4:
            made["additionalProperties"] = False
        if random.random() < 0.5:
            made["type"] = "object"
        return made

    def _logic(self, depth: int) -> dict[str, Any]:
        def several() -> list[Any]:
            return [self._below(depth) for _ in range(self._random.randint(1, 3))]

        made = self._some(
            {
                "allOf": several,
                "anyOf": several,
                "oneOf": several,
                "not": lambda: self._below(depth),
                "if": lambda: self._below(depth),
            },
            1,
        )
        if "if" in made:
            made.update(self._some({"then": lambda: self._below(depth), "else": lambda: self._below(depth)}, 2))
        return made


class Documents:
    """Makes JSON values with the vocabulary of ``Schemas``."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def near(self, schema: Any, root: Any, depth: int = 4) -> Any:
        """A value that has a fair chance to be valid by *schema*."""
        random = self._random
        if not isinstance(schema, dict) or depth == 0 or random.random() < 0.1:
            return self.value(min(depth, 2))
        if "$ref" in schema:
            return self.near(root if schema["$ref"] == "#" else root["$defs"][schema["$ref"][-1]], root, depth - 1)
        for keyword in ("enum", "const"):
            if keyword in schema and random.random() < 0.8:
                return copy.deepcopy(random.choice(schema["enum"]) if keyword == "enum" else schema["const"])
        inner = [one for keyword in ("anyOf", "oneOf", "allOf") for one in schema.get(keyword, ())]
        inner += [schema[keyword] for keyword in ("then", "else") if keyword in schema]
        if inner and random.random() < 0.7:
            schema = {**schema, **one} if isinstance(one := random.choice(inner), dict) else schema
        types = schema.get("type", random.choice(["object", "array", "string", "number"]))
        kind = random.choice(types) if isinstance(types, list) else types
        if kind == "object":
            names = [*schema.get("properties", ()), *schema.get("required", ()), *random.sample(NAMES, 1)]
            chosen = {name for name in names if random.random() < 0.6} | set(schema.get("required", ()))
            rest = schema.get("additionalProperties", {})
            return {
                name: self.near(schema.get("properties", {}).get(name, rest), root, depth - 1)
                for name in sorted(chosen)
            }
        if kind == "array":
            items = [*schema.get("prefixItems", ()), *[schema.get("items", schema.get("contains", {}))] * 2]
            return [self.near(item, root, depth - 1) for item in items[: random.randint(0, len(items))]]
        pools: dict[str, list[Any]] = {
            "string": ["", "a", "b", "ab", "abc", "cab", "dd", "aab"],
            "number": [0, 1, 2, 3, 6, -1, 0.5, 1.5, 0.3, 0.07, 12, -2.5],
            "integer": [0, 1, 2, 3, 6, -1, 12],
            "boolean": [True, False],
            "null": [None],
        }
        return random.choice(pools[kind])

    def value(self, depth: int = 3) -> Any:
        random = self._random
        draw = random.random()
        if depth and draw < 0.45:
            return {name: self.value(depth - 1) for name in random.sample([*NAMES, "d"], random.randint(0, 3))}
        if depth and draw < 0.6:
            return [self.value(depth - 1) for _ in range(random.randint(0, 3))]
        return copy.deepcopy(random.choice([*VALUES, 4, 0.3, 0.07, "cab", "dd", -2.5, 1e20]))


def _subschemas(schema: Any) -> Any:
    if isinstance(schema, dict):
        yield schema
        for keyword, value in schema.items():
            if keyword in ("properties", "patternProperties", "dependentSchemas", "$defs"):
                for inner in value.values():
                    yield from _subschemas(inner)
            elif keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
                for inner in value:
                    yield from _subschemas(inner)
            elif keyword not in ("enum", "const", "dependencies", "dependentRequired"):
                yield from _subschemas(value)
