"""What the service does by itself, come what may: telling others where ``system`` is, and sweeping up."""

from __future__ import annotations

import asyncio
import logging

import psycopg
from sqlalchemy.ext.asyncio import AsyncEngine

from services.runtime import changelog, request_ids
from services.runtime.access import HEARTBEAT_SECONDS, HEARTBEAT_SUBJECT
from services.runtime.bus import Bus, head_message
from services.runtime.database import Database
from services.user import store
from services.user.model import SYSTEM

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 600.0


async def beat(database: Database, bus: Bus) -> None:
    """Say the head of ``system`` on the bus twice a second, as the database has it: no database, no heartbeat."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    silent = False
    while True:
        try:
            for head in await changelog.read_heads(database, [SYSTEM]):
                await bus.publish(HEARTBEAT_SUBJECT, head_message(head).SerializeToString())
            silent = False
        except psycopg.OperationalError as failure:
            if not silent:
                logger.warning("no heartbeat, the database does not answer: %s", type(failure).__name__)
            silent = True
        due = max(due + HEARTBEAT_SECONDS, loop.time())
        await asyncio.sleep(due - loop.time())


async def sweep(database: Database, engine: AsyncEngine) -> None:
    """Every ten minutes remove what has expired: registrations, sessions, throttles, answered request ids."""
    while True:
        try:
            async with store.transaction(engine) as tx:
                await store.sweep(tx)
            await request_ids.forget_requests(database, SYSTEM)
        except psycopg.Error as failure:
            logger.warning("sweeping up failed: %s", type(failure).__name__)
        await asyncio.sleep(SWEEP_SECONDS)
