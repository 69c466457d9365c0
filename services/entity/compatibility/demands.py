"""What single keywords, met or violated, say of a value of one kind."""

from __future__ import annotations

from typing import Any, Final

from services.entity.compatibility.evaluated import evaluated_items, evaluated_properties
from services.entity.compatibility.facts import (
    ArrayFacts,
    Case,
    Count,
    ItemGroup,
    Literal,
    NumberFacts,
    ObjectFacts,
    PropertyGroup,
    SomeItem,
    SomeProperty,
    StringFacts,
)
from services.entity.compatibility.nodes import Node, Part
from services.entity.compatibility.values import matches

UNKNOWN: Final = ("", "")
"""Key of a part that is violated by a property that no schema names."""


def bound_number(facts: NumberFacts, keywords: dict[str, Any]) -> None:
    for keyword in ("minimum", "exclusiveMinimum"):
        if keyword in keywords:
            facts.at_least(keywords[keyword], exclusive=keyword != "minimum")
    for keyword in ("maximum", "exclusiveMaximum"):
        if keyword in keywords:
            facts.at_most(keywords[keyword], exclusive=keyword != "maximum")
    if "multipleOf" in keywords:
        facts.multiples.add(keywords["multipleOf"])


def bound_string(facts: StringFacts, keywords: dict[str, Any]) -> None:
    facts.least = max(facts.least, keywords.get("minLength", 0))
    facts.most = min(facts.most, keywords.get("maxLength", facts.most))
    if "pattern" in keywords:
        facts.patterns.add(keywords["pattern"])


def bound_array(facts: ArrayFacts, node: Node) -> None:
    keywords = node.keywords
    facts.least = max(facts.least, keywords.get("minItems", 0))
    facts.most = min(facts.most, keywords.get("maxItems", facts.most))
    facts.unique |= "uniqueItems" in keywords
    if "prefixItems" in keywords or "items" in keywords:
        facts.groups.append(ItemGroup(keywords.get("prefixItems", []), keywords.get("items")))
    if "unevaluatedItems" in keywords:
        possible = evaluated_items(node, sure=False)
        if not possible.everything and not possible.contains:
            facts.groups.append(ItemGroup([None] * possible.prefix, keywords["unevaluatedItems"]))
    if "contains" in keywords:
        contained, least = keywords["contains"], keywords.get("minContains", 1)
        if least:
            facts.at_least.append(Count(contained, least))
            facts.least = max(facts.least, least)
        if "maxContains" in keywords:
            _allow_at_most(facts, contained, keywords["maxContains"])


def _allow_at_most(facts: ArrayFacts, node: Node, number: int) -> None:
    if number == 0:
        facts.every.add(Literal(node, False))
    else:
        facts.at_most.append(Count(node, number))


def bound_object(facts: ObjectFacts, node: Node) -> None:
    keywords = node.keywords
    facts.required.update(keywords.get("required", ()))
    facts.least = max(facts.least, keywords.get("minProperties", 0))
    facts.most = min(facts.most, keywords.get("maxProperties", facts.most))
    names, patterns = keywords.get("properties", {}), keywords.get("patternProperties", {})
    rest = keywords.get("additionalProperties")
    if names or patterns or rest is not None:
        facts.add_group(PropertyGroup(names, patterns, rest))
    if "unevaluatedProperties" in keywords:
        group = _unevaluated(node)
        if group is not None:
            facts.add_group(group)
    if "propertyNames" in keywords:
        facts.add_names(Literal(keywords["propertyNames"], True))


def _unevaluated(node: Node) -> PropertyGroup | None:
    """What ``unevaluatedProperties`` says of properties that nothing else can be about; kept with the node."""
    if "group" not in node.evaluated:
        possible = evaluated_properties(node, sure=False)
        passed = dict.fromkeys(possible.names), dict.fromkeys(possible.patterns)
        rest = node.keywords["unevaluatedProperties"]
        node.evaluated["group"] = None if possible.everything else PropertyGroup(*passed, rest)
    group: PropertyGroup | None = node.evaluated["group"]
    return group


def violate_type(case: Case, types: frozenset[str]) -> list[Literal] | None:
    if case.kind in types:
        return None
    if isinstance(case.facts, NumberFacts) and "integer" in types:
        case.facts.non_multiples.add(1)
    return []


def violate_number(facts: NumberFacts, keyword: str, said: float) -> None:
    if keyword in ("minimum", "exclusiveMinimum"):
        facts.at_most(said, exclusive=keyword == "minimum")
    elif keyword in ("maximum", "exclusiveMaximum"):
        facts.at_least(said, exclusive=keyword == "maximum")
    elif keyword == "multipleOf":
        facts.non_multiples.add(said)


def violate_string(facts: StringFacts, keyword: str, said: Any) -> None:
    if keyword == "minLength":
        facts.most = min(facts.most, said - 1)
    elif keyword == "maxLength":
        facts.least = max(facts.least, said + 1)
    elif keyword == "pattern":
        facts.not_patterns.add(said)


def violate_array(facts: ArrayFacts, node: Node, part: Part) -> bool:
    """Whether it can be violated at all."""
    keyword, said = part.keyword, node.said(part.keyword)
    if keyword == "minItems":
        facts.most = min(facts.most, said - 1)
    elif keyword == "maxItems":
        facts.least = max(facts.least, said + 1)
    elif keyword == "uniqueItems":
        facts.repeated = True
        facts.least = max(facts.least, 2)
    elif keyword == "prefixItems":
        assert isinstance(part.key, int)
        _have_item(facts, part.key, said[part.key], onwards=False)
    elif keyword == "items":
        _have_item(facts, len(node.keywords.get("prefixItems", ())), said, onwards=True)
    elif keyword == "unevaluatedItems":
        sure = evaluated_items(node, sure=True)
        if sure.everything:
            return False
        _have_item(facts, sure.prefix, said, onwards=True)
    elif keyword == "minContains":
        _allow_at_most(facts, node.keywords["contains"], node.keywords.get("minContains", 1) - 1)
    elif keyword == "maxContains":
        facts.at_least.append(Count(node.keywords["contains"], said + 1))
        facts.least = max(facts.least, said + 1)
    return True


def _have_item(facts: ArrayFacts, first: int, node: Node, *, onwards: bool) -> None:
    facts.some.append(SomeItem(first, onwards, frozenset((Literal(node, False),))))
    facts.least = max(facts.least, first + 1)


def violate_object(facts: ObjectFacts, node: Node, part: Part) -> list[Literal] | None:
    """What follows from it, or None if it cannot be violated."""
    keyword, key, said = part.keyword, part.key, node.said(part.keyword)
    if keyword == "required":
        facts.absent.add(str(key))
    elif keyword == "minProperties":
        facts.most = min(facts.most, said - 1)
    elif keyword == "maxProperties":
        facts.least = max(facts.least, said + 1)
    elif keyword == "dependentRequired":
        assert isinstance(key, tuple)
        facts.required.add(key[0])
        facts.absent.add(key[1])
    elif keyword == "dependentSchemas":
        name, schema = said[key]
        facts.required.add(name)
        return [Literal(schema, False)]
    elif keyword == "properties":
        assert isinstance(key, str)
        facts.required.add(key)
        facts.add_to_property(key, Literal(said[key], False))
    elif keyword == "patternProperties":
        assert isinstance(key, str)
        value = frozenset((Literal(said[key], False),))
        facts.some.append(SomeProperty(frozenset(), frozenset(), frozenset(), value, pattern=key))
    elif keyword == "propertyNames":
        name_literals = frozenset((Literal(said, False),))
        facts.some.append(SomeProperty(frozenset(), frozenset(), name_literals, frozenset()))
    elif keyword in ("additionalProperties", "unevaluatedProperties"):
        return _violate_rest(facts, node, part)
    return []


def _violate_rest(facts: ObjectFacts, node: Node, part: Part) -> list[Literal] | None:
    """Some property, or the one that the part's key names, is left to the keyword and violates it."""
    names = frozenset(node.keywords.get("properties", ()))
    patterns = frozenset(node.keywords.get("patternProperties", ()))
    if part.keyword == "unevaluatedProperties":
        sure = evaluated_properties(node, sure=True)
        if sure.everything:
            return None
        names, patterns = sure.names, sure.patterns
    literal = Literal(node.keywords[part.keyword], False)
    if not isinstance(part.key, str):
        unknown = part.key == UNKNOWN
        some = SomeProperty(names, patterns, frozenset(), frozenset((literal,)), unknown=unknown)
        facts.some.append(some)
        return []
    name = part.key
    if name in names or any(matches(pattern, name) for pattern in patterns):
        return None
    facts.required.add(name)
    facts.add_to_property(name, literal)
    return []


def branch_literals(node: Node, branch: str, met: bool) -> list[Literal]:
    """The condition applies as *branch* says, and what it then asks for is met or violated."""
    literals = [Literal(node.keywords["if"], branch == "then")]
    if branch in node.keywords:
        literals.append(Literal(node.keywords[branch], met))
    return literals


def dependencies(node: Node) -> list[list[list[Literal]]]:
    """Choices: the property is absent, or it is there and so is what depends on it."""
    choices = []
    for name, other in node.keywords.get("dependentRequired", ()):
        choices.append([[_absent(node, name)], [_present(node, name), _present(node, other)]])
    for name, schema in node.keywords.get("dependentSchemas", ()):
        choices.append([[_absent(node, name)], [_present(node, name), Literal(schema, True)]])
    return choices


def _present(node: Node, name: str) -> Literal:
    return Literal(node, True, Part("present", name))


def _absent(node: Node, name: str) -> Literal:
    return Literal(node, True, Part("absent", name))
