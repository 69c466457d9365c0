"""Aggregates over the live entities of one range, in groups or in one; bounded as lists are.

``count`` counts entities. ``sum`` and ``avg`` take numbers, exactly, and ignore everything else: the sum of none is 0,
the average of none is null. ``min`` and ``max`` take scalars in the order of indexes (false, true, numbers, strings by
their bytes), of a string its first 1,024 characters; of none they are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, Literal, TypeAlias

from services.entity.catalog import Catalog
from services.entity.content import CompiledType
from services.entity.examination import (
    Examined,
    add_condition,
    add_entries,
    add_ids,
    add_probe,
    examined_statement,
)
from services.entity.index_keys import IndexField, encode
from services.entity.list_queries import Text
from services.entity.lists import checked_filter, plan_ordered, ready_indexes
from services.entity.planned_reads import read_planned
from services.entity.planner import Plan, plan_end, plan_list
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head
from services.runtime.database import Database, Statement
from services.runtime.errors import FailedPrecondition, invalid_field
from services.runtime.filters.ast import Node, Path
from services.runtime.filters.paths import render_path

MAX_GROUPS: Final = 1_000
MAX_TEXT: Final = 1_024
"""Characters of the least or greatest text; the beginning of the least text is the least of all beginnings."""

Function: TypeAlias = Literal["count", "sum", "avg", "min", "max"]
Scalar: TypeAlias = str | float | bool | None


@dataclass(frozen=True, slots=True)
class Aggregation:
    """One figure; *path* is empty for ``count``."""

    function: Function
    path: Path = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for: one figure for each aggregation, in each group of entities with equal *group_by*."""

    type_id: str
    filter: str
    aggregations: tuple[Aggregation, ...]
    group_by: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Entities with equal values; null stands for everything that is no scalar."""

    key: tuple[Scalar, ...]
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Aggregates:
    """Groups in the order of their keys; without ``group_by`` there is exactly one."""

    head: Head
    groups: Sequence[Group]


class Aggregator:
    """Aggregates the entities of a type."""

    def __init__(self, database: Database, types: Catalog) -> None:
        self._database = database
        self._types = types

    async def aggregate(self, namespace: Namespace, request: Request, minimum: MinRevision) -> Aggregates:
        """All figures, of one snapshot.

        Raises:
            NotFound: there is no such type.
            InvalidArgument: the filter, or a group by an array.
            FailedPrecondition: INDEX_REQUIRED, as for a list in the order of ``group_by``; AGGREGATE_TOO_LARGE, unless
                the ends of ranges hold all figures; or a minimum that does not exist.
        """
        answers_ends = False

        async def plan(compiled: CompiledType, max_examined: int) -> list[Statement]:
            nonlocal answers_ends
            ends = _plan_ends(namespace, request, compiled)
            answers_ends = ends is not None
            return ends if ends is not None else _plan_walk(namespace, request, compiled, max_examined)

        head, limit, rows = await read_planned(self._database, self._types, namespace, request.type_id, minimum, plan)
        if answers_ends:
            return Aggregates(head, [Group((), tuple(found[0][0] if found else None for found in rows))])
        if not rows:
            return Aggregates(head, [] if request.group_by else [Group((), _figures(request, None))])
        ((examined, _),), found = rows
        if examined > limit or len(found) > MAX_GROUPS:
            what = f"{limit} entities" if examined > limit else f"{MAX_GROUPS} groups"
            raise FailedPrecondition(
                "AGGREGATE_TOO_LARGE",
                f"there are more than {what}: narrow the filter (min and max of an indexed field have no limit)",
                examined=str(min(examined, limit)),
            )
        width = len(request.group_by)
        groups = [Group(tuple(row[:width]), _figures(request, row[width:])) for row in found]
        return Aggregates(head, sorted(groups, key=lambda group: [encode(value) for value in group.key]))


def _plan_ends(namespace: Namespace, request: Request, compiled: CompiledType) -> list[Statement] | None:
    """One statement for each figure, if the first entry of a range holds each."""
    compiled.check_fields(_fields(request), "aggregations")
    if request.group_by or any(one.function not in ("min", "max") for one in request.aggregations):
        return None
    statements = []
    for one in request.aggregations:
        walk = plan_end(
            checked_filter(request.filter, compiled),
            IndexField(one.path, descending=one.function == "max"),
            ready_indexes(compiled),
        )
        if walk is None:
            return None
        range_ = Examined(namespace.id, request.type_id, walk, 0 if walk.empty else 1)
        text = Text().add("SELECT entity.value FROM (")
        add_entries(text, range_)
        text.add(") walked CROSS JOIN LATERAL (SELECT ")
        _add_value(text, one.path)
        text.add(" AS value FROM entities WHERE ")
        add_probe(text, range_)
        text.add(" LIMIT 1) entity")
        statements.append(text.statement())
    return statements


def _plan_walk(namespace: Namespace, request: Request, compiled: CompiledType, max_examined: int) -> list[Statement]:
    """Two statements: how many rows are examined, and the groups (key, then ``_COLUMNS`` of each field)."""
    for path in request.group_by:
        if "array" in compiled.field_types.get(path, ()):
            raise invalid_field("group_by", f"{render_path(path)} is an array")
    compiled.check_fields(request.group_by, "group_by")
    walk = _plan_groups(checked_filter(request.filter, compiled), request.group_by, compiled)
    if walk.empty:
        return []
    range_ = Examined(namespace.id, request.type_id, walk, max_examined + 1)
    values = [*request.group_by, *_fields(request)]
    text = Text().add("SELECT ")
    for place in range(len(request.group_by)):
        text.add(f"CASE WHEN jsonb_typeof(v{place}) IN ('string', 'number', 'boolean') THEN v{place} END, ")
    text.add("count(*)")
    for place in range(len(request.group_by), len(values)):
        text.add(_COLUMNS.format(v=f"v{place}"))
    if walk.index_id is None:
        text.add(" FROM (")
        _add_values(text, values)
        text.add(" FROM (")
        add_ids(text, range_)
        text.add(") entities WHERE ")
        add_condition(text, range_)
        text.add(") rows")
    else:
        text.add(" FROM (")
        add_entries(text, range_)
        text.add(") walked CROSS JOIN LATERAL (")
        _add_values(text, values)
        text.add(" FROM entities WHERE ")
        add_probe(text, range_)
        text.add(" AND ")
        add_condition(text, range_)
        text.add(" OFFSET 0) entity")
    if request.group_by:
        text.add(f" GROUP BY {', '.join(str(place + 1) for place in range(len(request.group_by)))}")
        text.add(" LIMIT %s", MAX_GROUPS + 1)
    # How many rows are examined does not depend on the rest of the filter, which would be tested twice.
    return [examined_statement(replace(range_, plan=replace(walk, residual=None))), text.statement()]


def _plan_groups(filter: Node | None, group_by: Sequence[Path], compiled: CompiledType) -> Plan:
    """The walk of a list in the order of *group_by*, each field in the direction that an index happens to have."""
    indexes = ready_indexes(compiled)
    for index in indexes:
        descending = {field.path: field.descending for field in index[1].fields}
        order_by = ", ".join(str(IndexField(path, descending=descending.get(path, False))) for path in group_by)
        try:
            return plan_list(filter, order_by, indexes, compiled.field_types, "group_by")
        except FailedPrecondition:
            continue  # another index may have the directions that serve it
    order_by = ", ".join(str(IndexField(path)) for path in group_by)
    return plan_ordered(filter, order_by, compiled, indexes, "group_by")


# CASE, not FILTER: only CASE promises that a cast is not tried on a value of another type.
_NUMBER = "CASE WHEN jsonb_typeof({v}) = 'number' THEN {v}::numeric END"
_BOOLEAN = "CASE WHEN jsonb_typeof({v}) = 'boolean' THEN {v}::boolean END"
_STRING = f"""CASE WHEN jsonb_typeof({{v}}) = 'string' THEN left({{v}} #>> '{{{{}}}}', {MAX_TEXT}) END COLLATE "C" """
_COLUMNS = (
    f", count({_NUMBER}), sum({_NUMBER}), min({_NUMBER}), max({_NUMBER})"
    f", bool_and({_BOOLEAN}), bool_or({_BOOLEAN}), min({_STRING}), max({_STRING})"
)
_WIDTH: Final = 8


def _add_value(text: Text, path: Path) -> None:
    text.add(f"(data{' -> %s::text' * len(path)})", *path)


def _add_values(text: Text, paths: Sequence[Path]) -> None:
    """The head of a SELECT that gives the values as v0, v1, ...; a constant for when there is none."""
    text.add("SELECT 1 AS one")
    for place, path in enumerate(paths):
        text.add(", ")
        _add_value(text, path)
        text.add(f" AS v{place}")


def _fields(request: Request) -> list[Path]:
    """The fields that figures are made of, each once."""
    return list(dict.fromkeys(one.path for one in request.aggregations if one.path))


def _figures(request: Request, row: Sequence[Any] | None) -> tuple[Scalar, ...]:
    """The figures from (count, ``_COLUMNS`` of each field); None: nothing was found."""
    fields = _fields(request)
    columns: Sequence[Any] = (
        row if row is not None else (0, *(0, None, None, None, None, None, None, None) * len(fields))
    )
    starts = {path: 1 + place * _WIDTH for place, path in enumerate(fields)}
    figures: list[Scalar] = []
    for one in request.aggregations:
        if one.function == "count":
            figures.append(float(columns[0]))
            continue
        start = starts[one.path]
        numbers, total, least, greatest, every, some, first, last = columns[start : start + _WIDTH]
        match one.function:
            case "sum":
                figures.append(_double(total or Decimal(0)))
            case "avg":
                figures.append(_double(Fraction(total) / numbers) if numbers else None)
            case "min":
                found = (value for value in (every, _double(least), first) if value is not None)
                figures.append(next(found, None))
            case "max":
                found = (value for value in (last, _double(greatest), some) if value is not None)
                figures.append(next(found, None))
    return tuple(figures)


def _double(number: Decimal | Fraction | None) -> float | None:
    """The nearest double: stored numbers are below 2**53, so that no sum of them is beyond."""
    return None if number is None else float(number) + 0.0
