"""Which properties and items count as evaluated by a schema itself, so that its ``unevaluated...`` passes them by."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from services.entity.compatibility.nodes import Node

# Of one document: as long as it is compared. Beyond, less is known of it, which can only make less compatible.
MAX_VISITS: Final = 200_000


class EvaluatedProperties(NamedTuple):
    """*everything*: no property is left for ``unevaluatedProperties``."""

    names: frozenset[str]
    patterns: frozenset[str]
    everything: bool


class EvaluatedItems(NamedTuple):
    """*contains*: further items may be evaluated because a ``contains`` matches them."""

    prefix: int
    everything: bool
    contains: bool


def evaluated_properties(node: Node, *, sure: bool) -> EvaluatedProperties:
    """At least these are evaluated in any valid object (*sure*), or at most these in some."""
    found: EvaluatedProperties | None = node.evaluated.get(("properties", sure))
    if found is None:
        found = node.evaluated[("properties", sure)] = _find_properties(node, sure)
    return found


def evaluated_items(node: Node, *, sure: bool) -> EvaluatedItems:
    """At least these are evaluated in any valid array (*sure*), or at most these in some."""
    found: EvaluatedItems | None = node.evaluated.get(("items", sure))
    if found is None:
        found = node.evaluated[("items", sure)] = _find_items(node, sure)
    return found


def _find_properties(node: Node, sure: bool) -> EvaluatedProperties:
    if node.document.visits > MAX_VISITS:
        return EvaluatedProperties(frozenset(), frozenset(), not sure)
    names: set[str] = set()
    patterns: set[str] = set()
    everything = False
    for part in _in_place(node, sure):
        names.update(part.keywords.get("properties", ()))
        patterns.update(part.keywords.get("patternProperties", ()))
        everything |= "additionalProperties" in part.keywords
        everything |= part is not node and "unevaluatedProperties" in part.keywords
    return EvaluatedProperties(frozenset(names), frozenset(patterns), everything)


def _find_items(node: Node, sure: bool) -> EvaluatedItems:
    if node.document.visits > MAX_VISITS:
        return EvaluatedItems(0, not sure, True)
    prefix, everything, contains = 0, False, False
    for part in _in_place(node, sure):
        prefix = max(prefix, len(part.keywords.get("prefixItems", ())))
        everything |= "items" in part.keywords
        everything |= part is not node and "unevaluatedItems" in part.keywords
        contains |= "contains" in part.keywords
    return EvaluatedItems(prefix, everything, contains)


def _in_place(node: Node, sure: bool) -> Iterator[Node]:
    """*node* and the schemas inside it that are applied to the same value: always (*sure*), or perhaps."""
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if part in seen:
            continue
        seen.add(part)
        node.document.visits += 1
        yield part
        waiting += part.keywords.get("allOf", ())
        if "$ref" in part.keywords:
            waiting.append(part.target)
        if not sure:
            for keyword in ("anyOf", "oneOf"):
                waiting += part.keywords.get(keyword, ())
            waiting += [part.keywords[keyword] for keyword in ("if", "then", "else") if keyword in part.keywords]
            waiting += [schema for _, schema in part.keywords.get("dependentSchemas", ())]
