"""What a process does now and then: forgetting answers that are too old to be asked for again."""

from __future__ import annotations

import asyncio
import logging

import psycopg

from services.runtime import changelog
from services.runtime.database import Database, Statement

logger = logging.getLogger(__name__)

EVERY_SECONDS = 600.0


async def forget(database: Database) -> None:
    """Forget old requests, one namespace after the other, for ever."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        try:
            (rows,) = await database.read("", Statement("SELECT namespace FROM heads ORDER BY namespace"))
            for (namespace,) in rows:
                await changelog.forget_requests(database, namespace)
        except (psycopg.Error, OSError) as failure:
            logger.warning("old requests are kept a little longer: %s", failure)
