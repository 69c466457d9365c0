"""Handing out what subscriptions select, to workers of any replica, and taking in what became of it.

No replica owns a subscription. Each step is one transaction under the row lock of the subscription: read the group,
let ``checkpoint.Group`` decide, write it back. So nothing is remembered by a process that another would need, and one
that is killed takes nothing with it: what it had in flight is handed out again when its deadline has passed.

To whoever delivers (the API's pulls, webhooks)::

    async with deliveries.worker(namespace, "orders") as worker:
        for delivery in await worker.take(100):     # empty: nothing right now
            ...
        await worker.wait(5)                        # until there may be more

    await deliveries.ack(namespace, "orders", ack_ids)            # and retry, park, extend

Each of the latter returns the ack ids that came too late. All raise ``NotFound`` when there is no such subscription in
this life of the namespace, ``FailedPrecondition`` (SUBSCRIPTION_PUSHES) when it is a webhook, but not those of
``deliveries.for_webhooks()``, ``Unavailable`` when the database or the log does not answer; taking and waiting also
``OutOfRange`` (COMPACTED) when something that is to be delivered was cut from the log, until ``Seek``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from copy import copy
from datetime import timedelta

from prometheus_client import Counter

from services.runtime.call import Namespace
from services.runtime.database import Database
from services.stream import subscription_store as store
from services.stream.checkpoint import AckId
from services.stream.definitions import compiled
from services.stream.hubs import Hubs
from services.stream.subscription_store import Locked, of_this_life
from services.stream.upstream import Logs
from services.stream.worker import PARKED, Shared, Worker, check_who_takes, parse_ack_id

FINISHED = Counter("strandline_stream_subscription_finished", "Changes that workers finished or skipped.")


class Deliveries:
    """Deliveries of every subscription."""

    def __init__(self, database: Database, hubs: Hubs, logs: Logs) -> None:
        self._database = database
        self._hubs = hubs
        self._logs = logs
        self._pushes = False
        self._shared: dict[tuple[str, str, str], Shared] = {}
        self._on_wake: list[Callable[[str, str], None]] = []

    def for_webhooks(self) -> Deliveries:
        """The same deliveries, for who sends them to the receivers of webhooks."""
        pushing = copy(self)  # what workers share, and who hears of a wake, is one with these
        pushing._pushes = True
        return pushing

    @asynccontextmanager
    async def worker(self, namespace: Namespace, id: str, *, share: int = 0) -> AsyncIterator[Worker]:
        """One worker, who has at most *share* deliveries at a time (0: as many as the subscription allows)."""
        hub, _ = await self._hubs.attach(namespace)
        key = (namespace.id, namespace.epoch, id)
        shared = self._shared.setdefault(key, Shared())
        shared.workers += 1
        try:
            yield Worker(self._database, self._logs, hub, namespace, id, shared, share, pushes=self._pushes)
        finally:
            self._hubs.detach(hub)
            shared.workers -= 1
            if not shared.workers:
                self._shared.pop(key, None)

    def wake(self, namespace: Namespace, id: str) -> None:
        """Let whoever delivers it in this process look at once: its owner has changed something about it."""
        if (shared := self._shared.get((namespace.id, namespace.epoch, id))) is not None:
            shared.tell()
        for hear in self._on_wake:
            hear(namespace.id, id)

    def on_wake(self, hear: Callable[[str, str], None]) -> None:
        """Call *hear* with each subscription, by namespace and id, that is woken."""
        self._on_wake.append(hear)

    async def ack(self, namespace: Namespace, id: str, ack_ids: Sequence[str]) -> list[str]:
        """They are done."""

        def finish(held: Locked, ack_id: AckId) -> bool:
            return held.progress.group.finish(ack_id)

        stale = await self._settle(namespace, id, ack_ids, finish)
        FINISHED.inc(len(ack_ids) - len(stale))
        return stale

    async def retry(
        self, namespace: Namespace, id: str, ack_ids: Sequence[str], pause: timedelta | None = None
    ) -> list[str]:
        """They failed. *pause*: before the next attempt, unless the last was made; None: as the policy has it."""

        def retry(held: Locked, ack_id: AckId) -> bool:
            group, policy = held.progress.group, compiled(held.definition.definition).policy
            item = group.outstanding.get(ack_id.position)
            backoff = policy.backoff(item.attempts) if item else 0
            wanted = backoff if pause is None else pause // timedelta(microseconds=1)
            return group.retry(ack_id, held.now + wanted, policy)

        return await self._settle(namespace, id, ack_ids, retry)

    async def park(self, namespace: Namespace, id: str, ack_ids: Sequence[str], reason: str) -> list[str]:
        """Put them aside, *reason* says why."""

        def park(held: Locked, ack_id: AckId) -> bool:
            return held.progress.group.park(ack_id, reason)

        return await self._settle(namespace, id, ack_ids, park)

    async def extend(self, namespace: Namespace, id: str, ack_ids: Sequence[str], time: timedelta) -> list[str]:
        """Let the worker have them for so much *time* from now on."""

        def extend(held: Locked, ack_id: AckId) -> bool:
            return held.progress.group.extend(ack_id, held.now + time // timedelta(microseconds=1))

        return await self._settle(namespace, id, ack_ids, extend)

    async def _settle(
        self, namespace: Namespace, id: str, ack_ids: Sequence[str], settle: Callable[[Locked, AckId], bool]
    ) -> list[str]:
        parsed = [parse_ack_id(ack_id, index) for index, ack_id in enumerate(ack_ids)]
        async with store.locked(self._database, namespace.id, id) as found:
            held = of_this_life(found, namespace)
            check_who_takes(held, pushes=self._pushes)
            stale = [text for text, ack_id in zip(ack_ids, parsed, strict=True) if not settle(held, ack_id)]
            PARKED.inc(len(held.progress.group.newly_parked))
        if (shared := self._shared.get((namespace.id, namespace.epoch, id))) is not None:
            shared.tell()
        return stale
