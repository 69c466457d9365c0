"""Work on indexes behind the writes: filling a new one, and removing the entries of one that is gone.

It goes in steps, each a transaction that holds the namespace's head for some milliseconds: no write comes between what
a step reads and what it inserts, so that no entry is lost or left over. Where a step ended is in the database: another
process, or the next one, goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, NamedTuple

import orjson

from services.entity import store, type_store
from services.entity.content import index_keys_or_none, reference_keys_or_none
from services.entity.index_keys import id_in, unique_keys
from services.entity.model import EntityKey, EntityType, Index, IndexState, Reference, entity_name
from services.runtime import changelog
from services.runtime.database import Connection, Database, Row, Statement, pipeline

logger = logging.getLogger(__name__)

ENTITIES_AT_ONCE: Final = 500
ENTRIES_AT_ONCE: Final = 5000
# How often to look for work that another process has left.
LOOK_SECONDS: Final = 10.0
# How long a job rests after its first failure, and at most.
REST_SECONDS: Final = 1.0
MAX_REST_SECONDS: Final = 300.0
MAX_NAMES: Final = 10


class _Rest(NamedTuple):
    """A job that failed is not looked at before *until*."""

    until: float
    seconds: float


class IndexBuilder:
    """Does the work in ``index_jobs``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wanted = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._resting: dict[tuple[str, int], _Rest] = {}

    def start(self) -> None:
        self._stopping = False
        self._task = asyncio.create_task(self._run())

    def wake(self) -> None:
        """There is new work."""
        self._wanted.set()

    async def stop(self) -> None:
        """Stop after the step that is being taken."""
        self._stopping = True
        self._wanted.set()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self._stopping:
            self._wanted.clear()
            try:
                await self.work()
            except Exception:
                # Nobody watches this task: whatever happened, work goes on.
                logger.exception("work on indexes is tried again")
            soonest = min((rest.until for rest in self._resting.values()), default=float("inf"))
            pause = min(LOOK_SECONDS, max(soonest - asyncio.get_running_loop().time(), 0.0))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), pause)

    async def work(self) -> None:
        """Do all the work there is, one step of each job in turn; a job that fails rests, longer each time."""
        loop = asyncio.get_running_loop()
        while not self._stopping:
            (jobs,) = await self._database.read("", type_store.select_jobs())
            self._resting = {job: rest for job, rest in self._resting.items() if job in jobs}
            due = [job for job in jobs if job not in self._resting or self._resting[job].until <= loop.time()]
            if not due:
                return
            for namespace, index_id in due:
                started = loop.time()
                await self._take_step(namespace, index_id)
                # Writers of the namespace get as much time as the step took.
                await asyncio.sleep(loop.time() - started)

    async def _take_step(self, namespace: str, index_id: int) -> None:
        job = (namespace, index_id)
        try:
            async with self._database.connection() as connection:
                await _Step(connection, namespace, index_id).take()
        except Exception:
            seconds = min(2 * self._resting[job].seconds, MAX_REST_SECONDS) if job in self._resting else REST_SECONDS
            self._resting[job] = _Rest(asyncio.get_running_loop().time() + seconds, seconds)
            logger.exception("index %d of %s waits %.0f s after a failure", index_id, namespace, seconds)
        else:
            self._resting.pop(job, None)


class _Step:
    """One step of one job, under the lock of its namespace."""

    def __init__(self, connection: Connection, namespace: str, index_id: int) -> None:
        self._connection = connection
        self._namespace = namespace
        self._index_id = index_id

    async def take(self) -> None:
        async with self._connection.transaction():
            _, jobs = await pipeline(
                self._connection,
                Statement(changelog.LOCK_HEAD, (self._namespace,)),
                type_store.select_job(self._namespace, self._index_id),
            )
            if not jobs:
                return
            type_id, removing, after_id = jobs[0]
            statements = await (self._remove() if removing else self._fill(type_id, after_id))
            if statements:
                await pipeline(self._connection, *statements)

    async def _remove(self) -> list[Statement]:
        (removed,) = await pipeline(
            self._connection, type_store.remove_entries(self._namespace, self._index_id, ENTRIES_AT_ONCE)
        )
        return [] if removed else [type_store.finish_job(self._namespace, self._index_id)]

    async def _fill(self, type_id: str, after_id: str) -> list[Statement]:
        type_rows, rows = await pipeline(
            self._connection,
            type_store.select_types(self._namespace, {type_id: 0}),
            type_store.select_unindexed(self._namespace, type_id, after_id, ENTITIES_AT_ONCE),
        )
        ended = not rows or len(rows) == rows[0][0] < ENTITIES_AT_ONCE
        rows = [row[1:] for row in rows]
        type_ = type_store.type_of(type_rows[0]) if type_rows else None
        for reference in type_.references if type_ else ():
            if type_ and reference.index_id == self._index_id:
                return await self._fill_reference(type_, reference, rows, ended=ended)
        index = next((index for index in type_.indexes if index.id == self._index_id), None) if type_ else None
        if type_ is None or index is None:
            return [type_store.finish_job(self._namespace, self._index_id)]
        entries, refused = _entries_of(index, rows)
        if refused:
            return self._fail(type_, index, "a value is beyond the limits of an index", refused)
        if index.spec.unique and (twice := await self._find_twice(index, rows)):
            return self._fail(type_, index, "entities have the same values", twice)
        statements = [store.fill_entries(self._namespace, sorted(entries))] if entries else []
        if not ended:
            return [*statements, self._advance(index.id, rows)]
        logger.info("an index of %s in %s is ready", type_id, self._namespace)
        return [
            *statements,
            self._put(type_, replace(index, state=IndexState.READY)),
            type_store.finish_job(self._namespace, index.id),
        ]

    async def _fill_reference(
        self, type_: EntityType, reference: Reference, rows: Sequence[Row], *, ended: bool
    ) -> list[Statement]:
        """As ``_fill``; fails when a live entity refers to what is not live."""
        entries: list[tuple[int, bool, bytes, str]] = []
        targets: dict[EntityKey, list[str]] = {}
        refused = []
        for entity_id, deleted, data in rows:
            keys = reference_keys_or_none(reference, orjson.loads(data))
            if keys is None and not deleted:
                refused.append(entity_id)
            for key in keys or ():
                entries.append((reference.index_id, deleted, key, entity_id))
                if not deleted:
                    targets.setdefault(EntityKey(reference.type, id_in(key)), []).append(entity_id)
        if targets:
            (live,) = await pipeline(self._connection, store.select_live(self._namespace, targets))
            for target in targets.keys() - {EntityKey(*row) for row in live}:
                refused += targets[target]
        if refused:
            names = self._names(type_, sorted(set(refused)))
            failure = f"entities refer to what is no live {reference.type}"
            failed = replace(reference, state=IndexState.FAILED, failure=failure, failed_names=names)
            return [
                self._put_reference(type_, failed),
                type_store.put_jobs(self._namespace, type_.id, [(reference.index_id, True)]),
            ]
        statements = [store.fill_entries(self._namespace, sorted(entries))] if entries else []
        if not ended:
            return [*statements, self._advance(reference.index_id, rows)]
        logger.info("references from %s to %s in %s are ready", type_.id, reference.type, self._namespace)
        return [
            *statements,
            self._put_reference(type_, replace(reference, state=IndexState.READY)),
            type_store.finish_job(self._namespace, reference.index_id),
        ]

    async def _find_twice(self, index: Index, rows: Sequence[Row]) -> list[str]:
        """Ids of live entities that share a unique key, among *rows* and what is indexed already."""
        holders: dict[bytes, set[str]] = defaultdict(set)
        for entity_id, deleted, data in rows:
            if not deleted:
                for key in unique_keys(index.spec, orjson.loads(data)):
                    holders[key].add(entity_id)
        if holders:
            entries = [(index.id, key) for key in holders]
            (found,) = await pipeline(self._connection, store.select_holders(self._namespace, entries))
            for _, key, entity_id in found:
                holders[key].add(entity_id)
        return sorted({entity_id for ids in holders.values() if len(ids) > 1 for entity_id in ids})

    def _fail(self, type_: EntityType, index: Index, failure: str, ids: Sequence[str]) -> list[Statement]:
        failed = replace(index, state=IndexState.FAILED, failure=failure, failed_names=self._names(type_, ids))
        return [self._put(type_, failed), type_store.put_jobs(self._namespace, type_.id, [(index.id, True)])]

    def _put(self, type_: EntityType, changed: Index) -> Statement:
        indexes = tuple(changed if index.id == changed.id else index for index in type_.indexes)
        return type_store.put_states(self._namespace, replace(type_, indexes=indexes))

    def _advance(self, index_id: int, rows: Sequence[Row]) -> Statement:
        live = sum(not deleted for _, deleted, _ in rows)
        return type_store.advance_job(self._namespace, index_id, rows[-1][0], live)

    def _put_reference(self, type_: EntityType, changed: Reference) -> Statement:
        references = tuple(changed if one.index_id == changed.index_id else one for one in type_.references)
        return type_store.put_states(self._namespace, replace(type_, references=references))

    def _names(self, type_: EntityType, ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(entity_name(self._namespace, EntityKey(type_.id, entity_id)) for entity_id in ids[:MAX_NAMES])


def _entries_of(index: Index, rows: Sequence[Row]) -> tuple[list[tuple[int, bool, bytes, str]], list[str]]:
    """The entries (index, deleted, key, id) of *rows*, and the ids of live entities whose values cannot be indexed."""
    entries: list[tuple[int, bool, bytes, str]] = []
    refused = []
    for entity_id, deleted, data in rows:
        keys = index_keys_or_none(index, orjson.loads(data))
        if keys is not None:
            entries += [(index.id, deleted, key, entity_id) for key in keys]
        elif not deleted:
            refused.append(entity_id)
    return entries, refused
