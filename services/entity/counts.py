"""Counts: how many entities of one range match, exactly while no more rows have to be examined than a page may."""

from __future__ import annotations

from dataclasses import dataclass

from services.entity.catalog import Catalog
from services.entity.content import CompiledType
from services.entity.examination import Examined, examined_statement
from services.entity.lists import checked_filter, plan_ordered, ready_indexes
from services.entity.planned_reads import read_planned
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head
from services.runtime.database import Database, Statement


@dataclass(frozen=True, slots=True)
class Count:
    """How many entities match; with *at_least* there may be more."""

    head: Head
    count: int
    at_least: bool


class Counter:
    """Counts the entities of a type."""

    def __init__(self, database: Database, types: Catalog) -> None:
        self._database = database
        self._types = types

    async def count(
        self, namespace: Namespace, type_id: str, filter: str, minimum: MinRevision, *, show_deleted: bool
    ) -> Count:
        """Count what a list with the same arguments would give.

        Raises:
            NotFound: there is no such type.
            InvalidArgument: the filter.
            FailedPrecondition: INDEX_REQUIRED, as for the list; or a minimum that does not exist.
        """

        async def plan(compiled: CompiledType, max_examined: int) -> list[Statement]:
            walk = plan_ordered(checked_filter(filter, compiled), "", compiled, ready_indexes(compiled))
            if walk.empty:
                return []
            # One more than may be examined says whether there is more.
            range_ = Examined(namespace.id, type_id, walk, max_examined + 1, show_deleted=show_deleted)
            return [examined_statement(range_)]

        head, limit, rows = await read_planned(self._database, self._types, namespace, type_id, minimum, plan)
        examined, matched = rows[0][0] if rows else (0, 0)
        return Count(head, matched, at_least=examined > limit)
