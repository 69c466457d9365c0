"""Webhooks, from a commit to a receiver and back: signed, in the order of each entity, at least once."""

from __future__ import annotations

import asyncio
import base64
import random
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY
from strandline.stream.v1 import feed_pb2, webhook_pb2

from services.runtime.errors import NotFound
from services.stream.webhook_messages import change_message
from services.stream.webhooks import Target
from tests.nats import Nats

from .conftest import TIDES
from .hooks import EDITOR, NAME, Editor, HookService
from .owner import SYSTEM, Owner
from .receiver import HookReceiver, Request, reset, status
from .service import ANN

Outcome = webhook_pb2.WebhookDelivery
# So that what fails is tried again at once, and tests need not wait for chance.
AT_ONCE = {"min_backoff": Duration(nanos=100_000_000), "max_backoff": Duration(nanos=100_000_000)}


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[HookReceiver]:
    server = HookReceiver(tmp_path)
    await server.start()
    yield server
    await server.stop()


MakeHooks = Callable[..., Awaitable[HookService]]


@pytest.fixture
async def make_hooks(
    owner: Owner, nats_server: Nats, run_folder: Path, own_url: str, receiver: HookReceiver
) -> AsyncIterator[MakeHooks]:
    """Replicas of the service over one database."""
    member = {"namespace": "tides", "user": EDITOR, "role": "EDITOR"}
    await owner.write(SYSTEM, {("membership", f"tides~{EDITOR}"): member})
    made: list[HookService] = []

    async def make(**options: Any) -> HookService:
        options.setdefault("receivers", [receiver.opened])
        address = run_folder / f"hooks{len(made)}"
        made.append(HookService(owner.socket, nats_server.url, address, own_url, **options))
        await made[-1].start()
        return made[-1]

    yield make
    for service in made:
        await service.stop()


@pytest.fixture
async def editor(make_hooks: MakeHooks) -> AsyncIterator[Editor]:
    service = await make_hooks()
    async with service.editor() as editor:
        yield editor


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


async def test_a_change_arrives_signed_as_the_message_of_a_feed(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    made = await editor.create(receiver.url("/hook?tenant=7"))
    assert made.push.secret.startswith("whsec_")
    revision = await owner.put(TIDES, "b1", depth=5)
    (request,) = await receiver.wait_for(1)
    assert request.target == "/hook?tenant=7"
    assert request.headers["content-type"] == "application/json"
    assert request.is_signed_by(made.push.secret)
    body = request.json
    assert body.pop("type") == "change.created"
    assert body.pop("subscription") == NAME
    assert body.pop("index") == 0
    timestamp = body.pop("timestamp")
    feed = json_format.ParseDict(body, feed_pb2.WatchResponse())
    assert (feed.after_revision, feed.revision, feed.epoch) == (revision - 1, revision, TIDES.epoch)
    (unit,) = feed.units.units
    assert (unit.revision, unit.actor) == (revision, "ann")
    assert timestamp == body["units"]["units"][0]["commitTime"]
    assert dict(unit.changes[0].entity.data) == {"depth": 5}
    done = await editor.get_until(is_idle)
    assert (done.checkpoint_revision, done.push.state) == (revision, webhook_pb2.PushConfig.ENABLED)


async def test_no_header_of_ours_but_those_of_the_webhook_leaves_the_platform(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    await editor.create(receiver.url())
    await owner.put(TIDES, "b1", depth=5)
    (request,) = await receiver.wait_for(1)
    assert set(request.headers) - {"host", "accept", "accept-encoding", "content-length"} == {
        "content-type",
        "user-agent",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    }


async def test_every_change_arrives_in_the_order_of_its_entity(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    await editor.create(receiver.url())
    expected = [(f"b{number % 7}", await owner.put(TIDES, f"b{number % 7}", depth=number)) for number in range(60)]
    await editor.get_until(is_idle)
    arrived = changes_of(receiver.requests)
    assert sorted(arrived) == sorted(expected)
    for entity in {entity for entity, _ in expected}:
        revisions = [revision for name, revision in arrived if name == entity]
        assert revisions == sorted(revisions)


async def test_whatever_a_receiver_does_every_change_is_taken_once_in_the_order_of_its_entity(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    taken: list[tuple[str, int]] = []

    async def moody(request: Request, writer: asyncio.StreamWriter) -> None:
        behaviour = chance.choice(
            [status(200), status(204), status(500), status(429, retry_after="0"), status(302), reset]
        )
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() / 20)
        if await behaviour(request, writer):
            taken.extend(changes_of([request]))

    receiver.behaviour = moody
    await editor.create(receiver.url(), retry_policy={**AT_ONCE, "max_attempts": 1000})
    expected = [(f"b{number % 5}", await owner.put(TIDES, f"b{number % 5}", depth=number)) for number in range(15)]
    await editor.get_until(is_idle)
    assert sorted(taken) == sorted(expected)
    for entity in {entity for entity, _ in expected}:
        tried = [revision for name, revision in changes_of(receiver.requests) if name == entity]
        assert tried == sorted(tried)
        assert [revision for name, revision in taken if name == entity] == sorted(set(tried))


async def test_of_a_unit_each_change_is_a_message_of_its_own(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    await editor.create(receiver.url())
    contents = {("buoy", f"b{number}"): {"depth": number} for number in range(3)}
    revision = await owner.write(TIDES, contents)
    requests = await receiver.wait_for(3)
    assert sorted(changes_of(requests)) == [(f"b{number}", revision) for number in range(3)]
    assert sorted(request.json["index"] for request in requests) == [0, 1, 2]
    assert len({request.headers["webhook-id"] for request in requests}) == 3


async def test_only_what_the_filter_selects_is_sent(owner: Owner, receiver: HookReceiver, editor: Editor) -> None:
    await editor.create(receiver.url(), types=["buoy"], filter="data.depth > 3")
    await owner.put(TIDES, "b1", depth=2)
    await owner.write(TIDES, {("ship", "s1"): {"depth": 9}})
    entered = await owner.put(TIDES, "b1", depth=4)
    left = await owner.put(TIDES, "b1", depth=1)
    await editor.get_until(is_idle)
    assert changes_of(receiver.requests) == [("b1", entered), ("b1", left)]
    assert [request.json["type"] for request in receiver.requests] == ["change.entered", "change.left"]


async def test_what_fails_is_sent_again_with_the_same_id_and_body_until_it_is_taken(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    receiver.behaviour = status(500, b"out of\x1b[31m order")
    made = await editor.create(receiver.url(), retry_policy=AT_ONCE)
    revision = await owner.put(TIDES, "b1", depth=5)
    await receiver.wait_for(3)
    failing = await editor.get_until(lambda found: found.push.consecutive_failures >= 2)
    assert failing.push.HasField("failing_since")
    assert failing.checkpoint_revision == revision - 1
    receiver.behaviour = status(200)
    healed = await editor.get_until(is_idle)
    assert (healed.push.consecutive_failures, healed.push.HasField("failing_since")) == (0, False)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1
    assert all(request.is_signed_by(made.push.secret) for request in receiver.requests)
    *failed, last = await editor.deliveries()
    assert [delivery.number for delivery in (*failed, last)] == list(range(1, len(failed) + 2))
    assert [delivery.attempt for delivery in (*failed, last)] == list(range(1, len(failed) + 2))
    assert {(one.outcome, one.status, one.detail) for one in failed} == {
        (Outcome.HTTP_STATUS, 500, "out of [31m order")
    }
    assert (last.outcome, last.status, last.detail, last.revision) == (Outcome.DELIVERED, 200, "", revision)
    assert last.message_id == receiver.requests[0].headers["webhook-id"]


async def test_a_change_that_fails_holds_up_its_own_entity_and_no_other(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    async def refuse_b1(request: Request, writer: asyncio.StreamWriter) -> None:
        await status(500 if changes_of([request])[0][0] == "b1" else 204)(request, writer)

    receiver.behaviour = refuse_b1
    await editor.create(receiver.url(), retry_policy=AT_ONCE)
    first = await owner.put(TIDES, "b1", depth=1)
    later = await owner.put(TIDES, "b1", depth=2)
    other = await owner.put(TIDES, "b2", depth=3)
    async with asyncio.timeout(60):
        while True:
            await receiver.wait_for(len(receiver.requests) + 1)
            if ("b2", other) in changes_of(receiver.requests):
                break
    await receiver.wait_for(len(receiver.requests) + 2)
    assert ("b1", later) not in changes_of(receiver.requests)
    receiver.behaviour = status(204)
    await editor.get_until(is_idle)
    arrived = [revision for entity, revision in changes_of(receiver.requests) if entity == "b1"]
    assert arrived == sorted(arrived)
    assert set(arrived) == {first, later}


async def test_after_the_last_attempt_a_change_is_parked_and_can_be_replayed(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    receiver.behaviour = status(503)
    await editor.create(receiver.url(), retry_policy={**AT_ONCE, "max_attempts": 2})
    first = await owner.put(TIDES, "b1", depth=1)
    later = await owner.put(TIDES, "b1", depth=2)
    await editor.get_until(lambda found: found.parked_count == 2)
    parked = (await editor.subscriptions("ListParked", name=NAME)).parked
    assert [(one.revision, one.attempts, one.reason) for one in parked] == [
        (first, 2, "HTTP 503"),
        (later, 0, "BEHIND"),
    ]
    receiver.behaviour = status(204)
    before = len(receiver.requests)
    await editor.subscriptions("ReplayParked", name=NAME)
    await receiver.wait_for(before + 2)
    assert changes_of(receiver.requests[before:]) == [("b1", first), ("b1", later)]
    assert receiver.requests[before].headers["webhook-id"] == receiver.requests[0].headers["webhook-id"]
    await editor.get_until(is_idle)


async def test_a_receiver_that_asks_for_a_pause_is_left_alone_for_so_long(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    receiver.behaviour = status(429, retry_after="3600")
    await editor.create(receiver.url(), retry_policy=AT_ONCE)
    await owner.put(TIDES, "b1", depth=1)
    await editor.get_until(lambda found: found.push.consecutive_failures == 1)
    await owner.put(TIDES, "b2", depth=1)
    # The other entity's attempts show that the pusher goes on; the first one is not among them.
    receiver.behaviour = status(204)
    await receiver.wait_for(2)
    await owner.put(TIDES, "b3", depth=1)
    await receiver.wait_for(3)
    assert [entity for entity, _ in changes_of(receiver.requests)] == ["b1", "b2", "b3"]


async def test_a_receiver_that_is_gone_disables_its_webhook_which_goes_on_when_it_is_enabled(
    owner: Owner, receiver: HookReceiver, editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    before = REGISTRY.get_sample_value("strandline_stream_webhook_disabled_total", {"reason": "GONE"}) or 0
    receiver.behaviour = status(410)
    await editor.create(receiver.url(), retry_policy=AT_ONCE)
    first = await owner.put(TIDES, "b1", depth=1)
    disabled = await editor.get_until(lambda found: found.push.state == webhook_pb2.PushConfig.DISABLED)
    assert (disabled.push.disable_reason, disabled.push.HasField("disable_time")) == ("GONE", True)
    assert REGISTRY.get_sample_value("strandline_stream_webhook_disabled_total", {"reason": "GONE"}) == before + 1
    assert f"{NAME} is disabled: GONE" in caplog.text
    receiver.behaviour = status(204)
    later = await owner.put(TIDES, "b1", depth=2)
    test = (await editor.webhooks("TestWebhook", name=NAME)).delivery
    assert (test.outcome, test.revision) == (Outcome.DELIVERED, 0)
    assert (await editor.get()).push.state == webhook_pb2.PushConfig.DISABLED
    arrived = len(receiver.requests)
    push = (await editor.webhooks("EnableWebhook", name=NAME)).push
    assert (push.state, push.disable_reason, push.consecutive_failures) == (webhook_pb2.PushConfig.ENABLED, "", 0)
    await editor.get_until(is_idle)
    assert changes_of(receiver.requests[arrived:]) == [("b1", first), ("b1", later)]


async def test_a_receiver_that_fails_for_too_long_disables_its_webhook(
    owner: Owner, receiver: HookReceiver, editor: Editor, own_url: str
) -> None:
    receiver.behaviour = reset
    policy = {**AT_ONCE, "max_attempts": 1000}
    await editor.create(receiver.url(), retry_policy=policy, push={"disable_after": timedelta(minutes=1)})
    await owner.put(TIDES, "b1", depth=1)
    await editor.get_until(lambda found: found.push.consecutive_failures >= 5)
    # Rather than to wait for a minute: let the first failure be so long ago.
    async with await psycopg.AsyncConnection.connect(own_url) as connection:
        await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
        await connection.execute("UPDATE webhooks SET failing_since = failing_since - interval '1 minute'")
    disabled = await editor.get_until(lambda found: found.push.state == webhook_pb2.PushConfig.DISABLED)
    assert disabled.push.disable_reason == "FAILING"
    last = (await editor.deliveries())[-1]
    assert (last.outcome, last.status) == (Outcome.CONNECTION_FAILED, 0)


async def test_while_a_secret_takes_over_both_sign_and_afterwards_the_new_one_alone(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    old = (await editor.create(receiver.url())).push.secret
    rotated = await editor.webhooks("RotateWebhookSecret", name=NAME, overlap=timedelta(hours=1))
    assert rotated.secret.startswith("whsec_")
    assert rotated.secret != old
    assert rotated.HasField("previous_secret_expire_time")
    await editor.webhooks("TestWebhook", name=NAME)
    assert receiver.requests[-1].is_signed_by(old)
    assert receiver.requests[-1].is_signed_by(rotated.secret)
    newest = await editor.webhooks("RotateWebhookSecret", name=NAME, overlap=timedelta())
    assert not newest.HasField("previous_secret_expire_time")
    await owner.put(TIDES, "b1", depth=1)
    await receiver.wait_for(2)
    assert receiver.requests[-1].is_signed_by(newest.secret)
    assert not receiver.requests[-1].is_signed_by(rotated.secret)
    assert not receiver.requests[-1].is_signed_by(old)


async def test_a_secret_is_shown_once_and_lies_in_no_row_and_no_log_in_the_clear(
    owner: Owner, receiver: HookReceiver, editor: Editor, own_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    made = await editor.create(receiver.url())
    rotated = await editor.webhooks("RotateWebhookSecret", name=NAME)
    await owner.put(TIDES, "b1", depth=1)
    # It is remembered a moment after it has arrived.
    async with asyncio.timeout(60):
        while True:
            if await editor.deliveries():
                break
            await asyncio.sleep(0.05)
    assert (await editor.get()).push.secret == ""
    listed = await editor.subscriptions("ListSubscriptions", parent="namespaces/tides")
    assert [one.push.secret for one in listed.subscriptions] == [""]
    async with await psycopg.AsyncConnection.connect(own_url) as connection:
        await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
        dump = ""
        for table in ("webhooks", "webhook_deliveries", "subscriptions", "webhook_work"):
            rows = await (await connection.execute(f"SELECT t::text FROM {table} t")).fetchall()  # noqa: S608
            assert rows
            dump += str(rows)
    for secret in (made.push.secret, rotated.secret):
        text = secret.removeprefix("whsec_")
        assert text not in dump + caplog.text
        assert base64.b64decode(text).hex() not in dump


async def test_a_test_says_what_came_of_it_and_moves_nothing(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    made = await editor.create(receiver.url())
    before = await editor.get()
    receiver.behaviour = status(401, b"who are you?")
    delivery = (await editor.webhooks("TestWebhook", name=NAME)).delivery
    assert (delivery.outcome, delivery.status, delivery.detail) == (Outcome.HTTP_STATUS, 401, "who are you?")
    assert (delivery.number, delivery.revision, delivery.attempt) == (1, 0, 1)
    (request,) = receiver.requests
    assert request.json["type"] == "webhook.test"
    assert request.is_signed_by(made.push.secret)
    assert request.headers["webhook-id"] == delivery.message_id
    after = await editor.get()
    assert (after.checkpoint_revision, after.push) == (before.checkpoint_revision, before.push)
    assert [one.number for one in await editor.deliveries()] == [1]


async def test_deliveries_come_in_pages_and_only_the_last_thousand_are_remembered(
    owner: Owner, receiver: HookReceiver, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.webhook_store.MAX_DELIVERIES", 5)
    await editor.create(receiver.url())
    for _ in range(8):
        await editor.webhooks("TestWebhook", name=NAME)
    numbers: list[int] = []
    token = ""
    while True:
        page = await editor.webhooks("ListWebhookDeliveries", parent=NAME, page_size=2, page_token=token)
        assert len(page.deliveries) <= 2
        numbers += [delivery.number for delivery in page.deliveries]
        token = page.next_page_token
        if not token:
            break
    assert numbers == [8, 7, 6, 5, 4]


async def test_a_new_endpoint_counts_for_everything_that_is_committed_after_it(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    made = await editor.create(receiver.url("/old"))
    await owner.put(TIDES, "b1", depth=1)
    await receiver.wait_for(1)
    updated = await editor.subscriptions(
        "UpdateSubscription",
        subscription={"name": NAME, "push": {"endpoint": receiver.url("/new"), "secret": "whsec_mine"}},
        update_mask=["push"],
    )
    assert updated.subscription.push.secret == ""
    await owner.put(TIDES, "b1", depth=2)
    await receiver.wait_for(2)
    assert [request.target for request in receiver.requests] == ["/old", "/new"]
    assert receiver.requests[1].is_signed_by(made.push.secret)


async def test_a_subscription_becomes_a_webhook_and_back(owner: Owner, receiver: HookReceiver, editor: Editor) -> None:
    await editor.subscriptions(
        "CreateSubscription",
        parent="namespaces/tides",
        subscription_id="hook",
        subscription={"start": {"after_revision": 0}},
    )
    revision = await owner.put(TIDES, "b1", depth=1)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await editor.webhooks("TestWebhook", name=NAME)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    pushing = {"name": NAME, "push": {"endpoint": receiver.url()}}
    updated = await editor.subscriptions("UpdateSubscription", subscription=pushing, update_mask=["push"])
    secret = updated.subscription.push.secret
    (request,) = await receiver.wait_for(1)
    assert changes_of([request]) == [("b1", revision)]
    assert request.is_signed_by(secret)
    await editor.get_until(is_idle)
    updated = await editor.subscriptions("UpdateSubscription", subscription={"name": NAME}, update_mask=["push"])
    assert not updated.subscription.HasField("push")
    later = await owner.put(TIDES, "b1", depth=2)
    pulled = await editor.subscriptions("Pull", name=NAME, wait=timedelta(seconds=10))
    assert [delivery.revision for delivery in pulled.deliveries] == [later]
    assert len(receiver.requests) == 1


async def test_a_webhook_that_is_deleted_sends_nothing_and_leaves_nothing(
    owner: Owner, receiver: HookReceiver, editor: Editor, own_url: str
) -> None:
    await editor.create(receiver.url())
    await owner.put(TIDES, "b1", depth=1)
    await receiver.wait_for(1)
    await editor.get_until(is_idle)
    await editor.subscriptions("DeleteSubscription", name=NAME)
    await owner.put(TIDES, "b1", depth=2)
    async with await psycopg.AsyncConnection.connect(own_url) as connection:
        await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
        for table in ("webhooks", "webhook_deliveries", "webhook_work"):
            count = await (await connection.execute(f"SELECT count(*) FROM {table}")).fetchone()  # noqa: S608
            assert count == (0,)
    # The same name again: with a secret of its own, from where it is told to begin.
    made = await editor.create(receiver.url("/again"))
    await receiver.wait_for(3)
    assert [request.target for request in receiver.requests] == ["/hook", "/again", "/again"]
    assert receiver.requests[-1].is_signed_by(made.push.secret)


async def test_what_came_of_a_webhook_is_not_put_down_to_another_of_the_same_name(
    receiver: HookReceiver, make_hooks: MakeHooks
) -> None:
    receiver.behaviour = status(410)
    service = await make_hooks()
    async with service.editor() as editor:
        await editor.create(receiver.url())
        before = await service.webhooks.target("tides", "hook")
        assert before is not None
        unit = feed_pb2.Unit(revision=1, commit_time=Timestamp(seconds=1), changes=[feed_pb2.Change()])
        sent = await service.webhooks.send(before, change_message(before.name, before.uid, "", unit, 0))
        await editor.subscriptions("DeleteSubscription", name=NAME)
        made = await editor.create(receiver.url())
        with pytest.raises(NotFound):
            await service.webhooks.record(before, [(sent, 1)])
        assert made.uid != before.uid
        assert (await editor.get()).push.state == webhook_pb2.PushConfig.ENABLED
        assert await editor.deliveries() == []


async def test_an_endpoint_or_a_policy_that_may_not_be_is_refused_and_nothing_is_made(
    receiver: HookReceiver, editor: Editor
) -> None:
    for endpoint in (
        "http://hooks.example.com/",
        "https://127.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::ffff:10.0.0.1]/",
        "https://localhost/",
        "https://hooks.example.com:25/",
        "https://user:password@hooks.example.com/",
        "",
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await editor.create(endpoint)
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "INVALID_FIELD" in details(raised)
        assert "subscription.push.endpoint" in details(raised)
    for field, refused in {
        "subscription.push.disable_after": {"push": {"disable_after": timedelta(seconds=59)}},
        "subscription.ack_deadline": {"ack_deadline": timedelta(seconds=9)},
        "subscription.retry_policy.min_backoff": {"retry_policy": {"min_backoff": timedelta()}},
    }.items():
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await editor.create(receiver.url(), **refused)  # type: ignore[arg-type]
        assert field in details(raised)
    listed = await editor.subscriptions("ListSubscriptions", parent="namespaces/tides")
    assert list(listed.subscriptions) == []


async def test_a_receiver_that_fails_again_and_again_is_asked_by_one_request_at_a_time(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    open_now = most = 0

    async def fail_slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.01)
        open_now -= 1
        await status(500)(request, writer)

    receiver.behaviour = fail_slowly
    await editor.create(receiver.url(), retry_policy=AT_ONCE)
    await owner.write(TIDES, {("buoy", f"b{number}"): {"depth": number} for number in range(20)})
    await editor.get_until(lambda found: found.push.consecutive_failures >= 25)
    most = 0
    await receiver.wait_for(len(receiver.requests) + 5)
    assert most == 1
    receiver.behaviour = status(204)
    await editor.get_until(is_idle)


async def test_all_webhooks_together_send_no_more_requests_at_a_time_than_there_is_room_for(
    owner: Owner, receiver: HookReceiver, make_hooks: MakeHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.webhook_pushers.MAX_REQUESTS_OF_ALL", 2)
    open_now = most = 0

    async def take_time(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0.01)
        open_now -= 1
        await status(204)(request, writer)

    receiver.behaviour = take_time
    service = await make_hooks()
    await owner.write(TIDES, {("buoy", f"b{number}"): {"depth": number} for number in range(4)})
    async with service.editor() as editor:
        for number in range(4):
            await editor.create(receiver.url(), id=f"hook{number}")
        await receiver.wait_for(16)
    assert 1 <= most <= 2


async def test_what_finds_no_room_for_a_look_up_is_no_attempt_and_is_sent_later(
    owner: Owner, make_hooks: MakeHooks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.lookups.MAX_RUNNING_OF_ONE", 1)
    monkeypatch.setattr("services.stream.lookups.PATIENCE_SECONDS", 0.05)
    released = threading.Event()

    def look_up(host: str, port: int, **more: Any) -> list[tuple[Any, ...]]:
        released.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    receiver = HookReceiver(tmp_path, name="slow.test")
    await receiver.start()
    try:
        service = await make_hooks(receivers=[receiver.opened], get_addresses=look_up)
        before = _crowded_out()
        async with service.editor() as editor:
            await editor.create(receiver.url())
            revision = await owner.write(TIDES, {("buoy", name): {} for name in ("b1", "b2", "b3")})
            async with asyncio.timeout(60):
                while True:
                    if _crowded_out() >= before + 5:
                        break
                    await asyncio.sleep(0.05)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await editor.webhooks("TestWebhook", name=NAME)
            assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
            released.set()
            await editor.get_until(is_idle)
            assert sorted(changes_of(receiver.requests)) == [("b1", revision), ("b2", revision), ("b3", revision)]
            assert [(one.attempt, one.outcome) for one in await editor.deliveries()] == [(1, Outcome.DELIVERED)] * 3
    finally:
        released.set()
        await receiver.stop()


def _crowded_out() -> float:
    return REGISTRY.get_sample_value("strandline_stream_lookups_crowded_out_total") or 0


class _Gate:
    """Holds up a service that has taken something, before it looks whether the webhook is there to send it to."""

    def __init__(self, service: HookService, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()
        look, before = service.webhooks.target, _handed_out()

        async def target(namespace: str, subscription: str) -> Target | None:
            if _handed_out() > before and not self.opened.is_set():
                self.reached.set()
                await self.opened.wait()
            return await look(namespace, subscription)

        monkeypatch.setattr(service.webhooks, "target", target)


def _handed_out() -> float:
    return REGISTRY.get_sample_value("strandline_stream_subscription_deliveries_total") or 0


async def test_what_was_taken_for_a_webhook_that_is_none_any_more_has_used_up_no_attempt(
    owner: Owner, receiver: HookReceiver, make_hooks: MakeHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = await make_hooks()
    gate = _Gate(service, monkeypatch)
    async with service.editor() as editor:
        await editor.create(receiver.url(), retry_policy={"max_attempts": 1})
        revision = await owner.put(TIDES, "b1", depth=1)
        await gate.reached.wait()
        await editor.subscriptions("UpdateSubscription", subscription={"name": NAME}, update_mask=["push"])
        gate.opened.set()
        async with asyncio.timeout(60):
            while not (pulled := await editor.subscriptions("Pull", name=NAME, wait=timedelta(seconds=1))).deliveries:
                pass
        assert [(one.revision, one.delivery_attempt) for one in pulled.deliveries] == [(revision, 1)]
    assert receiver.requests == []


async def test_a_replica_that_stops_gives_back_what_it_took_and_did_not_send(
    owner: Owner, receiver: HookReceiver, make_hooks: MakeHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await make_hooks()
    gate = _Gate(first, monkeypatch)
    async with first.editor() as editor:
        await editor.create(receiver.url(), retry_policy={"max_attempts": 1})
        revision = await owner.put(TIDES, "b1", depth=1)
        await gate.reached.wait()
        stopping = asyncio.create_task(first.stop_pushing())
        await first.pushers_were_told_to_stop()
        gate.opened.set()
        await stopping
        assert receiver.requests == []
        assert (await editor.get()).in_flight_count == 0
        await make_hooks()
        await receiver.wait_for(1)
        await editor.get_until(is_idle)
        assert changes_of(receiver.requests) == [("b1", revision)]
        assert [delivery.attempt for delivery in await editor.deliveries()] == [1]


async def test_a_webhook_goes_on_when_the_hub_that_it_listened_to_ends(
    owner: Owner, receiver: HookReceiver, make_hooks: MakeHooks
) -> None:
    service = await make_hooks()
    async with service.editor() as editor:
        await editor.create(receiver.url())
        await owner.put(TIDES, "b1", depth=1)
        await receiver.wait_for(1)
        # As when answers about the life of the log came from two places at once.
        hub, _ = await service.hubs.attach(TIDES)
        service.hubs.detach(hub)
        service.hubs._forget(hub)
        await owner.put(TIDES, "b1", depth=2)
        await receiver.wait_for(2)
    assert [entity for entity, _ in changes_of(receiver.requests)] == ["b1", "b1"]


async def test_who_may_only_read_may_not_look_after_webhooks(receiver: HookReceiver, make_hooks: MakeHooks) -> None:
    service = await make_hooks()
    async with service.editor() as editor:
        await editor.create(receiver.url())
        async with grpc.aio.insecure_channel(service.grpc_address) as channel:
            viewer = Editor(channel, ANN)
            for method in ("RotateWebhookSecret", "TestWebhook", "EnableWebhook"):
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await viewer.webhooks(method, name=NAME)
                assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await viewer.deliveries()
            assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert receiver.requests == []


async def test_two_replicas_send_every_change_and_keep_the_order_of_each_entity(
    owner: Owner, receiver: HookReceiver, make_hooks: MakeHooks
) -> None:
    first, second = await make_hooks(), await make_hooks()
    async with first.editor() as editor:
        await editor.create(receiver.url(), max_in_flight=4)
        expected = [(f"b{number % 5}", await owner.put(TIDES, f"b{number % 5}", depth=number)) for number in range(40)]
        await editor.get_until(is_idle)
        arrived = changes_of(receiver.requests)
        assert set(arrived) == set(expected)
        for entity in {entity for entity, _ in expected}:
            revisions = [revision for name, revision in arrived if name == entity]
            assert revisions == sorted(revisions)
        assert second.database is not first.database


async def test_a_replica_that_goes_away_leaves_its_work_to_the_next(
    owner: Owner, receiver: HookReceiver, make_hooks: MakeHooks
) -> None:
    first = await make_hooks()
    async with first.editor() as editor:
        await editor.create(receiver.url())
        before = await owner.put(TIDES, "b1", depth=1)
        await editor.get_until(is_idle)
    await first.stop()
    after = await owner.put(TIDES, "b1", depth=2)
    second = await make_hooks()
    async with second.editor() as editor:
        await editor.get_until(is_idle)
    assert changes_of(receiver.requests) == [("b1", before), ("b1", after)]
