"""One entity of the rows that are the same thing: a value for each field, and which source it is from."""

from __future__ import annotations

import datetime
import decimal
import heapq
import itertools
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from strandline_cli.unify.plan import MergeRule, Plan, PlanError, fill_in, placeholders
from strandline_cli.unify.sources import ROW, Tables, quoted

Row = Mapping[str, Any]
_NO_INT = 2**63


class Conflict(NamedTuple):
    """Sources that differ: the entity's id, the fields, and what each source has, by its name."""

    id: str
    fields: tuple[str, ...]
    values: dict[str, list[Any]]


class Entity(NamedTuple):
    """A merged entity, and where its sources disagree."""

    id: str
    data: dict[str, Any]
    conflicts: tuple[Conflict, ...]


def merged(tables: Tables) -> Iterator[Entity]:
    """The entities, in the order of things: the first source's rows by key, then what the next one adds, ...

    Raises:
        PlanError: a rule or an id names a column that is not there, a thing gets no id, or two get the same.
    """
    plan = tables.plan
    rules = _rules(tables)
    _check_ids(tables)
    streams = [_members(tables, place) for place in range(len(plan.sources))]
    seen: set[str] = set()
    for _, group in itertools.groupby(heapq.merge(*streams, key=lambda item: item[:2]), key=lambda item: item[0]):
        rows = {plan.sources[place].name: row for _, place, row in group}
        entity = merge(plan, rules, rows)
        if entity.id in seen:
            raise PlanError(f"id: two entities would have the id {entity.id!r}")
        seen.add(entity.id)
        yield entity


def merge(plan: Plan, rules: Sequence[MergeRule], rows: Mapping[str, Row]) -> Entity:
    """The entity that *rows*, by source, make together."""
    identifier = _id(plan, rows)
    data: dict[str, Any] = {}
    origin: dict[str, Any] = {}
    conflicts = []
    for rule in rules:
        values = {name: [as_json(rows[name].get(key)) for key in rule.fields] for name in rule.prefer if name in rows}
        held = {name: found for name, found in values.items() if any(value is not None for value in found)}
        if not held:
            continue
        if rule.all:
            (key,) = rule.fields
            data[key], origin[key] = _every(held)
        else:
            chosen = _chosen(rule, held, rows)
            for key, value in zip(rule.fields, held[chosen], strict=True):
                if value is not None:
                    data[key], origin[key] = value, chosen
        if rule.tolerance is not None and _differ(list(held.values()), rule.tolerance):
            conflicts.append(Conflict(identifier, rule.fields, held))
    data[plan.sources_field] = origin
    return Entity(identifier, data, tuple(conflicts))


def _rules(tables: Tables) -> list[MergeRule]:
    """The plan's rules, and for every other column: from the first source that has it."""
    plan = tables.plan
    columns = dict.fromkeys(name for of_source in tables.columns for name in of_source)
    ruled: set[str] = set()
    for number, rule in enumerate(plan.merge):
        for name in (*rule.fields, *([rule.newest] if rule.newest else [])):
            if name not in columns:
                raise PlanError(f"merge[{number}]: no source has a column {name!r}: {', '.join(columns)}")
        if twice := ruled & set(rule.fields):
            raise PlanError(f"merge[{number}]: {min(twice)} has a rule already")
        ruled |= set(rule.fields)
    if unknown := plan.omit - columns.keys():
        raise PlanError(f"omit: no source has a column {min(unknown)!r}: {', '.join(columns)}")
    names = tuple(source.name for source in plan.sources)
    return [*plan.merge, *(MergeRule((key,), names) for key in columns if key not in ruled | plan.omit)]


def _check_ids(tables: Tables) -> None:
    places = {source.name: place for place, source in enumerate(tables.plan.sources)}
    for template in tables.plan.ids:
        for name, column in placeholders(template):
            tables.check_columns(places[name], [column], "id")


def _members(tables: Tables, place: int) -> Iterator[tuple[int, int, Row]]:
    """(thing, place, row) of a source, in the order of things."""
    columns = tables.columns[place]
    selected = ", ".join(f"s.{quoted(name)}" for name in columns)
    query = (
        f"SELECT m.thing, {selected} FROM members m JOIN source_{place} s ON s.{ROW} = m.n "
        f"WHERE m.source = {place} ORDER BY m.thing"
    )
    for thing, *values in tables.rows(query):
        yield thing, place, dict(zip(columns, values, strict=True))


def _id(plan: Plan, rows: Mapping[str, Row]) -> str:
    for template in plan.ids:
        if all(name in rows and rows[name][column] is not None for name, column in placeholders(template)):
            return fill_in(template, lambda name, column: rows[name][column])
    keys = ", ".join(f"{source.name} {rows[source.name][source.key]}" for source in plan.sources if source.name in rows)
    raise PlanError(f"id: none of the templates fits {keys}")


def _chosen(rule: MergeRule, held: Mapping[str, list[Any]], rows: Mapping[str, Row]) -> str:
    """The source of *held*, which is in the order of preference, that the values are taken from."""
    if rule.newest:
        dated = [name for name in held if rows[name].get(rule.newest) is not None]
        # The first of equal ones, as max has it.
        try:
            return max(dated, key=lambda name: rows[name][rule.newest]) if dated else next(iter(held))
        except TypeError:
            raise PlanError(
                f"merge: newest: the sources have {rule.newest} in different types: cast them alike"
            ) from None
    complete = (name for name, values in held.items() if None not in values)
    return next(complete, next(iter(held)))


def _every(held: Mapping[str, list[Any]]) -> tuple[list[Any], list[str]]:
    """Each value once, and the source that had it first."""
    values: list[Any] = []
    origin: list[str] = []
    for name, (value,) in held.items():
        if value not in values:
            values.append(value)
            origin.append(name)
    return values, origin


def _differ(held: Sequence[Sequence[Any]], tolerance: float) -> bool:
    """Whether two sources that have all the values disagree on one."""
    complete = [values for values in held if None not in values]
    return any(
        _apart(left, right, tolerance)
        for one, other in itertools.combinations(complete, 2)
        for left, right in zip(one, other, strict=True)
    )


def _apart(left: Any, right: Any, tolerance: float) -> bool:
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return abs(left - right) > tolerance
    return bool(left != right)


def as_json(value: Any) -> Any:
    """A DuckDB value as JSON has it; null for what no number is."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int) and abs(value) >= _NO_INT:
        raise PlanError(f"a column holds {value}, more than JSON has numbers for: cast it to text in the SQL")
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, datetime.timedelta)):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        raise PlanError("a column holds bytes, which JSON has no form for: encode it in the SQL")
    if isinstance(value, list):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    return value
