"""Durable subscriptions: several replicas over one database, each asked as a client asks it."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from strandline.stream.v1 import subscription_pb2
from strandline.stream.v1 import subscription_service_pb2 as pb

from .conftest import TIDES, MakeReplica, MakeStream
from .owner import Owner
from .service import ANN, reason
from .subscribers import (
    BOB,
    LONG,
    Change,
    Client,
    Delivery,
    client_of,
    ended,
    first_of,
    ids,
    let,
    refused,
)


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


async def test_a_pull_that_waits_holds_up_nobody_while_there_is_nothing_to_take(
    owner: Owner, client: Client, own_url: str
) -> None:
    await client.create(types=["whale"])
    await owner.put(TIDES, "a")
    waiting = asyncio.create_task(client.pull(wait=4))
    async with asyncio.timeout(30):
        while True:
            if (await client.get()).checkpoint_revision == 1:  # it has looked
                break
            await asyncio.sleep(0.01)
    async with await psycopg.AsyncConnection.connect(own_url) as connection:
        await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
        await connection.execute("SELECT FROM subscription_progress FOR UPDATE")
        # It needs no lock to find out that there is nothing, and is done while somebody else holds it.
        assert await asyncio.wait_for(waiting, 60) == []


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


async def test_a_stream_with_nothing_to_deliver_says_at_once_that_it_is_open(
    owner: Owner, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.pulls.SIGN_OF_LIFE_SECONDS", 3600.0)
    async with client_of(await make_replica()) as client:
        await client.create()
        stream = client.stream()
        async with asyncio.timeout(30):
            assert not (await stream.read()).deliveries
            await owner.put(TIDES, "a")
            assert ids(list((await stream.read()).deliveries)) == [("a", 1)]
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


async def test_a_user_has_so_many_streams_at_a_replica_and_no_more(
    owner: Owner, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.pulls.MAX_PULLS", 3)
    replica = await make_replica()
    await let(owner, BOB, "EDITOR")
    async with client_of(replica) as ann, client_of(replica, BOB) as bob:
        await ann.create()
        streams = [ann.stream() for _ in range(3)]
        await replica.has_pulls(3)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await ann.stream().read()
        assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason(refusal.value) == ("TOO_MANY_PULLS", {"limit": "3"})
        streams.append(bob.stream())
        await replica.has_pulls(4)
        streams[0].cancel()
        await replica.has_pulls(3)
        streams.append(ann.stream())
        await replica.has_pulls(4)
        for stream in streams:
            stream.cancel()
        await replica.has_pulls(0)


async def test_a_pull_that_waits_counts_like_a_stream_and_one_that_does_not_wait_is_free(
    make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.pulls.MAX_PULLS", 2)
    replica = await make_replica()
    async with client_of(replica) as ann:
        await ann.create()
        pulls = [asyncio.create_task(ann.pull(wait=10)) for _ in range(3)]
        (first_over,), waiting = await asyncio.wait(pulls, return_when=asyncio.FIRST_COMPLETED)
        assert await refused(first_over) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_PULLS")
        with pytest.raises(grpc.aio.AioRpcError, match="as many pulls"):
            await ann.stream().read()
        assert await ann.pull() == []
        for pull in waiting:
            pull.cancel()
        async with asyncio.timeout(30):
            while True:
                stream = ann.stream()
                if not await is_refused(stream):
                    break
                await asyncio.sleep(0.02)  # a server learns a little later that a client has gone
        stream.cancel()


async def is_refused(stream: Any) -> bool:
    """Whether there is no room for it; otherwise its first sign of life was read."""
    try:
        await stream.read()
    except grpc.aio.AioRpcError as failure:
        if reason(failure)[0] != "TOO_MANY_PULLS":
            raise
        return True
    return False


async def test_who_was_answered_may_wait_again_at_once(
    owner: Owner, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.pulls.MAX_PULLS", 1)
    async with client_of(await make_replica()) as ann:
        await ann.create()
        for n in range(20):
            await owner.put(TIDES, f"e{n}")
        for _ in range(20):
            assert len(await ann.pull(wait=10, max_messages=1)) == 1


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
