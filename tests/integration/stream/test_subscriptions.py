"""Durable subscriptions: several replicas over one database, each asked as a client asks it."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from strandline.stream.v1 import feed_pb2, subscription_pb2, subscription_service_pb2_grpc
from strandline.stream.v1 import subscription_service_pb2 as pb

from services.runtime.call import Namespace

from .conftest import TIDES, MakeStream
from .owner import SYSTEM, Owner
from .service import ANN, StreamService, access_token, fields, reason

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


MakeReplica = Callable[[], Awaitable[StreamService]]


@pytest.fixture
async def make_replica(owner: Owner, make_stream: MakeStream, own_url: str) -> MakeReplica:
    await let(owner, ANN, "EDITOR")

    async def make() -> StreamService:
        return await make_stream(own_url=own_url)

    return make


@asynccontextmanager
async def client_of(replica: StreamService, user: str = ANN) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(replica.grpc_address) as channel:
        yield Client(channel, user)


@pytest.fixture
async def client(make_replica: MakeReplica) -> AsyncIterator[Client]:
    async with client_of(await make_replica()) as client:
        yield client


def ids(deliveries: list[Delivery]) -> list[tuple[str, int]]:
    """(entity's id, revision)."""
    return [(one.change.entity.name.rsplit("/", 1)[1], one.revision) for one in deliveries]


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value.code(), reason(failure.value)[0]


# Delivering


async def test_what_follows_the_start_is_delivered_in_order_and_nothing_before_it(owner: Owner, client: Client) -> None:
    await owner.put(TIDES, "early")
    made = await client.create({"now": True})
    assert made.checkpoint_revision == 1
    for name in ("a", "b", "c"):
        await owner.put(TIDES, name, n=1)
    deliveries = await client.some(3)
    assert ids(deliveries) == [("a", 2), ("b", 3), ("c", 4)]
    first = deliveries[0]
    assert first.id == f"{TIDES.epoch}.2.0"
    assert (first.delivery_attempt, first.actor, first.change.kind) == (1, "ann", Change.CREATED)
    assert dict(first.change.entity.data) == {"n": 1}
    assert first.deadline.ToDatetime() > first.commit_time.ToDatetime()


async def test_the_checkpoint_waits_for_the_oldest_that_is_not_done(owner: Owner, client: Client) -> None:
    await client.create()
    for name in ("a", "b", "c"):
        await owner.put(TIDES, name)
    a, b, c = await client.some(3)
    await client.ack(b, c)
    status = await client.get()
    assert (status.checkpoint_revision, status.in_flight_count, status.lag.revisions) == (0, 1, 3)
    assert status.lag.age.ToMicroseconds() > 0
    await client.ack(a)
    status = await client.get()
    assert (status.checkpoint_revision, status.in_flight_count, status.lag.revisions) == (3, 0, 0)
    assert status.lag.age.ToMicroseconds() == 0


async def test_the_changes_of_one_entity_wait_for_each_other_whichever_replica_is_asked(
    owner: Owner, make_replica: MakeReplica
) -> None:
    async with client_of(await make_replica()) as one, client_of(await make_replica()) as other:
        await one.create()
        for n in range(3):
            await owner.put(TIDES, "a", n=n)
            await owner.put(TIDES, "b", n=n)
        assert ids(await one.some(2)) == [("a", 1), ("b", 2)]
        status = await other.get()
        assert status.in_flight_count == 2
        assert await other.pull() == []
        # Found again by its ack id, which any replica understands.
        assert await other.ack(Delivery(ack_id="9.0.1")) == ["9.0.1"]


async def test_an_acknowledged_change_lets_the_next_of_its_entity_go(owner: Owner, client: Client) -> None:
    await client.create()
    for n in range(3):
        await owner.put(TIDES, "a", n=n)
    for revision in (1, 2, 3):
        (delivery,) = await client.some(1)
        assert delivery.revision == revision
        assert await client.ack(delivery) == []
    assert (await client.get()).checkpoint_revision == 3


async def test_what_a_worker_does_not_acknowledge_in_time_another_gets(owner: Owner, make_replica: MakeReplica) -> None:
    async with client_of(await make_replica()) as one, client_of(await make_replica()) as other:
        await one.create(ack_deadline=Duration(seconds=1))
        await owner.put(TIDES, "a")
        (first,) = await one.some(1)
        (second,) = await other.some(1)
        assert (second.id, second.delivery_attempt) == (first.id, 2)
        assert await one.ack(first) == [first.ack_id], "it is another worker's now"
        assert await one.ack(second) == []


async def test_a_worker_may_ask_for_more_time(owner: Owner, client: Client) -> None:
    await client.create(ack_deadline=Duration(seconds=1))
    await owner.put(TIDES, "a")
    (delivery,) = await client.some(1)
    answer = await client.ask("ModifyAckDeadline", ack_ids=[delivery.ack_id], ack_deadline=LONG)
    assert not answer.stale_ack_ids
    await asyncio.sleep(1.2)
    assert await client.pull() == []
    assert (await client.get()).in_flight_count == 1


async def test_no_more_than_max_in_flight_is_given_out(owner: Owner, client: Client) -> None:
    await client.create(max_in_flight=2)
    for name in ("a", "b", "c"):
        await owner.put(TIDES, name)
    first, _ = await client.some(2)
    assert await client.pull() == []
    await client.ack(first)
    assert ids(await client.some(1)) == [("c", 3)]


async def test_types_ids_and_filter_select_and_crossing_the_filter_shows(owner: Owner, client: Client) -> None:
    await client.create(types=["buoy"], filter="data.n > 1")
    await owner.write(TIDES, {("ship", "s"): {"n": 5}})
    for n in (1, 2, 3, 0):
        await owner.put(TIDES, "a", n=n)
    kinds = []
    for _ in range(3):
        (delivery,) = await client.some(1)
        kinds.append(delivery.change.kind)
        await client.ack(delivery)
    assert kinds == [Change.ENTERED, Change.UPDATED, Change.LEFT]
    assert (await client.get()).checkpoint_revision == 5
    await client.ask("DeleteSubscription")
    await client.create(ids=["ship/s"])
    (delivery,) = await client.some(1)
    assert delivery.change.entity.name.endswith("types/ship/entities/s")


async def test_the_checkpoint_passes_what_is_not_selected(owner: Owner, client: Client) -> None:
    await client.create(types=["whale"])
    for n in range(5):
        await owner.put(TIDES, "a", n=n)
    assert await client.pull() == []
    assert (await client.get()).checkpoint_revision == 5


async def test_several_changes_of_one_unit_are_delivered_one_by_one(owner: Owner, client: Client) -> None:
    await client.create(types=["buoy"])
    await owner.write(TIDES, {("ship", "s"): {}, ("buoy", "a"): {}, ("buoy", "b"): {}})
    deliveries = await client.some(2)
    assert sorted(one.index for one in deliveries) in ([0, 1], [0, 2], [1, 2])
    assert len({one.id for one in deliveries}) == 2
    await client.ack(deliveries[0])
    assert (await client.get()).checkpoint_revision == 0, "a unit is done when all of it is"
    await client.ack(deliveries[1])
    assert (await client.get()).checkpoint_revision == 1


async def test_a_pull_that_waits_gets_what_is_committed_meanwhile(owner: Owner, client: Client) -> None:
    await client.create({"now": True})
    waiting = asyncio.create_task(client.pull(wait=10))
    await asyncio.sleep(0.1)
    await owner.put(TIDES, "a")
    assert ids(await asyncio.wait_for(waiting, 30)) == [("a", 1)]


async def test_a_backlog_larger_than_the_ring_is_read_from_the_log(
    owner: Owner, make_stream: MakeStream, own_url: str
) -> None:
    await let(owner, ANN, "EDITOR")
    for n in range(60):
        await owner.put(TIDES, f"e{n}", text="x" * 100)
    async with client_of(await make_stream(own_url=own_url, ring_bytes=500)) as client:
        await client.create()
        deliveries = await client.some(60)
        assert [one.revision for one in deliveries] == list(range(1, 61))


# Failing


async def test_a_nack_delivers_again_and_after_the_last_attempt_parks(owner: Owner, client: Client) -> None:
    policy = subscription_pb2.RetryPolicy(max_attempts=3, min_backoff=Duration())
    await client.create(retry_policy=policy)
    await owner.put(TIDES, "a", n=1)
    for attempt in (1, 2, 3):
        (delivery,) = await client.some(1)
        assert delivery.delivery_attempt == attempt
        assert await client.nack(pb.NackRequest.RETRY, delivery) == []
    assert await client.pull() == []
    assert await client.parked() == [("a", 1, "ATTEMPTS")]
    status = await client.get()
    assert (status.checkpoint_revision, status.parked_count) == (1, 1)


async def test_a_parked_entity_takes_its_later_changes_with_it_and_holds_up_no_other(
    owner: Owner, client: Client
) -> None:
    await client.create()
    for n in range(2):
        await owner.put(TIDES, "a", n=n)
        await owner.put(TIDES, "b", n=n)
    a, b = await client.some(2)
    assert await client.nack(pb.NackRequest.PARK, a) == []
    await client.ack(b)
    await owner.put(TIDES, "a", n=2)
    (b,) = await client.some(1)
    assert ids([b]) == [("b", 4)]
    await client.ack(b)
    assert await client.pull() == []
    assert await client.parked(size=1) == [("a", 1, "NACK"), ("a", 3, "BEHIND"), ("a", 5, "BEHIND")]
    assert (await client.get()).checkpoint_revision == 5


async def test_a_change_that_is_read_while_an_earlier_one_of_its_entity_is_parked_joins_it(
    owner: Owner, make_replica: MakeReplica
) -> None:
    replica = await make_replica()
    async with client_of(replica) as client, replica.deliveries.worker(TIDES, "orders") as worker:
        await client.create(retry_policy=subscription_pb2.RetryPolicy(max_attempts=1))
        await owner.put(TIDES, "a", n=1)
        deliveries: list[Delivery] = []
        async with asyncio.timeout(30):
            while not deliveries:
                await worker.wait(1)
                deliveries = await worker.take(1)
        await replica.deliveries.extend(TIDES, "orders", [deliveries[0].ack_id], timedelta(0))
        await owner.put(TIDES, "a", n=2)
        await owner.put(TIDES, "b")
        async with asyncio.timeout(30):
            while worker.hub.position < 3:
                await worker.hub.changed()
        # One look gives up the first change, whose time is over, and reads the second.
        assert ids(await worker.take(10)) == [("b", 3)]
        assert await client.parked() == [("a", 1, "ATTEMPTS"), ("a", 2, "BEHIND")]


async def test_what_is_parked_is_replayed_in_order_entity_by_entity(owner: Owner, client: Client) -> None:
    await client.create()
    for n in range(2):
        await owner.put(TIDES, "a", n=n)
        await owner.put(TIDES, "b", n=n)
    await client.nack(pb.NackRequest.PARK, *(await client.some(2)))
    answer = await client.ask("ReplayParked", subjects=["namespaces/tides/types/buoy/entities/a"])
    assert (answer.replayed_count, answer.parked_count, answer.lost_count) == (2, 2, 0)
    await owner.put(TIDES, "a", n=2)
    for revision in (1, 3, 5):
        (delivery,) = await client.some(1)
        assert (ids([delivery]), delivery.delivery_attempt) == ([("a", revision)], 1)
        await client.ack(delivery)
    answer = await client.ask("ReplayParked")
    assert (answer.replayed_count, answer.parked_count) == (2, 0)
    assert ids(await client.some(1)) == [("b", 2)]


async def test_a_skipped_change_is_done(owner: Owner, client: Client) -> None:
    await client.create()
    for n in range(2):
        await owner.put(TIDES, "a", n=n)
    assert await client.nack(pb.NackRequest.SKIP, *(await client.some(1))) == []
    assert ids(await client.some(1)) == [("a", 2)]
    assert (await client.get()).checkpoint_revision == 1


async def test_a_parked_change_that_was_cut_from_the_log_is_given_up_on_replay(owner: Owner, client: Client) -> None:
    await client.create()
    await owner.put(TIDES, "a")
    await client.nack(pb.NackRequest.PARK, *(await client.some(1)))
    await owner.put(TIDES, "b")
    await cut(owner, 1)
    answer = await client.ask("ReplayParked")
    assert (answer.replayed_count, answer.parked_count, answer.lost_count) == (0, 0, 1)
    assert ids(await client.some(1)) == [("b", 2)]


# Positions


async def cut(owner: Owner, horizon: int) -> None:
    """Cut the log, whatever leases say."""
    for _ in range(horizon):
        await owner.execute("UPDATE heads SET horizon = horizon + 1 WHERE namespace = %s", TIDES.id)
    await owner.execute(
        """DELETE FROM units u USING heads h
        WHERE u.namespace = %s AND u.namespace = h.namespace AND u.revision <= h.horizon""",
        TIDES.id,
    )


async def test_a_subscription_whose_next_change_was_cut_says_so_until_it_is_moved(
    owner: Owner, make_stream: MakeStream, own_url: str
) -> None:
    await let(owner, ANN, "EDITOR")
    async with client_of(await make_stream(own_url=own_url, ring_bytes=0)) as client:
        await client.create()
        for name in ("a", "b", "c"):
            await owner.put(TIDES, name)
        await cut(owner, 2)
        assert await refused(client.pull()) == (grpc.StatusCode.OUT_OF_RANGE, "COMPACTED")
        assert (await client.get()).state == State.COMPACTED
        await client.ask("Seek", start=subscription_pb2.Start(beginning=True))
        assert ids(await client.some(1)) == [("c", 3)]
        assert (await client.get()).state == State.ACTIVE


async def test_seeking_back_delivers_again_and_seeking_on_leaves_out(owner: Owner, client: Client) -> None:
    await client.create()
    for name in ("a", "b", "c"):
        await owner.put(TIDES, name)
    old = await client.some(3)
    await client.ack(*old[:2])
    answer = await client.ask("Seek", start=subscription_pb2.Start(after_revision=1))
    assert (answer.subscription.checkpoint_revision, answer.subscription.in_flight_count) == (1, 0)
    again = await client.some(2)
    assert ids(again) == [("b", 2), ("c", 3)]
    assert await client.ack(*old) == [one.ack_id for one in old], "deliveries from before count no longer"
    await client.ask("Seek", start=subscription_pb2.Start(now=True))
    assert await client.pull() == []
    assert (await client.get()).checkpoint_revision == 3


async def test_seeking_back_before_what_is_parked_delivers_it_with_the_rest(owner: Owner, client: Client) -> None:
    await client.create()
    for n in range(3):
        await owner.put(TIDES, "a", n=n)
    await client.nack(pb.NackRequest.PARK, *(await client.some(1)))
    await client.ask("Seek", start=subscription_pb2.Start(after_revision=1))
    assert await client.parked() == [("a", 1, "NACK")], "what is parked at or before the position stays"
    assert await client.pull() == []
    assert await client.parked() == [("a", 1, "NACK"), ("a", 2, "BEHIND"), ("a", 3, "BEHIND")]
    await client.ask("Seek", start=subscription_pb2.Start(after_revision=0))
    assert await client.parked() == []
    assert ids(await client.some(1)) == [("a", 1)]


async def test_a_start_in_time_is_after_the_last_revision_before_it(owner: Owner, client: Client) -> None:
    await owner.put(TIDES, "a")
    made = await client.create()
    (delivery,) = await client.some(1)
    await owner.put(TIDES, "b")
    await client.ask("Seek", start=subscription_pb2.Start(after_time=delivery.commit_time))
    assert ids(await client.some(1)) == [("b", 2)]
    assert made.lag.revisions == 1
    await client.ask("Seek", start=subscription_pb2.Start(after_time=Timestamp(seconds=1)))
    assert ids(await client.some(2)) == [("a", 1), ("b", 2)]
    for none in (Timestamp(seconds=10**12), Timestamp(nanos=-5), Timestamp(nanos=2 * 10**9)):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.ask("Seek", start=subscription_pb2.Start(after_time=none))
        assert reason(raised.value)[0] == "INVALID_FIELD"


# Managing


async def test_a_subscription_is_made_with_defaults_changed_listed_and_removed(client: Client) -> None:
    made = await client.create(ack_deadline=None, retry_policy=None)
    assert (made.name, made.state, made.max_in_flight, made.etag) == (NAME, State.ACTIVE, 100, '"1"')
    assert (made.ack_deadline.seconds, made.retry_policy.max_attempts) == (10, 10)
    assert (made.retry_policy.min_backoff.seconds, made.retry_policy.max_backoff.seconds) == (1, 600)
    changed = subscription_pb2.Subscription(name=NAME, max_in_flight=7, types=["buoy"], etag=made.etag)
    answer = await client.ask("UpdateSubscription", subscription=changed)
    assert (answer.subscription.max_in_flight, list(answer.subscription.types)) == (7, ["buoy"])
    assert (answer.subscription.etag, answer.subscription.ack_deadline.seconds) == ('"2"', 10)
    assert await refused(client.ask("UpdateSubscription", subscription=changed)) == (
        grpc.StatusCode.ABORTED,
        "ETAG_MISMATCH",
    )
    masked = subscription_pb2.Subscription(name=NAME, max_in_flight=9)
    answer = await client.ask("UpdateSubscription", subscription=masked, update_mask=["types"])
    assert (answer.subscription.max_in_flight, list(answer.subscription.types)) == (7, [])
    for id in ("alpha", "beta"):
        await client.create(id=id)
    found: list[str] = []
    token = ""
    while True:
        page = await client.ask("ListSubscriptions", parent="namespaces/tides", page_size=2, page_token=token)
        found += [one.name.rsplit("/", 1)[1] for one in page.subscriptions]
        if not (token := page.next_page_token):
            break
    assert found == ["alpha", "beta", "orders"]
    await client.ask("DeleteSubscription")
    assert await refused(client.get()) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert await refused(client.pull()) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")


async def test_a_new_filter_counts_for_what_was_not_read_yet(owner: Owner, client: Client) -> None:
    await client.create()
    await owner.put(TIDES, "a", n=1)
    await owner.put(TIDES, "a", n=2)
    (first,) = await client.some(1)
    changed = subscription_pb2.Subscription(name=NAME, types=["ship"])
    await client.ask("UpdateSubscription", subscription=changed)
    await owner.put(TIDES, "a", n=3)
    await client.ack(first)
    (second,) = await client.some(1)
    assert second.revision == 2, "it had been read before"
    await client.ack(second)
    assert await client.pull() == []
    assert (await client.get()).checkpoint_revision == 3


IMPOSSIBLE: list[tuple[dict[str, Any], str, str]] = [
    ({"start": subscription_pb2.Start()}, "START_REQUIRED", "subscription.start"),
    ({"start": subscription_pb2.Start(after_revision=5)}, "FUTURE_REVISION", ""),
    ({"types": ["No"]}, "INVALID_FIELD", "subscription.types[0]"),
    ({"filter": "data.n >"}, "INVALID_FIELD", "subscription.filter"),
    ({"ids": ["buoy"]}, "INVALID_FIELD", "subscription.ids[0]"),
    ({"ids": ["buoy/a"], "types": ["buoy"]}, "INVALID_FIELD", "subscription.types"),
    ({"ack_deadline": Duration(nanos=1)}, "INVALID_FIELD", "subscription.ack_deadline"),
    ({"ack_deadline": Duration(seconds=1, nanos=1000)}, "INVALID_FIELD", "subscription.ack_deadline"),
    ({"ack_deadline": Duration(seconds=601)}, "INVALID_FIELD", "subscription.ack_deadline"),
    ({"ack_deadline": Duration(seconds=2**40)}, "INVALID_FIELD", "subscription.ack_deadline"),
    ({"max_in_flight": 1001}, "INVALID_FIELD", "subscription.max_in_flight"),
    (
        {"retry_policy": subscription_pb2.RetryPolicy(min_backoff=Duration(seconds=3601))},
        "INVALID_FIELD",
        "subscription.retry_policy.min_backoff",
    ),
    (
        {
            "retry_policy": subscription_pb2.RetryPolicy(
                min_backoff=Duration(seconds=5), max_backoff=Duration(seconds=4)
            )
        },
        "INVALID_FIELD",
        "subscription.retry_policy.max_backoff",
    ),
]


async def test_a_subscription_that_cannot_be_is_refused(client: Client) -> None:
    for wrong, expected, field in IMPOSSIBLE:
        asked = subscription_pb2.Subscription(**({"start": subscription_pb2.Start(after_revision=0)} | wrong))
        call = client.ask("CreateSubscription", parent="namespaces/tides", subscription_id="orders", subscription=asked)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call
        assert reason(failure.value)[0] == expected, wrong
        assert fields(failure.value) == ([field] if field else []), wrong
    call = client.ask("CreateSubscription", parent="namespaces/tides", subscription_id="No", subscription=asked)
    assert (await refused(call))[1] == "INVALID_FIELD"
    assert not (await client.ask("ListSubscriptions", parent="namespaces/tides")).subscriptions


async def test_what_makes_no_sense_is_refused(owner: Owner, client: Client) -> None:
    await client.create()
    assert await refused(client.create()) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    invalid = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    for call in (
        client.ask("Ack", ack_ids=["x"]),
        client.ask("Ack", ack_ids=[]),
        client.ask("Nack", ack_ids=["1.0.1"]),
        client.ask("Pull", wait=Duration(seconds=11)),
        client.ask("Pull", wait=Duration(seconds=-1)),
        client.ask("Pull", max_messages=1001),
        client.ask("Pull", name="namespaces/tides/subscriptions/No"),
        client.ask("ReplayParked", subjects=["namespaces/other/types/buoy"]),
        client.ask("UpdateSubscription", subscription=subscription_pb2.Subscription(name=NAME), update_mask=["state"]),
    ):
        assert await refused(call) == invalid
    for method, more in (("ListParked", {}), ("ListSubscriptions", {"parent": "namespaces/tides"})):
        refusal = await refused(client.ask(method, **more, **FORGED))
        assert refusal == (grpc.StatusCode.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID")


async def test_who_may_not_write_may_look_but_not_consume_and_a_stranger_sees_nothing(
    owner: Owner, make_replica: MakeReplica
) -> None:
    replica = await make_replica()
    async with client_of(replica) as ann, client_of(replica, BOB) as bob:
        await ann.create()
        assert await refused(bob.get()) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        await let(owner, BOB, "VIEWER")
        assert (await bob.get()).name == NAME
        denied = (grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT")
        for call in (
            bob.create(id="mine"),
            bob.pull(),
            bob.ask("Ack", ack_ids=["1.0.1"]),
            bob.ask("Seek", start=subscription_pb2.Start(now=True)),
            bob.ask("DeleteSubscription"),
        ):
            assert await refused(call) == denied


async def test_a_subscription_ends_with_its_namespace_and_the_next_one_does_not_see_it(
    owner: Owner, client: Client
) -> None:
    await client.create()
    await owner.put(TIDES, "a")
    await client.nack(pb.NackRequest.PARK, *(await client.some(1)))
    await owner.forget(TIDES.id)
    again = Namespace(TIDES.id, "0000beef")
    data = {"epoch": again.epoch, "state": "ACTIVE", "massChangeGuard": "OFF"}
    await owner.write(SYSTEM, {("namespace", TIDES.id): data})
    await owner.put(again, "b")
    await until_not_found(client)
    assert await refused(client.pull()) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    assert not (await client.ask("ListSubscriptions", parent="namespaces/tides")).subscriptions
    await client.create()
    assert ids(await client.some(1)) == [("b", 1)]
    assert await client.parked() == []


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


async def test_a_subscription_keeps_the_log_from_being_cut_and_lets_go_when_it_is_removed(
    owner: Owner, client: Client
) -> None:
    async def leases() -> list[tuple[Any, ...]]:
        async with owner.database.connection() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
            cursor = await connection.execute(
                "SELECT name, types, fields, acknowledged_revision FROM consumer_leases WHERE namespace = 'tides'"
            )
            return await cursor.fetchall()

    await owner.put(TIDES, "a")
    made = await client.create({"now": True}, types=["buoy"], filter="data.n > 1")
    assert await leases() == [(f"subscriptions/orders/{made.uid}", ["buoy"], ["data.n"], 1)]
    await client.ask("Seek", start=subscription_pb2.Start(beginning=True))
    assert [acknowledged for *_, acknowledged in await leases()] == [0]
    assert await refused(client.create()) == (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    assert len(await leases()) == 1
    await client.ask("DeleteSubscription")
    assert await leases() == []


# Streams, and everything at once


async def test_a_stream_gets_deliveries_as_they_come_and_no_more_than_its_share(owner: Owner, client: Client) -> None:
    await client.create()
    stream = client.stream(max_unacknowledged=2)
    for name in ("a", "b", "c"):
        await owner.put(TIDES, name)
    got: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(got) < 2:
            got += (await stream.read()).deliveries
        assert ids(await client.some(1)) == [("c", 3)], "another worker gets the rest"
        await owner.put(TIDES, "d")
        await client.ack(got[0])
        while len(got) < 3:
            got += (await stream.read()).deliveries
    assert ids(got) == [("a", 1), ("b", 2), ("d", 4)]
    stream.cancel()


async def test_a_stream_ends_when_its_reader_may_consume_no_longer(owner: Owner, make_replica: MakeReplica) -> None:
    replica = await make_replica()
    await let(owner, BOB, "EDITOR")
    async with client_of(replica) as ann, client_of(replica, BOB) as bob:
        await ann.create()
        stream = bob.stream()
        await owner.put(TIDES, "a")
        await first_of(stream)
        await let(owner, BOB, "VIEWER")
        assert await ended(stream) == grpc.StatusCode.PERMISSION_DENIED


async def test_a_stream_is_told_to_come_again_when_the_server_drains(owner: Owner, make_replica: MakeReplica) -> None:
    replica = await make_replica()
    async with client_of(replica) as client:
        await client.create()
        stream = client.stream()
        await owner.put(TIDES, "a")
        await first_of(stream)
        replica.hubs.drain()
        assert await ended(stream) == grpc.StatusCode.UNAVAILABLE


async def test_whatever_workers_do_and_whichever_replica_breaks_every_change_is_worked_off_in_order(
    owner: Owner, make_replica: MakeReplica, record_property: Callable[[str, object], None]
) -> None:
    seed = random.randrange(2**32)
    record_property("seed", seed)
    print(f"seed {seed}")
    dice = random.Random(seed)
    replicas = [await make_replica(), await make_replica()]
    names = [f"e{n}" for n in range(6)]
    finished: dict[str, list[tuple[int, int]]] = defaultdict(list)  # (number of the delivery, revision)
    committed: dict[str, list[int]] = defaultdict(list)
    done = asyncio.Event()

    async with client_of(replicas[1]) as manager:
        policy = subscription_pb2.RetryPolicy(max_attempts=4, min_backoff=Duration())
        await manager.create(ack_deadline=Duration(seconds=2), max_in_flight=5, retry_policy=policy)

        async def write() -> None:
            for n in range(80):
                name = dice.choice(names)
                committed[name].append(await owner.put(TIDES, name, n=n))

        async def work(client: Client) -> None:
            while not done.is_set():
                try:
                    for delivery in await client.pull(wait=1, max_messages=dice.randint(1, 4)):
                        ((name, revision),) = ids([delivery])
                        fate = dice.random()
                        if fate < 0.15:
                            await client.nack(pb.NackRequest.RETRY, delivery)
                        elif fate < 0.2:
                            await client.nack(pb.NackRequest.PARK, delivery)
                        elif fate < 0.25:
                            continue  # forgotten: it comes back
                        elif not await client.ack(delivery):
                            finished[name].append((int(delivery.ack_id.rsplit(".", 1)[1]), revision))
                except grpc.aio.AioRpcError as failure:
                    if failure.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                        raise
                    await asyncio.sleep(0.05)

        async with client_of(replicas[0]) as doomed, asyncio.timeout(90), asyncio.TaskGroup() as group:
            workers = [group.create_task(work(client)) for client in (doomed, doomed, manager, manager)]
            await write()
            await replicas[0].break_off()
            while True:
                await manager.ask("ReplayParked")
                status = await manager.get()
                if (status.checkpoint_revision, status.parked_count) == (80, 0):
                    break
                await asyncio.sleep(0.2)
            done.set()
            for worker in workers:
                await worker
    for name, revisions in committed.items():
        # Deliveries are numbered as they are handed out.
        in_order = [revision for _, revision in sorted(finished[name])]
        assert in_order == sorted(set(in_order)), "an entity's changes were finished twice or out of order"
        assert set(in_order) <= set(revisions)
        # An acknowledgement whose answer was lost with the replica is done, but nobody was told.
        assert len(set(revisions) - set(in_order)) <= 2
