"""Making, changing and removing subscriptions, and what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from strandline.stream.v1 import subscription_pb2
from strandline.stream.v1 import subscription_service_pb2 as pb

from services.runtime.call import Namespace

from .conftest import TIDES, MakeReplica
from .owner import SYSTEM, Owner
from .service import fields, reason
from .subscribers import (
    BOB,
    FORGED,
    NAME,
    Client,
    State,
    client_of,
    ids,
    let,
    refused,
    until_not_found,
)


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


async def test_who_does_not_say_where_to_begin_is_told_so_by_each_call_alike(client: Client) -> None:
    await client.create()
    nowhere = {"parent": "namespaces/tides", "subscription_id": "another"}
    for call, field in (
        (client.ask("Seek"), "start"),
        (client.ask("Seek", start=subscription_pb2.Start()), "start"),
        (
            client.ask("CreateSubscription", **nowhere, subscription=subscription_pb2.Subscription()),
            "subscription.start",
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert (raised.value.code(), reason(raised.value)[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "START_REQUIRED")
        assert fields(raised.value) == [field]


async def test_a_bound_is_told_as_it_is_meant(client: Client) -> None:
    await client.create()
    many = subscription_pb2.Subscription(name=NAME, max_in_flight=1001)
    for call, text in (
        (client.ask("UpdateSubscription", subscription=many), "must be 1 to 1000, or 0 for the default"),
        (client.ask("Nack", ack_ids=["1.0.1"]), "must be RETRY, PARK or SKIP"),
        (client.ask("Nack", ack_ids=["1.0.1"], action=7), "must be RETRY, PARK or SKIP"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert text in (raised.value.details() or "")


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


async def test_a_subscription_that_was_read_is_changed_and_sent_back_whatever_was_delivered_meanwhile(
    owner: Owner, client: Client
) -> None:
    await client.create()
    read = await client.get()
    await owner.put(TIDES, "a")
    await client.ack(*(await client.some(1)))
    read.max_in_flight = 7
    changed = (await client.ask("UpdateSubscription", subscription=read)).subscription
    assert (changed.max_in_flight, changed.checkpoint_revision) == (7, 1)
    await client.ask("DeleteSubscription")
    await client.create()
    read.etag = ""
    for wrong, field in (
        (read, "uid"),
        (subscription_pb2.Subscription(name=NAME, start=subscription_pb2.Start(now=True)), "start"),
        (subscription_pb2.Subscription(name=NAME, state=State.STALLED), "state"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await client.ask("UpdateSubscription", subscription=wrong)
        assert (reason(raised.value)[0], fields(raised.value)) == ("INVALID_FIELD", [f"subscription.{field}"])
    assert (await client.get()).etag == '"1"'


# Retries and rehearsals


def request_to_create(**fields: Any) -> dict[str, Any]:
    asked = subscription_pb2.Subscription(start=subscription_pb2.Start(after_revision=0), **fields)
    return {"parent": "namespaces/tides", "subscription_id": "orders", "subscription": asked}


async def test_a_creation_that_is_repeated_answers_with_what_it_made_and_another_body_is_refused(
    client: Client,
) -> None:
    first = (await client.ask("CreateSubscription", **request_to_create(), request_id="r1")).subscription
    again = (await client.ask("CreateSubscription", **request_to_create(), request_id="r1")).subscription
    assert (again.uid, again.etag, again.create_time) == (first.uid, first.etag, first.create_time)
    with pytest.raises(grpc.aio.AioRpcError) as reused:
        await client.ask("CreateSubscription", **request_to_create(types=["buoy"]), request_id="r1")
    assert (reason(reused.value)[0], fields(reused.value)) == ("REQUEST_ID_REUSED", ["request_id"])
    taken = (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    assert await refused(client.ask("CreateSubscription", **request_to_create(), request_id="r2")) == taken
    assert await refused(client.ask("CreateSubscription", **request_to_create())) == taken
    await client.ask("DeleteSubscription")
    for remake in (True, False):  # nor is another one of the same name what the request has made
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await client.ask("CreateSubscription", **request_to_create(), request_id="r1")
        assert (gone.value.code(), reason(gone.value)[0]) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        assert "was deleted since" in (gone.value.details() or "")
        if remake:
            await client.create()


async def test_of_a_creation_that_is_under_way_twice_both_get_the_same(client: Client) -> None:
    calls = (client.ask("CreateSubscription", **request_to_create(), request_id="r1") for _ in range(5))
    answers = await asyncio.gather(*calls)
    assert len({answer.subscription.uid for answer in answers}) == 1


async def test_an_update_that_is_repeated_changes_nothing_and_needs_no_etag_of_its_own(client: Client) -> None:
    made = await client.create()
    changed = subscription_pb2.Subscription(name=NAME, max_in_flight=7, etag=made.etag)
    for _ in range(2):
        answer = await client.ask("UpdateSubscription", subscription=changed, request_id="r1")
        assert (answer.subscription.max_in_flight, answer.subscription.etag) == (7, '"2"')
    changed.max_in_flight = 8
    reused = (grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
    assert await refused(client.ask("UpdateSubscription", subscription=changed, request_id="r1")) == reused
    assert (await client.get()).max_in_flight == 7


async def test_what_is_only_validated_is_checked_and_not_done(owner: Owner, client: Client) -> None:
    rehearsal = await client.ask("CreateSubscription", **request_to_create(), validate_only=True, request_id="r1")
    assert (rehearsal.subscription.name, rehearsal.subscription.max_in_flight) == (NAME, 100)
    assert (rehearsal.subscription.uid, rehearsal.subscription.etag) == ("", "")
    assert await refused(client.get()) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.ask("CreateSubscription", **request_to_create(filter="data.n >"), validate_only=True)
    assert reason(raised.value)[0] == "INVALID_FIELD"
    made = (await client.ask("CreateSubscription", **request_to_create(), request_id="r1")).subscription
    taken = (grpc.StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    assert await refused(client.ask("CreateSubscription", **request_to_create(), validate_only=True)) == taken
    changed = subscription_pb2.Subscription(name=NAME, max_in_flight=7)
    answer = await client.ask("UpdateSubscription", subscription=changed, validate_only=True)
    assert (answer.subscription.max_in_flight, answer.subscription.etag) == (7, made.etag)
    found = await client.get()
    assert (found.max_in_flight, found.etag) == (100, made.etag)
    changed.etag = '"9"'
    mismatch = (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert await refused(client.ask("UpdateSubscription", subscription=changed, validate_only=True)) == mismatch
