"""What keeps one schema from accepting all that another accepts, by name and place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from services.entity.compatibility.demands import UNKNOWN
from services.entity.compatibility.emptiness import Budget, Emptiness, TooComplex
from services.entity.compatibility.facts import ArrayFacts, Literal, Literals, ObjectFacts, PropertyGroup
from services.entity.compatibility.nodes import Document, Node, Part, pointer_text

MAX_DIFFERENCES: Final = 100


class Difference(NamedTuple):
    """*rule* is stable and listed in docs/schemas.md; *path* a JSON pointer into the schema that says it."""

    rule: str
    path: str
    message: str


class _Rule(NamedTuple):
    name: str
    message: str


# {said} is what the stricter schema says, {strict} and {loose} are "the new schema" and "the old schema" or vice versa.
_RULES: Final = {
    "type": _Rule("TYPE_NARROWED", "{strict} allows only {said}, {loose} more than that"),
    "enum": _Rule("ENUM_NARROWED", "{strict} lists not every value that {loose} allows"),
    "const": _Rule("CONST_CHANGED", "{strict} allows one value, {loose} others"),
    "minimum": _Rule("MINIMUM_RAISED", "{strict} begins at {said}, {loose} allows less"),
    "exclusiveMinimum": _Rule("MINIMUM_RAISED", "{strict} begins above {said}, {loose} allows less"),
    "maximum": _Rule("MAXIMUM_LOWERED", "{strict} ends at {said}, {loose} allows more"),
    "exclusiveMaximum": _Rule("MAXIMUM_LOWERED", "{strict} ends below {said}, {loose} allows more"),
    "multipleOf": _Rule("MULTIPLE_OF_NARROWED", "{strict} allows multiples of {said}, {loose} others"),
    "minLength": _Rule("MIN_LENGTH_RAISED", "{strict} asks for {said} characters, {loose} allows fewer"),
    "maxLength": _Rule("MAX_LENGTH_LOWERED", "{strict} ends at {said} characters, {loose} allows more"),
    "pattern": _Rule("PATTERN_CHANGED", "{strict} asks for a pattern that {loose} does not ask for"),
    "minItems": _Rule("MIN_ITEMS_RAISED", "{strict} asks for {said} items, {loose} allows fewer"),
    "maxItems": _Rule("MAX_ITEMS_LOWERED", "{strict} ends at {said} items, {loose} allows more"),
    "uniqueItems": _Rule("UNIQUE_ITEMS_ADDED", "{strict} wants items to differ, {loose} allows equal ones"),
    "prefixItems": _Rule("ITEMS_NARROWED", "{strict} says something of this item that {loose} does not say"),
    "items": _Rule("ITEMS_NARROWED", "{strict} says something of the items that {loose} does not say"),
    "unevaluatedItems": _Rule("ITEMS_NARROWED", "{strict} says something of further items that {loose} does not say"),
    "minContains": _Rule("CONTAINS_NARROWED", "{strict} asks for items that {loose} does not ask for"),
    "maxContains": _Rule("CONTAINS_NARROWED", "{strict} allows at most {said} such items, {loose} more"),
    "properties": _Rule(
        "PROPERTY_ADDED_TO_OPEN",
        "{strict} describes the property; by {loose}, which is open, it may be there as anything",
    ),
    "patternProperties": _Rule(
        "PATTERN_PROPERTIES_NARROWED", "{strict} says something of these properties that {loose} does not say"
    ),
    "additionalProperties": _Rule(
        "ADDITIONAL_PROPERTIES_NARROWED", "{loose} allows further properties that {strict} does not allow"
    ),
    "unevaluatedProperties": _Rule(
        "ADDITIONAL_PROPERTIES_NARROWED", "{loose} allows further properties that {strict} does not allow"
    ),
    "propertyNames": _Rule("PROPERTY_NAMES_NARROWED", "{loose} allows names that {strict} does not allow"),
    "required": _Rule("REQUIRED_ADDED", "{strict} requires {said}, {loose} does not"),
    "minProperties": _Rule("MIN_PROPERTIES_RAISED", "{strict} asks for {said} properties, {loose} allows fewer"),
    "maxProperties": _Rule("MAX_PROPERTIES_LOWERED", "{strict} ends at {said} properties, {loose} allows more"),
    "dependentRequired": _Rule("DEPENDENT_REQUIRED_ADDED", "{strict} requires {said} with it, {loose} does not"),
    "dependentSchemas": _Rule("DEPENDENT_SCHEMA_NARROWED", "{strict} asks for more beside this property than {loose}"),
    "anyOf": _Rule("ANY_OF_NARROWED", "not all that {loose} allows fits one of the alternatives"),
    "oneOf": _Rule("ONE_OF_NARROWED", "not all that {loose} allows fits exactly one of the alternatives"),
    "not": _Rule("NOT_EXTENDED", "{strict} excludes something that {loose} allows"),
    "then": _Rule("CONDITION_NARROWED", "{strict} asks for more than {loose} under its condition"),
    "else": _Rule("CONDITION_NARROWED", "{strict} asks for more than {loose} outside of its condition"),
}
_FALSE: Final = _Rule("NOTHING_ALLOWED", "{strict} allows no value here, {loose} does")
_REMOVED: Final = _Rule("PROPERTY_REMOVED_FROM_CLOSED", "{loose} has the property; {strict}, which is closed, has not")
_UNDECIDED: Final = _Rule("UNDECIDED", "it is not seen that {strict} allows all that {loose} allows")
_TOO_COMPLEX: Final = _Rule("TOO_COMPLEX", "the schemas are too complex to be compared")
RULES: Final = tuple(sorted({rule.name for rule in (*_RULES.values(), _FALSE, _REMOVED, _UNDECIDED, _TOO_COMPLEX)}))


def narrowed(loose: Document, strict: Document, budget: Budget, *, backward: bool) -> list[Difference]:
    """Why not all that is valid by *loose* is valid by *strict*; nothing if it is. At most 100.

    *backward*: *strict* is the new schema, otherwise it is the old one.
    """
    return _Comparison(budget, backward).run(loose, strict)


class _Comparison:
    def __init__(self, budget: Budget, backward: bool) -> None:
        self._emptiness = Emptiness(budget)
        self._words = {
            "strict": "the new schema" if backward else "the old schema",
            "loose": "the old schema" if backward else "the new schema",
        }
        self._seen: set[tuple[Literals, Node]] = set()

    def run(self, loose: Document, strict: Document) -> list[Difference]:
        found: dict[Difference, None] = {}
        try:
            for difference in self._compare(frozenset((Literal(loose.root, True),)), strict.root):
                found[difference] = None
                if len(found) >= MAX_DIFFERENCES:
                    break
            if not found and not self._holds(frozenset((Literal(loose.root, True),)), strict.root):
                rule = _TOO_COMPLEX if self._emptiness.gave_up else _UNDECIDED
                found[self._difference(rule, ())] = None
        except TooComplex:
            found[self._difference(_TOO_COMPLEX, ())] = None
        # Not in the order of the keywords, because documents do not keep one.
        return sorted(found, key=lambda one: (one.path, one.rule, one.message))

    def _compare(self, loose: Literals, strict: Node) -> Iterator[Difference]:
        """Where something that meets *loose* violates *strict*."""
        if (loose, strict) in self._seen or self._holds(loose, strict):
            return
        self._seen.add((loose, strict))
        if not strict.value:
            yield self._difference(_FALSE, strict.pointer)
            return
        types = strict.keywords.get("type")
        other_types = types is not None and not self._holds(loose, strict, Part("type"))
        for part in _parts(strict):
            # What is said of kinds that the types exclude anyway makes no difference of its own.
            if other_types and types is not None and not _allows(types, part.kind):
                continue
            if not self._holds(loose, strict, part):
                yield from self._differences(loose, strict, part)

    def _holds(self, loose: Literals, strict: Node, part: Part | None = None) -> bool:
        """Whether all that meets *loose* meets *strict*, or that part of it."""
        return self._emptiness.is_empty(loose | {Literal(strict, False, part)})

    def _differences(self, loose: Literals, strict: Node, part: Part) -> Iterator[Difference]:
        """Where exactly *part* of *strict* is violated."""
        keyword, said = part.keyword, strict.said(part.keyword)
        if keyword == "$ref":
            yield from self._compare(loose, strict.target)
        elif keyword == "allOf":
            yield from self._compare(loose, said[part.key])
        elif keyword in ("properties", "patternProperties", "additionalProperties", "unevaluatedProperties"):
            facts = self._emptiness.surface(loose, "object").facts
            assert isinstance(facts, ObjectFacts)
            yield from self._of_properties(loose, facts, strict, part)
        elif keyword in ("prefixItems", "items"):
            facts = self._emptiness.surface(loose, "array").facts
            assert isinstance(facts, ArrayFacts)
            yield from self._of_items(facts, strict, part)
        else:
            yield self._at(strict, part)

    def _of_properties(self, loose: Literals, facts: ObjectFacts, strict: Node, part: Part) -> Iterator[Difference]:
        if part.keyword == "properties":
            assert isinstance(part.key, str)
            if any(part.key in group.names for group in facts.groups):
                schema = strict.keywords["properties"][part.key]
                yield from self._compare(self._emptiness.property_literals(facts, part.key), schema)
            else:
                yield self._at(strict, part)
            return
        if part.keyword == "patternProperties":
            schemas = [group.patterns[part.key] for group in facts.groups if part.key in group.patterns]
            below = frozenset(Literal(schema, True) for schema in schemas if schema is not None)
            if below:
                yield from self._compare(below, strict.keywords["patternProperties"][part.key])
            else:
                yield self._at(strict, part)
            return
        rest = strict.keywords[part.keyword]
        for group in facts.groups:
            for name, schema in group.names.items():
                if schema is None or self._holds(loose, strict, Part(part.keyword, name)):
                    continue
                if rest.value:
                    yield from self._compare(self._emptiness.property_literals(facts, name), rest)
                else:
                    yield self._difference(_REMOVED, schema.pointer)
        if not self._holds(loose, strict, Part(part.keyword, UNKNOWN)):
            below = _rest_of(facts.groups)
            if below and rest.value:
                yield from self._compare(below, rest)
            else:
                yield self._at(strict, part)

    def _of_items(self, facts: ArrayFacts, strict: Node, part: Part) -> Iterator[Difference]:
        if not facts.groups:
            yield self._at(strict, part)
        elif part.keyword == "prefixItems":
            assert isinstance(part.key, int)
            schema = strict.keywords["prefixItems"][part.key]
            yield from self._compare(self._emptiness.item_literals(facts, part.key), schema)
        else:
            first = len(strict.keywords.get("prefixItems", ()))
            last = max(first, *(len(group.prefix) for group in facts.groups))
            for place in range(first, last + 1):
                if place < facts.most:
                    literals = self._emptiness.item_literals(facts, place)
                    yield from self._compare(literals, strict.keywords["items"])

    def _at(self, node: Node, part: Part) -> Difference:
        """The difference that *part* of *node* makes."""
        keyword, key, said = part.keyword, part.key, node.said(part.keyword)
        path = [node.spelling.get(keyword, keyword)]
        if keyword in ("properties", "patternProperties"):
            path.append(str(key))
        elif keyword == "prefixItems":
            assert isinstance(key, int)
            return self._difference(_RULES[keyword], said[key].pointer)
        elif keyword == "items":
            return self._difference(_RULES[keyword], said.pointer)
        elif keyword == "dependentSchemas":
            assert isinstance(key, int)
            return self._difference(_RULES[keyword], said[key][1].pointer)
        elif keyword == "dependentRequired":
            assert isinstance(key, tuple)
            path.append(key[0])
            said = key[1]
        elif keyword == "required":
            said = key
        elif keyword == "minContains" and said is None:
            path = ["contains"]
        elif keyword == "type":
            said = " or ".join(sorted(said))
        return self._difference(_RULES[keyword], (*node.pointer, *path), said)

    def _difference(self, rule: _Rule, pointer: tuple[str, ...], said: object = None) -> Difference:
        return Difference(rule.name, pointer_text(pointer), rule.message.format(said=said, **self._words))


def _allows(types: frozenset[str], kind: str | None) -> bool:
    return kind is None or kind in types or (kind == "number" and "integer" in types)


def _parts(node: Node) -> Iterator[Part]:
    """Everything that *node* demands of values of any kind."""
    if "type" in node.keywords:
        yield Part("type")
    yield from dict.fromkeys(part for kind in _ORDER for part in node.parts(kind))


_ORDER: Final = ("number", "string", "array", "object", "boolean")


def _rest_of(groups: list[PropertyGroup]) -> Literals:
    """What is said of properties without a name in *groups*."""
    return frozenset(Literal(group.rest, True) for group in groups if group.rest is not None and not group.patterns)
