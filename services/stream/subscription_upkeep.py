"""What subscriptions need without anybody asking: their leases on the log, their lag as metrics, and to end.

Replicas share the work: whoever claims a subscription looks after it this minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

import psycopg
from prometheus_client import Gauge

from services.runtime.call import Namespace
from services.runtime.database import Database
from services.runtime.errors import Error, OutOfRange
from services.stream import request_store
from services.stream import subscription_store as store
from services.stream.subscription_leases import hold, needed_after
from services.stream.subscription_store import Definition
from services.stream.subscriptions import Subscriptions
from services.stream.upstream import Logs

logger = logging.getLogger(__name__)

_LABELS: Final = ("namespace", "subscription")
LAG_REVISIONS = Gauge("strandline_stream_subscription_lag_revisions", "Revisions after the checkpoint.", _LABELS)
LAG_SECONDS = Gauge(
    "strandline_stream_subscription_lag_seconds", "Age of the oldest revision after the checkpoint.", _LABELS
)

PERIOD_SECONDS: Final = 60.0
"""How often a subscription is looked after."""
PAUSE_SECONDS: Final = 5.0
"""How long to wait when little was due."""
AT_ONCE: Final = 100
"""Subscriptions that one look finds."""
FORGET_SECONDS: Final = 3600.0
"""How often to look whether requests can be forgotten, where there are any."""
RENEW_SECONDS: Final = 3600.0
"""How often a lease that says the same as before is renewed; it lasts a week."""
SETTLED: Final = timedelta(seconds=60)
"""What the copy of access rules does not know may have been made so short a time ago."""


class Lives(Protocol):
    """Which namespaces live (``access.AccessCopy``)."""

    @property
    def fresh(self) -> bool: ...

    def epoch_of(self, namespace_id: str) -> str | None: ...


class SubscriptionUpkeep:
    """Looks after the subscriptions of all namespaces, together with the other replicas."""

    def __init__(self, database: Database, subscriptions: Subscriptions, logs: Logs, lives: Lives) -> None:
        self._database = database
        self._subscriptions = subscriptions
        self._logs = logs
        self._lives = lives
        self._told: dict[tuple[str, str], float] = {}  # whose lag is among the metrics, and since when
        # By uid: what its lease says, the acknowledged revision and the version of its filter, and since when.
        self._leased: dict[str, tuple[tuple[int, int], float]] = {}

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            try:
                worked = await self.step()
            except psycopg.OperationalError as failure:
                logger.warning("subscriptions are looked after later: %s", type(failure).__name__)
                worked = 0
            if worked < AT_ONCE:
                await asyncio.sleep(PAUSE_SECONDS)

    async def step(self) -> int:
        """Look after what is due; how many were."""
        due = await self._database.read_one(store.select_due(AT_ONCE))
        for namespace, id in due:
            try:
                await self._look_after(namespace, id)
            except Error as failure:
                logger.warning("subscription %s/%s is looked after later: %s", namespace, id, failure)
        self._forget_lag()
        return len(due)

    async def _look_after(self, namespace_id: str, id: str) -> None:
        if id == request_store.REQUESTS_JOB:
            await self._forget_requests(namespace_id)
            return
        claim = store.claim(namespace_id, id, PERIOD_SECONDS)
        (claimed,) = await store.in_transaction(self._database, namespace_id, claim)
        found = store.found(await self._database.read(namespace_id, *store.select(namespace_id, id)))
        if not claimed or found is None:
            return
        definition, progress = found
        if self._is_dead(namespace_id, definition):
            await store.in_transaction(self._database, namespace_id, *store.delete(namespace_id, id, definition.uid))
            self._leased.pop(definition.uid, None)
            logger.info("subscription %s/%s ended with its namespace", namespace_id, id)
            return
        namespace = Namespace(namespace_id, definition.epoch)
        await self._renew(namespace, id)
        status = await self._subscriptions.status(namespace, definition, progress)
        self._told[namespace_id, id] = time.monotonic()
        LAG_REVISIONS.labels(namespace_id, id).set(max(0, status.head - progress.group.checkpoint))
        LAG_SECONDS.labels(namespace_id, id).set(status.age.total_seconds())

    async def _forget_requests(self, namespace_id: str) -> None:
        await store.in_transaction(
            self._database,
            namespace_id,
            store.claim(namespace_id, request_store.REQUESTS_JOB, FORGET_SECONDS),
            request_store.forget(namespace_id),
            request_store.forget_upkeep(namespace_id),
        )

    def _is_dead(self, namespace_id: str, definition: Definition) -> bool:
        is_settled = datetime.now(UTC) - definition.create_time > SETTLED
        return is_settled and self._lives.fresh and self._lives.epoch_of(namespace_id) != definition.epoch

    async def _renew(self, namespace: Namespace, id: str) -> None:
        # Under the lock: a seek must not move the subscription back while the log behind it is let go of.
        async with store.locked(self._database, namespace.id, id) as held:
            if held is None or held.definition.epoch != namespace.epoch or held.progress.state == store.COMPACTED:
                return
            acknowledged = await needed_after(held, namespace)
            says, since = self._leased.get(held.definition.uid, (None, 0.0))
            # What the lease says of the filter changes with the version.
            due = acknowledged, held.definition.version
            if says == due and time.monotonic() - since < RENEW_SECONDS:
                return
            try:
                checkpoint = held.progress.group.checkpoint
                await hold(self._logs, namespace, held.definition, acknowledged, checkpoint)
            except OutOfRange:
                held.progress.state = store.COMPACTED
                logger.warning("subscription %s/%s has lost its place", namespace.id, id)
        self._leased[held.definition.uid] = due, time.monotonic()

    def _forget_lag(self) -> None:
        """Take what another replica looks after by now, or what is gone, from the metrics."""
        now = time.monotonic()
        for labels, since in list(self._told.items()):
            if now - since > 3 * PERIOD_SECONDS:
                del self._told[labels]
                LAG_REVISIONS.remove(*labels)
                LAG_SECONDS.remove(*labels)
