"""Operations: work that goes on by itself, in steps that each are a transaction.

Where a step ended is in the database: after ``kill -9`` another process, or the next one, goes on from there. A step
locks the row of its operation, so that no two processes take the same one, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from services.entity import operation_store
from services.entity.operation_store import OperationKey, OperationKind
from services.runtime.database import Connection, Database, Statement, pipeline
from services.runtime.errors import Error
from services.runtime.wire import JsonObject

logger = logging.getLogger(__name__)

# How often to look for work that another process has left, and how long work rests that failed unexpectedly.
LOOK_SECONDS: Final = 10.0


class StepDone(NamedTuple):
    """What a step came to: how far the work is now, what was *examined* in it, whether nothing is left."""

    progress: JsonObject
    examined: int
    done: bool


class Worker(Protocol):
    """Does one kind of work."""

    async def take_step(
        self, connection: Connection, key: OperationKey, request: JsonObject, so_far: JsonObject
    ) -> StepDone:
        """Do some milliseconds of work; *so_far* is empty at first. Raises ``Error`` to end the operation with it."""
        ...


class OperationRunner:
    """Does the work in ``operation_jobs``."""

    def __init__(self, database: Database, workers: Mapping[OperationKind, Worker]) -> None:
        self._database = database
        self._workers = workers
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """There is new work."""
        self._wanted.set()

    async def run(self) -> None:
        """Work until cancelled; a step that is cut off is taken again."""
        while True:
            self._wanted.clear()
            try:
                await self.work()
            except Exception:
                # Nobody watches this task: whatever happened, work goes on.
                logger.exception("operations are tried again")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), LOOK_SECONDS)

    async def work(self) -> None:
        """Do all the work that can be done, one step of each operation in turn; what begins meanwhile joins in."""
        resting: set[OperationKey] = set()
        while True:
            (rows,) = await self._database.read("", operation_store.select_jobs())
            due = [key for row in rows if (key := OperationKey(*row)) not in resting]
            if not due:
                return
            for key in due:
                try:
                    if not await self._take_step(key):
                        resting.add(key)
                except Exception:
                    resting.add(key)
                    logger.exception("%s rests after a failure", key.name)
                await asyncio.sleep(0)

    async def _take_step(self, key: OperationKey) -> bool:
        """Whether something is left to do."""
        async with self._database.connection() as connection, connection.transaction():
            _, rows = await pipeline(
                connection,
                Statement("SELECT set_config('app.namespace', %s, true)", (key.namespace,)),
                operation_store.take_operation(key),
            )
            if not rows:
                return False
            operation = operation_store.operation_of(rows[0])
            worker = self._workers[OperationKind(operation.kind)]
            try:
                step = await worker.take_step(connection, key, operation.request, operation.progress)
            except Error as failure:
                await pipeline(connection, *operation_store.finish(key, failure.reason, failure.message))
                return False
            statements = [operation_store.advance(key, step.progress, operation.examined + step.examined)]
            if step.done:
                statements += operation_store.finish(key)
            await pipeline(connection, *statements)
            return not step.done
