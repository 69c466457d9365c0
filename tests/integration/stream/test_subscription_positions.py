"""Where a subscription begins and is moved to, and what the log keeps for it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from strandline.stream.v1 import subscription_pb2
from strandline.stream.v1 import subscription_service_pb2 as pb

from .conftest import TIDES, MakeStream
from .owner import Owner
from .service import ANN, reason
from .subscribers import (
    Client,
    State,
    client_of,
    cut,
    ids,
    let,
    refused,
)


async def test_a_parked_change_that_was_cut_from_the_log_is_given_up_on_replay(owner: Owner, client: Client) -> None:
    await client.create()
    await owner.put(TIDES, "a")
    await client.nack(pb.NackRequest.PARK, *(await client.some(1)))
    await owner.put(TIDES, "b")
    await cut(owner, 1)
    answer = await client.ask("ReplayParked")
    assert (answer.replayed_count, answer.parked_count, answer.lost_count) == (0, 0, 1)
    assert ids(await client.some(1)) == [("b", 2)]


async def test_a_subscription_whose_next_change_was_cut_says_so_until_it_is_moved(
    owner: Owner, make_stream: MakeStream, own_url: str
) -> None:
    await let(owner, ANN, "EDITOR")
    async with client_of(await make_stream(own_url=own_url, ring_bytes=0)) as client:
        await client.create()
        for name in ("a", "b", "c"):
            await owner.put(TIDES, name)
        await cut(owner, 2)
        for _ in range(2):  # the look that finds it out, and one that knows
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await client.pull()
            assert raised.value.code() == grpc.StatusCode.OUT_OF_RANGE
            assert reason(raised.value) == ("COMPACTED", {"horizon_revision": "2"})
            assert "`beginning`" in (raised.value.details() or "")
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


async def test_while_a_subscription_is_being_made_its_lease_is_a_short_one(
    owner: Owner, client: Client, own_url: str
) -> None:
    async def life() -> timedelta:
        async with owner.database.connection() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
            cursor = await connection.execute("SELECT expire_time - now() FROM consumer_leases")
            row = await cursor.fetchone()
            return row[0] if row else timedelta()

    async with asyncio.timeout(60):
        async with await psycopg.AsyncConnection.connect(own_url) as connection:
            # What is made waits here, after the lease was put.
            await connection.execute("LOCK TABLE subscription_upkeep IN SHARE ROW EXCLUSIVE MODE")
            making = asyncio.create_task(client.create())
            while True:
                if found := await life():
                    break
                await asyncio.sleep(0.01)
            assert found <= timedelta(minutes=10)
        await making
        assert await life() > timedelta(days=6)


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
