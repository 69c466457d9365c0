"""Looking after webhooks: secrets, tests, the log of deliveries, and changing what they are."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from strandline.stream.v1 import feed_pb2, webhook_pb2
from strandline.stream.v1.subscription_service_pb2 import NackRequest

from services.runtime.errors import NotFound
from services.stream.webhook_messages import change_message

from .conftest import TIDES, MakeHooks
from .hooks import AT_ONCE, NAME, Editor, Outcome, changes_of, details, is_idle
from .owner import Owner
from .receiver import HookReceiver, status
from .service import ANN
from .subscribers import refused


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
    await editor.deliveries(1)
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
        subscription={"name": NAME, "push": {"endpoint": receiver.url("/new")}},
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
    no_webhook = (grpc.StatusCode.FAILED_PRECONDITION, "SUBSCRIPTION_DOES_NOT_PUSH")
    for method in ("TestWebhook", "RotateWebhookSecret", "EnableWebhook"):
        assert await refused(editor.webhooks(method, name=NAME)) == no_webhook
    assert await refused(editor.deliveries()) == no_webhook
    pushing = {"name": NAME, "push": {"endpoint": receiver.url()}}
    updated = await editor.subscriptions("UpdateSubscription", subscription=pushing, update_mask=["push"])
    secret = updated.subscription.push.secret
    (request,) = await receiver.wait_for(1)
    assert changes_of([request]) == [("b1", revision)]
    assert request.is_signed_by(secret)
    await editor.get_until(is_idle)
    pushed = (grpc.StatusCode.FAILED_PRECONDITION, "SUBSCRIPTION_PUSHES")
    acks: dict[str, Any] = {"name": NAME, "ack_ids": ["1.0.1"]}
    for method, fields in {
        "Pull": {"name": NAME},
        "Ack": acks,
        "Nack": acks | {"action": NackRequest.RETRY},
        "ModifyAckDeadline": acks | {"ack_deadline": timedelta(seconds=10)},
    }.items():
        assert await refused(editor.subscriptions(method, **fields)) == pushed
    assert await refused(editor.stream().read()) == pushed
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
    for field, fields in {
        "subscription.push.disable_after": {"push": {"disable_after": timedelta(seconds=59)}},
        "subscription.ack_deadline": {"ack_deadline": timedelta(seconds=9)},
        "subscription.retry_policy.min_backoff": {"retry_policy": {"min_backoff": timedelta()}},
    }.items():
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await editor.create(receiver.url(), **fields)  # type: ignore[arg-type]
        assert field in details(raised)
    listed = await editor.subscriptions("ListSubscriptions", parent="namespaces/tides")
    assert list(listed.subscriptions) == []


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


async def test_a_webhook_hears_at_once_of_what_its_owner_does(
    owner: Owner, receiver: HookReceiver, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("webhook_pushers.LOOK_SECONDS", "worker.IDLE_SECONDS"):
        monkeypatch.setattr(f"services.stream.{name}", 3600.0)
    # It looks at nothing by itself from now on.
    revision = await owner.put(TIDES, "b1", depth=1)
    await editor.create(receiver.url())
    await receiver.wait_for(1)
    await editor.get_until(is_idle)
    await editor.subscriptions("Seek", name=NAME, start={"beginning": True})
    await receiver.wait_for(2)
    await editor.get_until(is_idle)
    receiver.behaviour = status(410)
    await owner.put(TIDES, "b2", depth=1)
    await editor.get_until(lambda found: found.push.state == webhook_pb2.PushConfig.DISABLED)
    arrived = len(receiver.requests)
    receiver.behaviour = status(204)
    await editor.webhooks("EnableWebhook", name=NAME)
    await receiver.wait_for(arrived + 1)
    await editor.get_until(is_idle)
    receiver.behaviour = status(500)
    policy = {**AT_ONCE, "max_attempts": 1}
    await editor.subscriptions("UpdateSubscription", subscription={"name": NAME, "retry_policy": policy})
    await owner.put(TIDES, "b3", depth=1)
    await editor.get_until(lambda found: found.parked_count == 1)
    arrived = len(receiver.requests)
    receiver.behaviour = status(204)
    await editor.subscriptions("ReplayParked", name=NAME)
    await receiver.wait_for(arrived + 1)
    assert changes_of(receiver.requests)[:2] == [("b1", revision)] * 2


async def test_a_webhook_that_rests_goes_on_at_once_with_a_secret_that_opens(
    owner: Owner, receiver: HookReceiver, editor: Editor, own_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.webhook_pushers.REST_SECONDS", 3600.0)
    await editor.create(receiver.url())
    async with await psycopg.AsyncConnection.connect(own_url) as connection:
        await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
        await connection.execute("UPDATE webhooks SET secret = 'sealed by a key that is gone'")
    await owner.put(TIDES, "b1", depth=1)
    await editor.get_until(lambda found: found.lag.revisions == 1)
    with pytest.raises(grpc.aio.AioRpcError):
        await editor.webhooks("TestWebhook", name=NAME)
    # For the rest that it has not begun yet: on a slow machine something else may go wrong once more.
    monkeypatch.setattr("services.stream.webhook_pushers.REST_SECONDS", 0.1)
    rotated = await editor.webhooks("RotateWebhookSecret", name=NAME, overlap=timedelta())
    (request,) = await receiver.wait_for(1)
    assert request.is_signed_by(rotated.secret)


async def test_who_changes_its_kind_has_the_defaults_of_the_new_one_unless_told_otherwise(
    receiver: HookReceiver, editor: Editor
) -> None:
    async def update(*mask: str, **fields: Any) -> tuple[int, int, int, int]:
        """Attempts, pauses and deadline in seconds after an update."""
        subscription = {"name": NAME, **fields}
        answer = await editor.subscriptions("UpdateSubscription", subscription=subscription, update_mask=mask)
        found, policy = answer.subscription, answer.subscription.retry_policy
        return policy.max_attempts, policy.min_backoff.seconds, policy.max_backoff.seconds, found.ack_deadline.seconds

    await editor.subscriptions(
        "CreateSubscription",
        parent="namespaces/tides",
        subscription_id="hook",
        subscription={
            "start": {"now": True},
            "ack_deadline": timedelta(seconds=2),
            "retry_policy": {"max_attempts": 3},
        },
    )
    push = {"endpoint": receiver.url()}
    assert await update("push", push=push) == (40, 1, 21600, 10)
    assert await update("retry_policy", retry_policy={"max_attempts": 7}) == (7, 1, 21600, 10)
    assert await update("push", push=push) == (7, 1, 21600, 10)
    assert await update("push") == (10, 1, 600, 10)
    policy = {"max_attempts": 5}
    assert await update(push=push, retry_policy=policy, ack_deadline=timedelta(seconds=30)) == (5, 1, 21600, 30)
    assert await update("push", "ack_deadline", ack_deadline=timedelta(seconds=3)) == (10, 1, 600, 3)


async def test_who_lost_the_answer_that_showed_the_secret_gets_it_by_repeating_the_request(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    create = {
        "parent": "namespaces/tides",
        "subscription_id": "hook",
        "subscription": {"start": {"after_revision": 0}, "push": {"endpoint": receiver.url()}},
        "request_id": "r1",
    }
    secrets = [(await editor.subscriptions("CreateSubscription", **create)).subscription.push.secret for _ in range(2)]
    assert secrets[0] == secrets[1] != ""
    await owner.put(TIDES, "b1", depth=1)
    (request,) = await receiver.wait_for(1)
    assert request.is_signed_by(secrets[0])
    await editor.subscriptions("UpdateSubscription", subscription={"name": NAME}, update_mask=["push"])
    update = {"subscription": {"name": NAME, "push": {"endpoint": receiver.url()}}, "request_id": "r2"}
    answers = [await editor.subscriptions("UpdateSubscription", **update) for _ in range(2)]
    assert answers[0].subscription.push.secret == answers[1].subscription.push.secret not in ("", secrets[0])


@pytest.mark.parametrize("overlap", [timedelta(), timedelta(hours=1)], ids=["at once", "after an hour"])
async def test_a_secret_that_was_replaced_is_not_shown_to_a_repeated_request(
    receiver: HookReceiver, editor: Editor, overlap: timedelta
) -> None:
    create = {
        "parent": "namespaces/tides",
        "subscription_id": "hook",
        "subscription": {"start": {"now": True}, "push": {"endpoint": receiver.url()}},
        "request_id": "r1",
    }
    made = (await editor.subscriptions("CreateSubscription", **create)).subscription
    await editor.webhooks("RotateWebhookSecret", name=NAME, overlap=overlap)
    again = (await editor.subscriptions("CreateSubscription", **create)).subscription
    assert (again.uid, again.push.endpoint, again.push.secret) == (made.uid, receiver.url(), "")


async def test_what_is_only_validated_is_shown_as_it_will_be_but_for_the_secret(
    receiver: HookReceiver, editor: Editor
) -> None:
    asked = {"start": {"now": True}, "push": {"endpoint": receiver.url()}}
    create = {"parent": "namespaces/tides", "subscription_id": "hook", "subscription": asked}
    update = {"subscription": {"name": NAME, "push": {"endpoint": receiver.url()}}}
    for method, fields in (("CreateSubscription", create), ("UpdateSubscription", update)):
        rehearsal = (await editor.subscriptions(method, **fields, validate_only=True)).subscription.push
        outcome = (await editor.subscriptions(method, **fields)).subscription.push
        assert (rehearsal.secret, rehearsal.state) == ("", webhook_pb2.PushConfig.ENABLED)
        outcome.ClearField("secret")
        assert rehearsal == outcome
        # To be made one a second time.
        await editor.subscriptions("UpdateSubscription", subscription={"name": NAME}, update_mask=["push"])
