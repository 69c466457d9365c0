"""The SQL that counts or aggregates the rows of a walk: a bounded number of them, whatever the statistics say.

As in ``list_queries`` the walk is one range of ids or of an index, fenced by its LIMIT, with one probe of the primary
key for each entry whose entity has to be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.entity.list_queries import Text, add_range, add_residual
from services.entity.planner import Plan
from services.runtime.database import Statement


@dataclass(frozen=True, slots=True)
class Examined:
    """The first *limit* rows of a walk."""

    namespace: str
    type_id: str
    plan: Plan
    limit: int
    show_deleted: bool = field(default=False, kw_only=True)


def examined_statement(range_: Examined) -> Statement:
    """One row: how many rows are examined, and how many of them match."""
    text = Text()
    if range_.plan.index_id is None:
        text.add("SELECT count(*), count(*) FILTER (WHERE ")
        add_condition(text, range_)
        text.add(") FROM (")
        add_ids(text, range_)
        text.add(") entities")
    elif range_.plan.residual is None:
        # What is in the range matches: the entities themselves need not be read.
        text.add("SELECT count(*), count(*) FROM (")
        add_entries(text, range_)
        text.add(") walked")
    else:
        text.add("SELECT count(*), count(matched) FROM (")
        add_entries(text, range_)
        text.add(") walked LEFT JOIN LATERAL (SELECT true AS matched FROM entities WHERE ")
        add_probe(text, range_)
        text.add(" AND ")
        add_condition(text, range_)
        text.add(" OFFSET 0) entity ON true")
    return text.statement()


def add_ids(text: Text, range_: Examined) -> None:
    """The entities of the type in the order of their ids, deleted ones too."""
    text.add(
        "SELECT * FROM entities WHERE namespace = %s AND type = %s ORDER BY id LIMIT %s",
        range_.namespace,
        range_.type_id,
        range_.limit,
    )


def add_entries(text: Text, range_: Examined) -> None:
    """The entries (key, id) of the range in the order of the plan; those of deleted entities come after all others."""
    _add_entries(text, range_, deleted=False)
    if range_.show_deleted:
        text.add(" UNION ALL ")
        _add_entries(text, range_, deleted=True)
        text.add(" LIMIT %s", range_.limit)


def _add_entries(text: Text, range_: Examined, *, deleted: bool) -> None:
    text.add("(")
    add_range(text, range_.namespace, range_.plan, deleted=deleted)
    text.add(" ORDER BY key DESC, id DESC" if range_.plan.reverse else " ORDER BY key, id")
    text.add(" LIMIT %s)", range_.limit)


def add_probe(text: Text, range_: Examined) -> None:
    """The condition that finds the entity of an entry."""
    text.add("namespace = %s AND type = %s AND id = walked.id", range_.namespace, range_.type_id)


def add_condition(text: Text, range_: Examined) -> None:
    """Whether the entity counts: it is alive, if that is asked for, and passes what the range leaves of the filter."""
    # The entries of an index already say which entities are alive.
    if range_.plan.index_id is None and not range_.show_deleted:
        text.add("delete_time IS NULL AND ")
    add_residual(text, range_.plan)
