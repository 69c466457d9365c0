"""What a process does now and then: forgetting answers that are too old to be asked for again."""

from __future__ import annotations

import asyncio
import logging

from services.entity import usage_store
from services.runtime import changelog
from services.runtime.database import Database, Statement, pipeline

logger = logging.getLogger(__name__)

EVERY_SECONDS = 600.0


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
    """Forget old requests, one namespace after the other; one that fails does not keep the others from it."""
    (rows,) = await database.read("", Statement("SELECT namespace FROM heads ORDER BY namespace"))
    failed: dict[str, Exception] = {}
    for (namespace,) in rows:
        try:
            await changelog.forget_requests(database, namespace)
            await _forget_mass_changes(database, namespace)
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


async def _forget_mass_changes(database: Database, namespace: str) -> None:
    async with database.connection() as connection, connection.transaction():
        await pipeline(
            connection,
            Statement("SELECT set_config('app.namespace', %s, true)", (namespace,)),
            usage_store.forget_mass_changes(namespace),
        )
