"""Removing everything of one life of a namespace, in steps that each take about a second.

The first step writes into the head that this life is dead. The head stays, so that a writer that comes late, however
late, is refused under the row lock that it needs anyway; the next life takes the same head over.
"""

from __future__ import annotations

import time
from typing import Final, LiteralString

from services.runtime import changelog
from services.runtime.database import Database, Statement, pipeline

STEP_SECONDS: Final = 1.0
ROWS_AT_ONCE: Final = 2000
_PURGING: Final = "~"
TABLES: Final[tuple[LiteralString, ...]] = (
    # First: what is due is looked for in all namespaces at once, and these rows would be in the way of the others'.
    "expirations",
    "mass_changes",
    "write_budgets",
    "usage",
    "retentions",
    "consumer_leases",
    "import_missing",
    "import_names",
    "import_rejections",
    "import_chunks",
    "imports",
    "operation_jobs",
    "operations",
    "index_jobs",
    "index_entries",
    "entities",
    "versions",
    "requests",
    "units",
    "type_versions",
    "types",
)
_DELETE: Final = (
    "DELETE FROM a_table WHERE ctid = ANY (ARRAY(SELECT ctid FROM a_table WHERE namespace = %s LIMIT %s)) RETURNING 1"
)


class Purger:
    """Removes lives of namespaces."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def purge(self, namespace: str, epoch: str) -> bool:
        """Remove some of what is left of the life *epoch*; whether nothing is. Another life is left alone."""
        deadline = time.monotonic() + STEP_SECONDS
        if not await self._take_out_of_use(namespace, epoch):
            return True
        for table in TABLES:
            delete = Statement(_DELETE.replace("a_table", table), (namespace, ROWS_AT_ONCE))
            while await self._in_transaction(namespace, delete):
                if time.monotonic() > deadline:
                    return False
        await self._in_transaction(
            namespace,
            Statement(
                "UPDATE heads SET epoch = '', revision = 0 WHERE namespace = %s AND epoch = %s",
                (namespace, _PURGING + epoch),
            ),
        )
        return True

    async def _take_out_of_use(self, namespace: str, epoch: str) -> bool:
        """Let nothing be written in this life any more; whether there may be something of it to remove."""
        await self._in_transaction(namespace, changelog.end_life(namespace, epoch, _PURGING + epoch))
        rows = await self._in_transaction(
            namespace,
            Statement("SELECT 1 FROM heads WHERE namespace = %s AND epoch = %s", (namespace, _PURGING + epoch)),
        )
        return bool(rows)

    async def _in_transaction(self, namespace: str, statement: Statement) -> list[tuple[object, ...]]:
        """Rows of *statement* under the head's lock: a step on an index that is under way comes before it."""
        async with self._database.connection() as connection:
            try:
                rows = await pipeline(
                    connection,
                    Statement("BEGIN"),
                    Statement(changelog.LOCK_HEAD, (namespace,)),
                    statement,
                    Statement("COMMIT"),
                )
            except BaseException:
                if not connection.closed:
                    await connection.rollback()
                raise
            return rows[2]
