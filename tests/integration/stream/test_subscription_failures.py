"""What becomes of a change that a worker could not finish: again, parked, or skipped."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from strandline.stream.v1 import subscription_pb2
from strandline.stream.v1 import subscription_service_pb2 as pb

from .conftest import TIDES, MakeReplica
from .owner import Owner
from .subscribers import (
    Client,
    Delivery,
    client_of,
    ids,
)


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
