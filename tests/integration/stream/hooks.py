"""A replica of the stream service that sends webhooks, and an editor who looks after them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from strandline.stream.v1 import (
    subscription_pb2,
    subscription_service_pb2,
    subscription_service_pb2_grpc,
    webhook_pb2,
    webhook_service_pb2,
    webhook_service_pb2_grpc,
)

from services.runtime.background import keep_running
from services.runtime.rpc import generic_handler
from services.stream import webhook_api
from services.stream.endpoints import Receiver
from services.stream.lookups import GetAddresses
from services.stream.webhook_api import WebhookHandlers
from services.stream.webhook_pushers import Pushers

from .receiver import Request
from .service import StreamService, access_token

EDITOR = "0192f0a0-0000-7000-8000-00000000000e"
PARENT = "namespaces/tides"
NAME = f"{PARENT}/subscriptions/hook"

Outcome = webhook_pb2.WebhookDelivery
# So that what fails is tried again at once, and tests need not wait for chance.
AT_ONCE = {"min_backoff": Duration(nanos=100_000_000), "max_backoff": Duration(nanos=100_000_000)}


class HookService(StreamService):
    """One replica. ``receivers`` are open to it."""

    def __init__(
        self,
        owner: Path,
        nats_url: str,
        address: Path,
        own_url: str,
        receivers: Sequence[Receiver],
        get_addresses: GetAddresses = socket.getaddrinfo,
    ) -> None:
        super().__init__(owner, nats_url, address, own_url=own_url, receivers=receivers, get_addresses=get_addresses)
        assert self.database is not None
        self._pushers = Pushers(self.database, self.deliveries, self.webhooks)
        handlers = WebhookHandlers(self.webhooks, self.deliveries, bytes(32))
        self._server.add_generic_rpc_handlers((generic_handler(webhook_api.SERVICE, handlers, self.gate.admit),))
        self._pushing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await super().start()
        self._pushing = asyncio.create_task(keep_running(self._pushers.run))

    async def pushers_were_told_to_stop(self) -> None:
        """Wait until each of them has heard of it."""
        while True:
            await asyncio.sleep(0.01)
            if all(task.cancelling() for task in self._pushers._tasks.values()):
                await asyncio.sleep(0.01)
                return

    async def stop_pushing(self) -> None:
        if self._pushing is not None:
            self._pushing.cancel()
            await asyncio.gather(self._pushing, return_exceptions=True)

    async def disconnect(self) -> None:
        await self.stop_pushing()
        await super().disconnect()

    @asynccontextmanager
    async def editor(self) -> AsyncIterator[Editor]:
        async with grpc.aio.insecure_channel(self.grpc_address) as channel:
            yield Editor(channel)


class Editor:
    """Somebody who may look after subscriptions of the namespace ``tides``."""

    def __init__(self, channel: grpc.aio.Channel, user: str = EDITOR) -> None:
        self._metadata = (("authorization", f"Bearer {access_token(user)}"),)
        self._subscriptions: Any = subscription_service_pb2_grpc.SubscriptionServiceStub(channel)
        self._webhooks: Any = webhook_service_pb2_grpc.WebhookServiceStub(channel)

    async def create(
        self,
        endpoint: str,
        *,
        id: str = "hook",
        after_revision: int = 0,
        push: dict[str, Any] | None = None,
        **fields: Any,
    ) -> subscription_pb2.Subscription:
        """Make a subscription that pushes to *endpoint*. What is in flight comes again late enough for any machine."""
        fields.setdefault("ack_deadline", timedelta(minutes=10))
        subscription = subscription_pb2.Subscription(
            start=subscription_pb2.Start(after_revision=after_revision),
            push=webhook_pb2.PushConfig(endpoint=endpoint, **(push or {})),
            **fields,
        )
        request = subscription_service_pb2.CreateSubscriptionRequest(
            parent=PARENT, subscription_id=id, subscription=subscription
        )
        answer = await self._subscriptions.CreateSubscription(request, metadata=self._metadata)
        made: subscription_pb2.Subscription = answer.subscription
        return made

    async def get(self) -> subscription_pb2.Subscription:
        request = subscription_service_pb2.GetSubscriptionRequest(name=NAME)
        answer = await self._subscriptions.GetSubscription(request, metadata=self._metadata)
        found: subscription_pb2.Subscription = answer.subscription
        return found

    async def get_until(
        self, condition: Callable[[subscription_pb2.Subscription], bool]
    ) -> subscription_pb2.Subscription:
        """The subscription, once *condition* holds."""
        async with asyncio.timeout(60):
            while True:
                if condition(found := await self.get()):
                    return found
                await asyncio.sleep(0.05)

    async def subscriptions(self, method: str, **fields: Any) -> Any:
        """Call *method* of ``SubscriptionService`` with a request of *fields*."""
        request = getattr(subscription_service_pb2, f"{method}Request")(**fields)
        return await getattr(self._subscriptions, method)(request, metadata=self._metadata)

    def stream(self) -> Any:
        """A stream of deliveries."""
        request = subscription_service_pb2.StreamingPullRequest(name=NAME)
        return self._subscriptions.StreamingPull(request, metadata=self._metadata)

    async def webhooks(self, method: str, **fields: Any) -> Any:
        """Call *method* of ``WebhookService`` with a request of *fields*."""
        request = getattr(webhook_service_pb2, f"{method}Request")(**fields)
        return await getattr(self._webhooks, method)(request, metadata=self._metadata)

    async def deliveries(self, count: int = 0) -> list[webhook_pb2.WebhookDelivery]:
        """What is remembered of attempts, the oldest first; once there are *count*.

        An attempt is remembered a moment after what came of it: a subscription may be idle before.
        """
        async with asyncio.timeout(60):
            while True:
                answer = await self.webhooks("ListWebhookDeliveries", parent=NAME, page_size=1000)
                if len(answer.deliveries) >= count:
                    return list(reversed(answer.deliveries))
                await asyncio.sleep(0.05)


def changes_of(requests: Iterable[Request]) -> list[tuple[str, int]]:
    """(entity, revision) of each request."""
    return [
        (change["entity"]["name"].rsplit("/", 1)[1], int(request.json["revision"]))
        for request in requests
        for unit in request.json["units"]["units"]
        for change in unit["changes"]
    ]


def is_idle(subscription: Any) -> bool:
    """Whether nothing is left to deliver."""
    done: bool = subscription.lag.revisions == 0 and subscription.in_flight_count == 0
    return done


def details(failure: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> str:
    metadata = dict(failure.value.trailing_metadata() or ())
    return str(metadata["grpc-status-details-bin"])
