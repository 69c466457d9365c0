"""The SQL of one page: a walk of a bounded number of rows of one range, in its order, that stops when it is full.

Every row comes as (key, id, examined, matched, message): ``examined`` counts the rows of the walk from 1, and the last
one that may be examined comes even if it does not match, so that a short page knows where to go on. ``message`` is null
beyond ``max_bytes``. LATERAL with OFFSET 0 is not flattened: the plan is a walk with one probe each, whatever the
statistics say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from services.entity.planner import Plan
from services.entity.store import ENTITY_FIELDS
from services.runtime.database import Statement
from services.runtime.filters import compile_sql


@dataclass(frozen=True, slots=True)
class Position:
    """The last row of a walk that was examined: in the index, or by id alone when ``index_id`` is None."""

    index_id: int | None
    key: bytes
    id: str


@dataclass(frozen=True, slots=True)
class Walk:
    """What a page reads: up to *limit* rows that match, of *max_examined*, with messages up to *max_bytes*."""

    namespace: str
    type_id: str
    plan: Plan
    after: Position | None
    show_deleted: bool
    limit: int
    max_examined: int
    max_bytes: int


def page_statement(walk: Walk) -> Statement:
    """The statement that reads the page."""
    text = Text()
    if walk.plan.index_id is None:
        _walk_ids(text, walk)
    else:
        _walk_index(text, walk, walk.plan.index_id)
    return text.statement()


@dataclass(slots=True)
class Text:
    """SQL with its parameters, in the order of the text."""

    sql: str = ""
    params: list[Any] = field(default_factory=list)

    def add(self, sql: str, *params: Any) -> Text:
        self.sql += sql
        self.params += params
        return self

    def statement(self) -> Statement:
        return Statement(self.sql, tuple(self.params))


def add_range(text: Text, namespace: str, plan: Plan, *, deleted: bool) -> None:
    """A SELECT of the entries (key, id) of live, or of deleted, entities in the range of *plan*, up to its WHERE."""
    text.add(
        "SELECT key, id FROM index_entries WHERE namespace = %s AND index_id = %s AND deleted = %s",
        namespace,
        plan.index_id,
        deleted,
    )
    if plan.lower is not None:
        text.add(" AND key >= %s", plan.lower)
    if plan.upper is not None:
        text.add(" AND key < %s", plan.upper)


def add_residual(text: Text, plan: Plan) -> None:
    """The condition on an entity that the range of *plan* leaves."""
    if plan.residual is None:
        text.add("true")
    else:
        sql, params = compile_sql(plan.residual, entity=ENTITY_FIELDS)
        text.add(sql, *params)


def _walk_ids(text: Text, walk: Walk) -> None:
    text.add(
        """SELECT ''::bytea, id, examined, matched, CASE WHEN matched AND bytes <= %s THEN message END FROM (
        SELECT *, sum(CASE WHEN matched THEN octet_length(message) END) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING)
            AS bytes FROM (
        SELECT id, message, row_number() OVER (ORDER BY id) AS examined, """,
        walk.max_bytes,
    )
    if not walk.show_deleted:
        text.add("delete_time IS NULL AND ")
    add_residual(text, walk.plan)
    text.add(
        """ AS matched FROM (
        SELECT * FROM entities WHERE namespace = %s AND type = %s AND id > %s
        ORDER BY id LIMIT %s) walked) tested WHERE matched OR examined = %s) sized ORDER BY id LIMIT %s""",
        walk.namespace,
        walk.type_id,
        walk.after.id if walk.after is not None else "",
        walk.max_examined,
        walk.max_examined,
        walk.limit,
    )


def _walk_index(text: Text, walk: Walk, index_id: int) -> None:
    order = "ORDER BY key DESC, id DESC" if walk.plan.reverse else "ORDER BY key, id"
    text.add(
        """SELECT key, id, examined, matched, CASE WHEN bytes <= %s THEN message END FROM (
        SELECT key, walked.id, examined, message IS NOT NULL AS matched, message, sum(octet_length(message)) OVER (""",
        walk.max_bytes,
    )
    text.add(order)
    text.add(" ROWS UNBOUNDED PRECEDING) AS bytes FROM (SELECT key, id, row_number() OVER (")
    text.add(order)
    text.add(") AS examined FROM (")
    _entries(text, walk, order, deleted=False)
    if walk.show_deleted:
        text.add(" UNION ALL ")
        _entries(text, walk, order, deleted=True)
    text.add(") entries ")
    text.add(order)
    text.add(
        """ LIMIT %s) walked
        LEFT JOIN LATERAL (SELECT message FROM entities WHERE namespace = %s AND type = %s AND id = walked.id AND """,
        walk.max_examined,
        walk.namespace,
        walk.type_id,
    )
    add_residual(text, walk.plan)
    for word in walk.plan.words:
        text.add(
            """ AND EXISTS (SELECT FROM index_entries WHERE namespace = %s AND index_id = %s
            AND deleted = (entities.delete_time IS NOT NULL) AND key = %s AND id = walked.id)""",
            walk.namespace,
            index_id,
            word,
        )
    text.add(" OFFSET 0) entity ON true WHERE message IS NOT NULL OR examined = %s) sized ", walk.max_examined)
    text.add(order)
    text.add(" LIMIT %s", walk.limit)


def _entries(text: Text, walk: Walk, order: str, *, deleted: bool) -> None:
    """The entries of live or of deleted entities in the range; each of the two is bounded by itself."""
    text.add("(")
    add_range(text, walk.namespace, walk.plan, deleted=deleted)
    if walk.after is not None:
        beyond = " AND (key, id) < (%s, %s) " if walk.plan.reverse else " AND (key, id) > (%s, %s) "
        text.add(beyond, walk.after.key, walk.after.id)
    text.add(" ")
    text.add(order)
    text.add(" LIMIT %s)", walk.max_examined)
