"""Reads that are planned by a type as it is: head, type and rows come from one snapshot, or the plan is made again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import psycopg

from services.entity import catalog
from services.entity.catalog import Catalog, missing_type
from services.entity.content import CompiledType
from services.entity.reads import current_head
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head, select_head
from services.runtime.database import Database, Row, Statement
from services.runtime.errors import Error, Unavailable

MAX_EXAMINED: Final = 10_000
"""Rows that a read examines."""
MAX_EXAMINED_OF_SLOW: Final = 300
"""The same when the filter and the entities are so large that the database gave up on more."""
_MAX_ATTEMPTS: Final = 5

Planner: TypeAlias = Callable[[CompiledType, int], Awaitable[Sequence[Statement]]]
"""The statements that answer for a type, examining at most so many rows; it may raise what the plan is refused with."""


async def read_planned(
    database: Database, types: Catalog, namespace: Namespace, type_id: str, minimum: MinRevision, plan: Planner
) -> tuple[Head, int, list[list[Row]]]:
    """The head, the limit that *plan* was given last, and the rows of its statements.

    Raises:
        NotFound: there is no such type.
        FailedPrecondition: the minimum does not exist.
        Error: what *plan* raises.
    """
    known = types.recall(namespace.id, [type_id])
    max_examined = MAX_EXAMINED
    for _ in range(_MAX_ATTEMPTS):
        compiled = known.get(type_id)
        statements: Sequence[Statement] = ()
        refusal: Error | None = None
        if compiled is not None:
            try:
                statements = await plan(compiled, max_examined)
            except Error as failure:
                refusal = failure
        try:
            head_rows, type_rows, *rows = await database.read(
                namespace.id, select_head(namespace.id), catalog.select(namespace.id, [type_id], known), *statements
            )
        except psycopg.errors.QueryCanceled:
            if max_examined == MAX_EXAMINED_OF_SLOW:
                raise
            max_examined = MAX_EXAMINED_OF_SLOW
            continue
        head = current_head(namespace, head_rows, minimum)
        known = types.refresh(namespace.id, type_rows, known)
        if type_id not in known:
            raise missing_type(type_id)
        if known[type_id] is not compiled:
            continue  # planned for what the type no longer is
        if refusal is not None:
            raise refusal
        return head, max_examined, rows
    raise Unavailable("OVERLOADED", "the type is being changed all the time; retry")
