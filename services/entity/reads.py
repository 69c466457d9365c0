"""Reads by key. Gets that wait at the same time go to the database together, which costs less than a cache saves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.entity import store, usage_store
from services.entity.model import MAX_ANSWER_BYTES, MAX_STORED_BYTES, EntityKey
from services.entity.usage_store import Budget
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head, head_of, select_head
from services.runtime.database import Database, Row
from services.runtime.errors import Unavailable

MAX_TOGETHER: Final = 500
MAX_BYTES_TOGETHER: Final = 16 * 2**20
FEW: Final = MAX_BYTES_TOGETHER // MAX_STORED_BYTES
"""So many can go together however large they are."""
CROWD: Final = 4
"""So many at once say that more are on their way: the next ones wait for company. Fewer callers never wait."""
GATHER_SECONDS: Final = 0.002


@dataclass(frozen=True, slots=True)
class Batch:
    """Live entities of one type at one revision. ``messages`` holds None for what did not fit."""

    head: Head
    messages: Mapping[str, bytes | None]


@dataclass(slots=True)
class _Lane:
    waiting: list[tuple[EntityKey, asyncio.Future[tuple[Head, bytes | None]]]] = field(default_factory=list)
    worker: asyncio.Task[None] | None = None


class Reader:
    """Reads entities by key."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lanes: dict[tuple[str, str], _Lane] = {}

    async def get(self, namespace: Namespace, key: EntityKey) -> tuple[Head, bytes | None]:
        """The serialized entity, deleted or not, and the head it was read at; None if there never was one."""
        answer: asyncio.Future[tuple[Head, bytes | None]] = asyncio.get_running_loop().create_future()
        life = (namespace.id, namespace.epoch)
        lane = self._lanes.get(life)
        if lane is None:
            lane = self._lanes[life] = _Lane()
        lane.waiting.append((key, answer))
        if lane.worker is None:
            lane.worker = asyncio.create_task(self._work(namespace, lane))
        return await answer

    async def _work(self, namespace: Namespace, lane: _Lane) -> None:
        crowd = 0.0
        try:
            while lane.waiting:
                together = [item for item in lane.waiting[:MAX_TOGETHER] if not item[1].done()]
                del lane.waiting[:MAX_TOGETHER]
                if together:
                    await self._read_together(namespace, together)
                crowd = max(len(together), crowd / 2)
                if crowd >= CROWD:
                    # A statement costs as much as five entities: 64 callers get answers sooner when it waits for more.
                    await asyncio.sleep(GATHER_SECONDS)
        finally:
            lane.worker = None
            if not lane.waiting:
                self._lanes.pop((namespace.id, namespace.epoch), None)

    async def _read_together(
        self, namespace: Namespace, together: Sequence[tuple[EntityKey, asyncio.Future[tuple[Head, bytes | None]]]]
    ) -> None:
        keys = list(dict.fromkeys(key for key, _ in together))
        try:
            rows = await self._database.read_one(store.read_entities(namespace.id, keys, MAX_BYTES_TOGETHER))
            head = current_head(namespace, [row[:3] for row in rows[:1]])
            messages = {keys[row[3] - 1]: row[4] for row in rows}
            later = {keys[row[3] - 1] for row in rows if row[5]} if len(keys) > FEW else ()
        except Exception as failure:
            for _, answer in together:
                if not answer.done():
                    answer.set_exception(failure)
            return
        for key, answer in together:
            if not answer.done() and key not in later:
                answer.set_result((head, messages.get(key)))
        if later:
            large = [item for item in together if item[0] in later]
            for begin in range(0, len(large), FEW):
                await self._read_together(namespace, large[begin : begin + FEW])

    async def head(self, namespace: Namespace) -> Head:
        """Where the namespace's log is."""
        (rows,) = await self._database.read(namespace.id, select_head(namespace.id))
        return current_head(namespace, rows)

    async def usage(self, namespace: Namespace, minimum: MinRevision) -> tuple[Head, list[Row], Budget | None]:
        """The head, rows (type, live entities, bytes), '' for the namespace as a whole, and the write budget."""
        head_rows, rows, budget_rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            usage_store.select_usage(namespace.id),
            usage_store.select_budget(namespace.id),
        )
        return current_head(namespace, head_rows, minimum), rows, usage_store.budget_of(budget_rows)

    async def batch(self, namespace: Namespace, type_id: str, ids: Sequence[str]) -> Batch:
        """The live ones of *ids*, up to 3 MiB."""
        head_rows, rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            store.select_batch(namespace.id, type_id, ids, MAX_ANSWER_BYTES),
        )
        return Batch(current_head(namespace, head_rows), dict(rows))


def current_head(namespace: Namespace, rows: Sequence[Row], minimum: MinRevision | None = None) -> Head:
    """The head in *rows* of ``select_head``, if it is of this life of the namespace and not older than *minimum*.

    Raises:
        FailedPrecondition: FUTURE_REVISION or EPOCH_CHANGED.
        Unavailable: an earlier life is still being removed.
    """
    head = head_of(namespace.id, rows, namespace.epoch)
    if head.epoch != namespace.epoch:
        raise Unavailable("OVERLOADED", "the namespace is being made anew; retry")
    if minimum is not None:
        minimum.check(head.revision, head.epoch)
    return head
