"""Completing the deletion of namespaces: a job that any process can take up at any point, and do twice.

A namespace that is being deleted is a row with ``deleting``; that row is the job. Its steps: the entity service removes
the data, the memberships are taken away, the row and its record go. The row goes last, so the id is free only then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import Enum, auto

import psycopg

from services.runtime.database import Database
from services.runtime.errors import Error
from services.user import ledger_sql as sql
from services.user.ledger import SystemLog
from services.user.model import SERVICE_ACTOR, SYSTEM
from services.user.namespace_writes import FinishDeletion, RemoveMembers
from services.user.upstream import PurgeError

logger = logging.getLogger(__name__)

# How often to look for deletions that another process began and did not complete.
LOOK_SECONDS = 5.0
MEMBERS_PER_UNIT = 500
AT_ONCE = 4
# A purge works in steps of about a second each; between two of them others get their turn.
_PURGE_PAUSE = 0.2
_MAX_PAUSE = 10.0


class Step(Enum):
    """How far a deletion is."""

    PURGING = auto()
    REMOVING_MEMBERS = auto()
    DONE = auto()


class Deletions:
    """Completes deletions in the background, for as long as it runs."""

    def __init__(self, database: Database, system: SystemLog, purge: Callable[[str, str], Awaitable[bool]]) -> None:
        """*purge* removes a part of the data of (namespace, epoch) and says whether nothing is left."""
        self._database = database
        self._system = system
        self._purge = purge
        self._woken = asyncio.Event()
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    def wake(self) -> None:
        """Look now: a deletion has begun."""
        self._woken.set()

    async def run(self) -> None:
        """Complete every deletion there is and will be."""
        try:
            while True:
                await self._start_all()
                try:
                    await asyncio.wait_for(self._woken.wait(), LOOK_SECONDS)
                except TimeoutError:
                    continue
                finally:
                    self._woken.clear()
        finally:
            for task in self._running.values():
                task.cancel()

    async def _start_all(self) -> None:
        try:
            (rows,) = await self._database.read(SYSTEM, sql.select_deleting())
        except psycopg.OperationalError as failure:
            logger.warning("deletions wait for the database: %s", type(failure).__name__)
            return
        for namespace_id, epoch in rows:
            key = (namespace_id, epoch)
            if key not in self._running:
                self._running[key] = asyncio.create_task(self._complete_one(namespace_id, epoch))

    async def _complete_one(self, namespace_id: str, epoch: str) -> None:
        try:
            await self._complete(namespace_id, epoch)
        except Exception:
            logger.exception("deleting %s failed; it is tried again", namespace_id)
        finally:
            self._running.pop((namespace_id, epoch), None)

    async def _complete(self, namespace_id: str, epoch: str) -> None:
        pause = _PURGE_PAUSE
        while True:
            try:
                async with self._slots:
                    step = await self._step(namespace_id, epoch)
            except (PurgeError, Error, psycopg.OperationalError) as failure:
                logger.warning("deleting %s waits: %s: %s", namespace_id, type(failure).__name__, failure)
                pause = min(pause * 2, _MAX_PAUSE)
            else:
                if step is Step.DONE:
                    logger.info("namespace %s was removed", namespace_id)
                    return
                pause = _PURGE_PAUSE if step is Step.PURGING else 0.0
            await asyncio.sleep(pause)

    async def _step(self, namespace_id: str, epoch: str) -> Step:
        """Do a bounded part of the work."""
        if not await self._purge(namespace_id, epoch):
            return Step.PURGING
        _, rows = await self._database.read(
            SYSTEM, sql.act_for([namespace_id]), sql.list_members(namespace_id, "", MEMBERS_PER_UNIT)
        )
        if rows:
            await self._system.commit(
                RemoveMembers(
                    actor=SERVICE_ACTOR,
                    method="RemoveMembers",
                    request_id="",
                    namespace_id=namespace_id,
                    epoch=epoch,
                    user_ids=[sql.member_of(row).user_id for row in rows],
                )
            )
            return Step.REMOVING_MEMBERS
        await self._system.commit(
            FinishDeletion(
                actor=SERVICE_ACTOR,
                method="FinishDeletion",
                request_id="",
                namespace_id=namespace_id,
                epoch=epoch,
            )
        )
        return Step.DONE
