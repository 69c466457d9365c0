"""What is parked in subscriptions: looking at it, and having it delivered again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from services.runtime.call import Namespace
from services.runtime.database import Database
from services.stream import subscription_store as store
from services.stream.checkpoint import MAX_OUTSTANDING, MAX_PARKED, Parked, Position
from services.stream.positions import head_of
from services.stream.subscription_store import no_such_subscription, of_this_life
from services.stream.upstream import Logs


class ParkedChanges:
    """What is parked in every subscription."""

    def __init__(self, database: Database, logs: Logs) -> None:
        self._database = database
        self._logs = logs

    async def list(
        self, namespace: Namespace, id: str, after: tuple[str, int, int], size: int
    ) -> tuple[Sequence[tuple[Parked, datetime]], bool]:
        """At most *size* parked changes and since when they are, after the place *after*; and whether more follow."""
        rows = await self._database.read(
            namespace.id, *store.select(namespace.id, id), store.select_parked(namespace.id, id, after, size + 1)
        )
        found = store.found(rows[:2])
        if found is None or found[0].epoch != namespace.epoch:
            raise no_such_subscription()
        parked = [
            (Parked(Position(revision, index), key, kind, attempts, reason), park_time)
            for key, revision, index, kind, attempts, reason, park_time in rows[2]
        ]
        return parked[:size], len(parked) > size

    async def replay(self, namespace: Namespace, id: str, keys: Collection[str]) -> tuple[int, int, int]:
        """Deliver what is parked of *keys* (none: of all) again, as much as there is room for, but of a key everything.

        Returns:
            How many changes are delivered again, are parked still, and were cut from the log and are given up.
        """
        head = await head_of(self._logs, namespace)
        async with store.locked(self._database, namespace.id, id) as found:
            held = of_this_life(found, namespace)
            group = held.progress.group
            if not keys:
                limit = MAX_PARKED + MAX_OUTSTANDING
                keys = [key for key, _ in await held.query(store.select_parked_keys(namespace.id, id, limit))]
            rows = await held.query(store.select_parked_of(namespace.id, id, keys))
            of_key: dict[str, list[Parked]] = {}
            for key, revision, index, kind, attempts, reason in rows:
                of_key.setdefault(key, []).append(Parked(Position(revision, index), key, kind, attempts, reason))
            taken: list[str] = []
            replayed = lost = 0
            for key, parked in of_key.items():
                left = [change for change in parked if change.position.revision > head.horizon]
                if replayed and len(group.outstanding) + len(left) > MAX_OUTSTANDING // 2:
                    break
                group.restore(left)
                group.parked -= len(parked) - len(left)
                replayed += len(left)
                lost += len(parked) - len(left)
                taken.append(key)
            held.statements.append(store.delete_parked_of(namespace.id, id, taken))
        return replayed, group.parked, lost
