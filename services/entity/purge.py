"""Removing everything of one life of a namespace, in steps that each take about a second.

The first step takes the head out of use: writers that still believe in the namespace are refused from then on. The
head itself goes last, and not before every process must have heard that the namespace is gone; otherwise a late writer
would begin a log for a life that is over.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final, LiteralString

from services.runtime import changelog
from services.runtime.database import Database, Statement, pipeline

STEP_SECONDS: Final = 1.0
ROWS_AT_ONCE: Final = 2000
# Access copies are refused for writes when they are older than 1.5 s.
GRACE: Final = timedelta(seconds=3)
_PURGING: Final = "~"
_TABLES: Final[tuple[LiteralString, ...]] = (
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
        for table in _TABLES:
            delete = Statement(_DELETE.replace("a_table", table), (namespace, ROWS_AT_ONCE))
            while await self._in_transaction(namespace, delete):
                if time.monotonic() > deadline:
                    return False
        return bool(
            await self._in_transaction(
                namespace,
                Statement(
                    "DELETE FROM heads WHERE namespace = %s AND epoch = %s AND commit_time < now() - %s RETURNING 1",
                    (namespace, _PURGING + epoch, GRACE),
                ),
            )
        )

    async def _take_out_of_use(self, namespace: str, epoch: str) -> bool:
        """Mark the head, also one that was never made; False if the namespace is in another life."""
        await self._in_transaction(namespace, Statement(changelog.CREATE_HEAD, (namespace, epoch)))
        marked = await self._in_transaction(
            namespace,
            Statement(
                """UPDATE heads SET epoch = %s, commit_time = now() WHERE namespace = %s AND epoch = %s RETURNING 1""",
                (_PURGING + epoch, namespace, epoch),
            ),
        )
        if marked:
            return True
        rows = await self._in_transaction(
            namespace,
            Statement("SELECT 1 FROM heads WHERE namespace = %s AND epoch = %s", (namespace, _PURGING + epoch)),
        )
        return bool(rows)

    async def _in_transaction(self, namespace: str, statement: Statement) -> list[tuple[object, ...]]:
        async with self._database.connection() as connection:
            try:
                rows = await pipeline(
                    connection,
                    Statement("BEGIN"),
                    Statement("SELECT set_config('app.namespace', %s, true)", (namespace,)),
                    statement,
                    Statement("COMMIT"),
                )
            except BaseException:
                if not connection.closed:
                    await connection.rollback()
                raise
            return rows[2]
