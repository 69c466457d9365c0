"""Takes what push subscriptions have to deliver, and sends it. Any replica may: ``deliveries`` keeps the order.

One pusher serves one webhook that is enabled, a worker like any other. It asks for more whenever it has room, so that a
receiver that is slow with one entity holds up no other; and looks at the webhook each time, so that a new endpoint or
secret counts for everything that is committed after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

import psycopg
from prometheus_client import Gauge
from strandline.stream.v1 import feed_pb2, subscription_pb2

from services.runtime.database import Database
from services.runtime.errors import Error, NotFound, Unavailable
from services.runtime.sealing import SealError
from services.stream import webhook_store as store
from services.stream.definitions import compiled
from services.stream.deliveries import Deliveries
from services.stream.webhook_messages import change_message
from services.stream.webhook_policy import Attempt, Outcome, pause_before_retry
from services.stream.webhook_sender import Sent
from services.stream.webhooks import Target, Webhooks
from services.stream.worker import Worker

logger = logging.getLogger(__name__)

MAX_REQUESTS: Final = 16
"""To one webhook at the same time."""
MAX_REQUESTS_OF_ALL: Final = 256
MAX_REQUESTS_OF_ONE: Final = 64
"""To the webhooks of one namespace: however slow its receivers are, there is room for others."""
MANY_FAILURES: Final = 5
"""After so many in a row a receiver is asked by one request at a time, until one is answered well."""
LOOK_SECONDS: Final = 1.0
"""How often to look for webhooks that nobody here serves yet."""
SOON_SECONDS: Final = 0.1
"""How often to look for room that others leave."""
REST_SECONDS: Final = 5.0
"""After something went wrong on our side."""
GRACE_SECONDS: Final = 1.0
"""For requests that are under way when the process stops. The others are repeated."""
_PUSHERS: Final = Gauge("strandline_stream_webhook_pushers", "Webhooks that this process serves.")


class Pushers:
    """The pushers of this process."""

    def __init__(self, database: Database, deliveries: Deliveries, webhooks: Webhooks) -> None:
        self._database = database
        self._deliveries = deliveries.for_webhooks()
        self._webhooks = webhooks
        self._room = Room(MAX_REQUESTS_OF_ALL, MAX_REQUESTS_OF_ONE)
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._woken: dict[tuple[str, str], asyncio.Event] = {}
        deliveries.on_wake(self._begin)

    async def run(self) -> None:
        """Serve every webhook until cancelled; then give requests a moment to end."""
        try:
            while True:
                try:
                    for namespace_id, subscription in await self._database.read_one(store.select_work()):
                        if (namespace_id, subscription) not in self._tasks:
                            self._begin(namespace_id, subscription)
                except psycopg.Error as failure:
                    logger.warning("webhooks cannot be listed: %s", failure)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, namespace_id: str, subscription: str) -> None:
        """Serve a webhook, if it is one; one that is served already is looked at again before that ends."""
        key = (namespace_id, subscription)
        self._woken.setdefault(key, asyncio.Event()).set()
        if key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._serve(namespace_id, subscription))

    async def _serve(self, namespace_id: str, subscription: str) -> None:
        key = (namespace_id, subscription)
        woken = self._woken[key]
        _PUSHERS.inc()
        try:
            while woken.is_set():
                woken.clear()
                if not await self._push(namespace_id, subscription):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(woken.wait(), REST_SECONDS)
                    woken.set()
        finally:
            _PUSHERS.dec()
            del self._tasks[key], self._woken[key]

    async def _push(self, namespace_id: str, subscription: str) -> bool:
        """Serve a webhook until it is disabled or gone; False: until something went wrong on our side."""
        try:
            target = await self._webhooks.target(namespace_id, subscription)
            if target is None or target.health.is_disabled:
                return True
            worker_of = self._deliveries.worker(target.namespace, subscription, share=MAX_REQUESTS)
            async with worker_of as worker:
                await _Pusher(self._webhooks, self._deliveries, self._room, worker, target).run()
            return True
        except NotFound:
            # The namespace was deleted: what is left of the subscription will be, too.
            return False
        except (Error, SealError, psycopg.Error) as failure:
            # No attempt is counted: the receiver has nothing to do with it.
            logger.warning("webhook %s in %s rests: %s", subscription, namespace_id, failure)
        except Exception:
            logger.exception("webhook %s in %s rests", subscription, namespace_id)
        return False


class Room:
    """For requests: so many of all webhooks, and of those of one namespace."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._free = most
        self._most_of_one = most_of_one
        self._reserved: Counter[str] = Counter()

    def reserve(self, namespace: str, wanted: int) -> int:
        """Keep room for requests of *namespace*: as many of those *wanted* as there is room for."""
        room = max(0, min(wanted, self._free, self._most_of_one - self._reserved[namespace]))
        self._change(namespace, room)
        return room

    def release(self, namespace: str, count: int) -> None:
        """They ended, or were not begun."""
        self._change(namespace, -count)

    def _change(self, namespace: str, count: int) -> None:
        self._free -= count
        self._reserved[namespace] += count
        if not self._reserved[namespace]:
            del self._reserved[namespace]


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of one delivery; None: it was not sent, because of a limit of ours."""

    delivery: subscription_pb2.Delivery
    sent: Sent | None


class _Pusher:
    """Serves one webhook. ``target`` is as it was last looked at; ``serving`` ends when it is disabled or gone."""

    def __init__(self, webhooks: Webhooks, deliveries: Deliveries, room: Room, worker: Worker, target: Target) -> None:
        self._webhooks = webhooks
        self._deliveries = deliveries
        self._room = room
        self._worker = worker
        self._target = target
        self._serving = True
        self._resting = False
        self._sending: set[asyncio.Task[_Result]] = set()

    async def run(self) -> None:
        """Until the webhook is disabled or gone, and nothing is under way any more."""
        looking: asyncio.Task[list[subscription_pb2.Delivery]] | None = None
        try:
            while self._serving or self._sending or looking:
                if looking is None and self._serving and len(self._sending) < self._limit:
                    looking = asyncio.create_task(self._look())
                waiting: set[asyncio.Task[object]] = {*self._sending, *([looking] if looking else [])}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if looking is not None and looking.done():
                    found, looking = looking.result(), None
                    self._begin(found)
                await self._settle({task for task in self._sending if task.done()})
        finally:
            if looking is not None:
                await self._leave(looking)
            await self._end()

    async def _leave(self, looking: asyncio.Task[list[subscription_pb2.Delivery]]) -> None:
        """Stop looking, and give back what was found: it is not sent any more."""
        self._serving = False
        if self._resting:
            looking.cancel()
        # A look that is cut short would leave behind what it was given, until its deadline and for one attempt.
        await asyncio.wait([looking])
        if not looking.cancelled() and looking.exception() is None:
            self._room.release(self._target.namespace.id, len(looking.result()))
            await self._worker.give_back(looking.result())

    @property
    def _limit(self) -> int:
        return MAX_REQUESTS if self._target.health.failures < MANY_FAILURES else 1

    async def _look(self) -> list[subscription_pb2.Delivery]:
        """What there is to send, with room reserved for it; nothing: only after waiting for a while."""
        namespace = self._target.namespace.id
        room = self._room.reserve(namespace, self._limit - len(self._sending))
        taken: list[subscription_pb2.Delivery] = []
        found: list[subscription_pb2.Delivery] = []
        try:
            if room:
                taken = await self._worker.take(room)
            # Afterwards: what was changed about the webhook before something was committed counts for that.
            target = await self._webhooks.target(namespace, self._target.subscription)
            if target is None or target.uid != self._target.uid or target.health.is_disabled or self._worker.hub.ended:
                self._serving = False
            else:
                self._target = target
                found = taken
        finally:
            # What is not sent uses up neither room nor an attempt.
            self._room.release(namespace, room - len(found))
            if not found:
                await self._worker.give_back(taken)
        if found or not self._serving:
            return found
        self._resting = True
        if room:
            await self._wait()
        else:
            await asyncio.sleep(SOON_SECONDS)
        self._resting = False
        return []

    async def _wait(self) -> None:
        """Until there may be something to send."""
        # Workers are woken once a second, whether there is something or not.
        while not (self._worker.should_look or self._worker.hub.ended):
            await self._worker.wait(LOOK_SECONDS)

    def _begin(self, found: Sequence[subscription_pb2.Delivery]) -> None:
        for delivery in found:
            task = asyncio.create_task(self._send(self._target, delivery))
            self._sending.add(task)
            task.add_done_callback(self._make_room)

    def _make_room(self, _: asyncio.Task[_Result]) -> None:
        self._room.release(self._target.namespace.id, 1)

    async def _send(self, target: Target, delivery: subscription_pb2.Delivery) -> _Result:
        unit = feed_pb2.Unit(
            revision=delivery.revision,
            commit_time=delivery.commit_time,
            actor=delivery.actor,
            request_id=delivery.request_id,
            changes=[delivery.change],
        )
        message = change_message(target.name, target.uid, target.namespace.epoch, unit, delivery.index)
        try:
            return _Result(delivery, await self._webhooks.send(target, message))
        except Unavailable:
            return _Result(delivery, None)

    async def _settle(self, ended: Collection[asyncio.Task[_Result]]) -> None:
        """Say what became of deliveries, and see how the webhook fares."""
        if not ended:
            return
        self._sending.difference_update(ended)
        results = [task.result() for task in ended]
        # No attempt: the receiver has nothing to do with it.
        await self._worker.give_back([result.delivery for result in results if result.sent is None])
        sent = [(result.delivery, result.sent) for result in results if result.sent is not None]
        if not sent:
            return
        delivered = [delivery.ack_id for delivery, one in sent if one.attempt.is_delivered]
        if delivered:
            await self._deliveries.ack(self._target.namespace, self._target.subscription, delivered)
        for delivery, one in sent:
            if not one.attempt.is_delivered:
                await self._fail(delivery, one.attempt)
        attempts = [(one, delivery.delivery_attempt) for delivery, one in sent]
        health, _ = await self._webhooks.record(self._target, attempts)
        self._target = replace(self._target, health=health)
        self._serving = self._serving and not health.is_disabled

    async def _fail(self, delivery: subscription_pb2.Delivery, attempt: Attempt) -> None:
        """Have it delivered again after a pause, or park it after the last attempt."""
        namespace, subscription = self._target.namespace, self._target.subscription
        policy = compiled(self._target.definition).policy
        if delivery.delivery_attempt >= policy.max_attempts:
            reason = f"HTTP {attempt.status}" if attempt.status else Outcome.Name(attempt.outcome)
            await self._deliveries.park(namespace, subscription, [delivery.ack_id], reason)
            return
        pause = pause_before_retry(
            delivery.delivery_attempt,
            timedelta(microseconds=policy.min_backoff),
            timedelta(microseconds=policy.max_backoff),
            attempt.retry_after,
            random.random(),
        )
        await self._deliveries.retry(namespace, subscription, [delivery.ack_id], pause)

    async def _end(self) -> None:
        """Give requests that are under way a moment: what they achieve shall count."""
        if not self._sending:
            return
        done, late = await asyncio.wait(self._sending, timeout=GRACE_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await self._settle({task for task in done if task.exception() is None})
