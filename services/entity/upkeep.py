"""What a process does now and then: cutting logs, and forgetting what is too old to be asked for again."""

from __future__ import annotations

import asyncio
import logging

from services.entity import import_store, operation_store, retention_store, usage_store
from services.entity.compaction import compact
from services.entity.import_store import ImportKey
from services.runtime import request_ids
from services.runtime.call import Namespace
from services.runtime.database import Database, Statement

logger = logging.getLogger(__name__)

EVERY_SECONDS = 600.0
ROWS_AT_ONCE = 2000


async def forget(database: Database) -> None:
    """Forget old requests, again and again."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        try:
            await forget_everywhere(database)
        except Exception:
            # Nobody watches this task: whatever happened, the next turn comes.
            logger.exception("old requests are kept a little longer")


async def forget_everywhere(database: Database) -> None:
    """Cut logs and forget, one namespace after the other; one that fails does not keep the others from it."""
    (rows,) = await database.read("", Statement("SELECT namespace, epoch FROM heads ORDER BY namespace"))
    failed: dict[str, Exception] = {}
    for namespace, epoch in rows:
        try:
            await request_ids.forget_requests(database, namespace)
            await database.write(
                namespace,
                retention_store.forget_leases(namespace),
                usage_store.forget_mass_changes(namespace),
                operation_store.forget_operations(namespace),
            )
            await forget_imports(database, namespace)
            if epoch.isalnum():  # not one that is being purged, or has no life
                await compact(database, Namespace(namespace, epoch))
        except Exception as failure:
            failed[namespace] = failure
    if failed:
        # One line, because a database that went away fails them all.
        first, cause = next(iter(failed.items()))
        logger.warning(
            "old requests of %d namespaces are kept a little longer, those of %s because of %s: %s",
            len(failed),
            first,
            type(cause).__name__,
            cause,
        )


async def forget_imports(database: Database, namespace: str) -> None:
    """Remove what is known of imports that nothing was heard of for a week, in transactions of some milliseconds."""
    # Marked before the first of its parts goes: without the names that its rows had, it would delete everything.
    (rows,) = await database.write(namespace, import_store.forget_old(namespace, ROWS_AT_ONCE))
    for epoch, import_id in rows:
        key = ImportKey(namespace, epoch, import_id)
        for statement in (*import_store.forget_parts(key, ROWS_AT_ONCE), import_store.forget_import(key)):
            removed = ROWS_AT_ONCE
            while removed == ROWS_AT_ONCE:
                (gone,) = await database.write(namespace, statement)
                removed = len(gone)
