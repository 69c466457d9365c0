"""Callers of ``SubscriptionService``, and what they make of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from strandline.stream.v1 import feed_pb2, subscription_pb2, subscription_service_pb2_grpc
from strandline.stream.v1 import subscription_service_pb2 as pb

from .owner import SYSTEM, TIDES, Owner
from .service import ANN, StreamService, access_token, reason

BOB = "0192f0a0-0000-7000-8000-0000000000b0"
NAME = "namespaces/tides/subscriptions/orders"
Change = feed_pb2.Change
State = subscription_pb2.Subscription
Delivery = subscription_pb2.Delivery
AFTER_ALL = {"after_revision": 0}
# Nothing comes back by itself while a test looks.
LONG = Duration(seconds=600)
FORGED = {"page_token": "AAAA"}


class Client:
    """A caller of ``SubscriptionService`` of one replica."""

    def __init__(self, channel: grpc.aio.Channel, user: str = ANN) -> None:
        self._stub: subscription_service_pb2_grpc.SubscriptionServiceAsyncStub = (
            subscription_service_pb2_grpc.SubscriptionServiceStub(channel)
        )
        self._metadata = (("authorization", f"Bearer {access_token(user)}"),)

    async def create(
        self, start: dict[str, Any] | None = None, id: str = "orders", **fields: Any
    ) -> subscription_pb2.Subscription:
        fields.setdefault("ack_deadline", LONG)
        fields.setdefault("retry_policy", subscription_pb2.RetryPolicy(min_backoff=Duration()))
        asked = subscription_pb2.Subscription(**fields)
        asked.start.CopyFrom(subscription_pb2.Start(**(start or AFTER_ALL)))
        request = pb.CreateSubscriptionRequest(parent="namespaces/tides", subscription_id=id, subscription=asked)
        return (await self._stub.CreateSubscription(request, metadata=self._metadata)).subscription

    async def ask(self, method: str, **fields: Any) -> Any:
        """Call *method* of the subscription."""
        request_type = getattr(pb, f"{method}Request")
        if "name" in request_type.DESCRIPTOR.fields_by_name:
            fields.setdefault("name", NAME)
        return await getattr(self._stub, method)(request_type(**fields), metadata=self._metadata)

    async def get(self) -> subscription_pb2.Subscription:
        answer: pb.GetSubscriptionResponse = await self.ask("GetSubscription")
        return answer.subscription

    async def pull(self, wait: int = 0, **fields: Any) -> list[Delivery]:
        answer: pb.PullResponse = await self.ask("Pull", wait=Duration(seconds=wait), **fields)
        return list(answer.deliveries)

    async def some(self, count: int) -> list[Delivery]:
        """Pull until there are *count*, in the order in which they came."""
        deliveries: list[Delivery] = []
        async with asyncio.timeout(30):
            while len(deliveries) < count:
                deliveries += await self.pull(wait=5)
        assert len(deliveries) == count
        return deliveries

    async def ack(self, *deliveries: Delivery) -> list[str]:
        answer: pb.AckResponse = await self.ask("Ack", ack_ids=[delivery.ack_id for delivery in deliveries])
        return list(answer.stale_ack_ids)

    async def nack(self, action: pb.NackRequest.Action.ValueType, *deliveries: Delivery) -> list[str]:
        ack_ids = [delivery.ack_id for delivery in deliveries]
        answer: pb.NackResponse = await self.ask("Nack", ack_ids=ack_ids, action=action)
        return list(answer.stale_ack_ids)

    async def parked(self, size: int = 0) -> list[tuple[str, int, str]]:
        """(entity's id, revision, reason) of everything that is parked, page by page."""
        found: list[tuple[str, int, str]] = []
        token = ""
        while True:
            answer: pb.ListParkedResponse = await self.ask("ListParked", page_size=size, page_token=token)
            found += [(one.subject.rsplit("/", 1)[1], one.revision, one.reason) for one in answer.parked]
            if not (token := answer.next_page_token):
                return found

    def stream(self, **fields: Any) -> Any:
        return self._stub.StreamingPull(pb.StreamingPullRequest(name=NAME, **fields), metadata=self._metadata)


async def let(owner: Owner, user: str, role: str) -> None:
    """Give *user* a role in the namespace."""
    member = {"namespace": "tides", "user": user, "role": role}
    await owner.write(SYSTEM, {("membership", f"tides~{user}"): member})


@asynccontextmanager
async def client_of(replica: StreamService, user: str = ANN) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(replica.grpc_address) as channel:
        yield Client(channel, user)


def ids(deliveries: list[Delivery]) -> list[tuple[str, int]]:
    """(entity's id, revision)."""
    return [(one.change.entity.name.rsplit("/", 1)[1], one.revision) for one in deliveries]


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code(), reason(failure.value)[0]


async def cut(owner: Owner, horizon: int) -> None:
    """Cut the log, whatever leases say."""
    for _ in range(horizon):
        await owner.execute("UPDATE heads SET horizon = horizon + 1 WHERE namespace = %s", TIDES.id)
    await owner.execute(
        """DELETE FROM units u USING heads h
        WHERE u.namespace = %s AND u.namespace = h.namespace AND u.revision <= h.horizon""",
        TIDES.id,
    )


async def until_not_found(client: Client) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await client.get()
            except grpc.aio.AioRpcError as failure:
                if failure.code() == grpc.StatusCode.NOT_FOUND:
                    return
            await asyncio.sleep(0.1)


async def first_of(stream: Any) -> None:
    """Read *stream* until it has delivered something."""
    async with asyncio.timeout(30):
        while not (await stream.read()).deliveries:
            pass


async def ended(stream: Any) -> grpc.StatusCode:
    """Read *stream* until it ends; how it did."""
    try:
        async with asyncio.timeout(30):
            while await stream.read() is not grpc.aio.EOF:
                pass
    except grpc.aio.AioRpcError as failure:
        code: grpc.StatusCode = failure.code()
        return code
    raise AssertionError("it ended without a word")
