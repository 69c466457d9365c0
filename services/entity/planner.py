"""The List rule: which one contiguous key range of which index a list walks, and what is left to test on each row.

The rule does not depend on the number of rows, so a query that works on ten entities works on ten million:

- A term of the top-level AND is *indexable* if it is ``:``, or if a range of values holds all that it accepts (see
  ``interval``). With one of them, or with ``order_by``, an index must serve at least one indexable term (if there is
  one) and the whole order, else ``INDEX_REQUIRED``.
- Without either, the list walks id order and the filter is tested on each row.

An index serves equalities on its leading fields, then at most one range, and the order that its remaining fields give,
read forwards or backwards. A field that the filter fixes to one value cannot disturb an order and is skipped in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

from services.entity.index_keys import MAX_FIELDS, IndexField, IndexSpec, encode, invert, parse_order_by, prefix_range
from services.entity.intervals import SCALARS, Interval, exact, interval
from services.entity.model import Index, IndexState
from services.runtime.errors import FailedPrecondition, invalid_field
from services.runtime.filters.ast import And, Compare, Has, Like, Node, Path
from services.runtime.filters.types import FieldTypes

_Values: TypeAlias = tuple[Path, bool]
"""See ``IndexField.values``."""
Indexes: TypeAlias = Sequence[tuple[int, IndexSpec]]
"""The READY indexes of a type with their ids."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One walk: over the keys of an index, or over the ids of the type when ``index_id`` is None.

    Keys with ``lower <= key < upper`` (None: no bound) are read in key order, ties by id, both backwards if *reverse*;
    each entity appears once. Rows that fail *residual* are dropped. An *empty* plan matches nothing and reads nothing.
    """

    index_id: int | None = None
    lower: bytes | None = None
    upper: bytes | None = None
    reverse: bool = False
    residual: Node | None = None
    empty: bool = False
    words: tuple[bytes, ...] = ()
    """Keys in the same index under which an entity must stand, too."""


@dataclass(frozen=True, slots=True)
class _Query:
    terms: tuple[Node, ...]
    intervals: Mapping[_Values, Interval]
    elements: Mapping[Path, Has]
    order: tuple[IndexField, ...]
    """What is left to sort by once the fixed fields are skipped."""

    def fixes(self, values: _Values) -> bool:
        return values in self.intervals and self.intervals[values].fixed is not None


@dataclass(frozen=True, slots=True)
class _Match:
    index_id: int
    fields: tuple[IndexField, ...]
    equalities: int
    """How many leading fields are bound to one value."""
    ranged: bool
    """Whether the field after them is bound to a range."""
    reverse: bool


def plan_list(
    filter: Node | None,
    order_by: str,
    indexes: Indexes,
    field_types: FieldTypes = MappingProxyType({}),
    field: str = "order_by",
) -> Plan:
    """Return the walk that answers a list.

    Args:
        filter: the parsed filter, or None.
        order_by: ``data.population desc, data.name``, or empty: the order of whatever is walked.
        indexes: the READY indexes of the type with their ids. To continue a page pass only the index that it walked:
            the choice may change when an index becomes ready, and a position means nothing in another index.
        field_types: what the type's schema says of its fields.
        field: the request's field that *order_by* stands for, for the error.

    Raises:
        InvalidArgument: ``INVALID_FIELD``, *order_by* is malformed or names an array.
        FailedPrecondition: ``INDEX_REQUIRED``; ``index`` is the JSON of an index to declare.
    """
    query = _analyse(filter, order_by, field_types, field)
    indexable = bool(query.intervals or query.elements)
    if not indexable and not order_by.strip():
        return Plan(residual=filter)
    matches = [match for index_id, spec in indexes if (match := _match(index_id, spec.fields, query)) is not None]
    usable = [match for match in matches if match.equalities or match.ranged or not indexable]
    if not usable:
        raise _index_required(query)
    best = max(usable, key=lambda match: (match.equalities, match.ranged, -len(match.fields), -match.index_id))
    return _walk(best, query)


def plan_end(filter: Node | None, field: IndexField, indexes: Indexes) -> Plan | None:
    """Return the walk whose first entity has the least scalar in *field*, the greatest if it descends.

    None if no index serves the whole filter together with that order.
    """
    if any(isinstance(term, Has) and term.path == field.path for term in _conjuncts(filter)):
        return None  # it may be an array, which has no order
    query = _analyse(filter, str(field), {})
    asked = query.intervals.get(field.values, SCALARS).intersect(SCALARS)
    query = replace(query, intervals={**query.intervals, field.values: asked})
    matches = (_match(index_id, spec.fields, query) for index_id, spec in indexes)
    walks = (_walk(match, query) for match in matches if match is not None and (match.equalities or match.ranged))
    return next((walk for walk in walks if walk.residual is None), None)


def index_not_ready(index: Index) -> FailedPrecondition:
    """``INDEX_REQUIRED`` where *index* would serve if it were READY; ``state`` is what it is."""
    kind = {"kind": "FULL_TEXT"} if index.spec.full_text else {"unique": index.spec.unique}
    declared = json.dumps({"fields": list(index.fields), **kind}, ensure_ascii=False)
    if index.state == IndexState.BUILDING:
        problem = "it is BUILDING: ask again when it is READY"
    else:
        problem = f"it is FAILED ({index.failure}): mend that, and update the type, which tries again"
    message = f"the index {declared} would serve, but {problem}"
    return FailedPrecondition("INDEX_REQUIRED", message, index=declared, state=index.state.name)


def _analyse(filter: Node | None, order_by: str, field_types: FieldTypes, name: str = "order_by") -> _Query:
    terms = tuple(_conjuncts(filter))
    intervals: dict[_Values, Interval] = {}
    elements: dict[Path, Has] = {}
    for term in terms:
        if isinstance(term, Has):
            elements.setdefault(term.path, term)
        elif (values := _served_by(term)) and (narrowed := interval(term)):
            intervals[values] = intervals[values].intersect(narrowed) if values in intervals else narrowed
    fixed = {values for values, left in intervals.items() if left.fixed is not None}
    asked = parse_order_by(order_by, name)
    for field in asked:
        if "array" in field_types.get(field.path, ()) or field.path in elements:
            raise invalid_field(name, f"{field} is an array, which has no order")
    return _Query(terms, intervals, elements, tuple(field for field in asked if field.values not in fixed))


def _served_by(term: Node) -> _Values | None:
    """The values whose order could serve *term*."""
    return (term.path, term.folded) if isinstance(term, (Compare, Like)) else None


def _conjuncts(node: Node | None) -> list[Node]:
    if node is None:
        return []
    if isinstance(node, And):
        return [conjunct for term in node.terms for conjunct in _conjuncts(term)]
    return [node]


def _match(index_id: int, fields: tuple[IndexField, ...], query: _Query) -> _Match | None:
    equalities = 0
    while equalities < len(fields) and _binds(fields[equalities], query):
        equalities += 1
    rest = fields[equalities:]
    if any(field.array for field in rest):
        return None  # an entity would appear once per element
    reverse = _direction(rest, query)
    if reverse is None:
        return None
    return _Match(index_id, fields, equalities, bool(rest) and rest[0].values in query.intervals, reverse)


def _binds(field: IndexField, query: _Query) -> bool:
    return field.path in query.elements if field.array else query.fixes(field.values)


def _direction(rest: Sequence[IndexField], query: _Query) -> bool | None:
    """Say whether *rest* must be read backwards to give the order, or return None if it does not give it."""
    given = [field for field in rest if not query.fixes(field.values)][: len(query.order)]
    if [field.values for field in given] != [field.values for field in query.order]:
        return None
    opposed = {ours.descending != wanted.descending for ours, wanted in zip(given, query.order, strict=True)}
    return None if len(opposed) == 2 else True in opposed


def _walk(match: _Match, query: _Query) -> Plan:
    bound, rest = match.fields[: match.equalities], match.fields[match.equalities :]
    intervals = {field.values: query.intervals[field.values] for field in bound if not field.array}
    head = b"".join(_bound_component(field, query) for field in bound)
    lower, upper = prefix_range(head)
    if match.ranged:
        interval = intervals[rest[0].values] = query.intervals[rest[0].values]
        ends = (cut.position(head, descending=rest[0].descending) for cut in (interval.low, interval.high))
        lower, upper = sorted(ends)
    # By identity: to Python the terms data.tags:1 and data.tags:true are equal.
    found = [query.elements[field.path] for field in bound if field.array]
    residual = tuple(
        term
        for term in query.terms
        if not any(term is has for has in found) and not (_served_by(term) in intervals and exact(term))
    )
    return Plan(
        index_id=match.index_id,
        lower=lower or None,
        upper=upper,
        reverse=match.reverse,
        residual=And(residual) if len(residual) > 1 else residual[0] if residual else None,
        empty=any(interval.empty for interval in intervals.values()),
    )


def _bound_component(field: IndexField, query: _Query) -> bytes:
    component = encode(query.elements[field.path].value) if field.array else query.intervals[field.values].fixed
    assert component is not None, "only bound fields come here"
    return invert(component) if field.descending else component


def _index_required(query: _Query) -> FailedPrecondition:
    bound = [_field(values) for values in query.intervals if query.fixes(values)]
    bound += [IndexField(path, array=True) for path in query.elements][:1]
    ranges = [_field(values) for values in query.intervals if not query.fixes(values)]
    problem = "no READY index serves a comparison of the filter together with the whole order"
    tail = list(query.order) or ranges[:1]
    if query.order and ranges and not bound and query.order[0].values not in [field.values for field in ranges]:
        # No index can: the rows of a range come in the order of its field.
        problem = f"a range is served only in the order of its field: let the order begin with {ranges[0]}"
        tail = [ranges[0], *(field for field in query.order if field.values != ranges[0].values)]
    fields = {field.values: str(field) for field in [*bound[: MAX_FIELDS - len(tail)], *tail]}
    suggestion = json.dumps({"fields": list(fields.values()), "unique": False}, ensure_ascii=False)
    return FailedPrecondition("INDEX_REQUIRED", f"{problem}; declare the index {suggestion}", index=suggestion)


def _field(values: _Values) -> IndexField:
    path, folded = values
    return IndexField(path, folded=folded)
