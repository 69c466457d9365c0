"""What becomes of a webhook whose receiver fails, and of what is not its receiver's fault."""

from __future__ import annotations

import asyncio
import socket
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from prometheus_client import REGISTRY
from strandline.stream.v1 import webhook_pb2

from services.stream.webhooks import Target

from .conftest import TIDES, MakeHooks
from .hooks import AT_ONCE, NAME, Editor, HookService, Outcome, changes_of, is_idle
from .owner import Owner
from .receiver import Counting, HookReceiver, Request, reset, status


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
    # How it fares is remembered a moment after the change is done.
    healed = await editor.get_until(lambda found: is_idle(found) and not found.push.consecutive_failures)
    assert not healed.push.HasField("failing_since")
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
    before = _gone()
    receiver.behaviour = status(410)
    await editor.create(receiver.url(), retry_policy=AT_ONCE)
    first = await owner.put(TIDES, "b1", depth=1)
    disabled = await editor.get_until(lambda found: found.push.state == webhook_pb2.PushConfig.DISABLED)
    assert (disabled.push.disable_reason, disabled.push.HasField("disable_time")) == ("GONE", True)
    async with asyncio.timeout(30):  # it is counted and said a moment after it can be seen
        while True:
            if (_gone(), f"{NAME} is disabled: GONE" in caplog.text) == (before + 1, True):
                break
            await asyncio.sleep(0.02)
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


def _gone() -> float:
    return REGISTRY.get_sample_value("strandline_stream_webhook_disabled_total", {"reason": "GONE"}) or 0


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


async def test_a_receiver_that_fails_again_and_again_is_asked_by_one_request_at_a_time(
    owner: Owner, receiver: HookReceiver, editor: Editor
) -> None:
    counting = receiver.behaviour = Counting(status(500))
    await editor.create(receiver.url(), retry_policy=AT_ONCE)
    await owner.write(TIDES, {("buoy", f"b{number}"): {"depth": number} for number in range(20)})
    await editor.get_until(lambda found: found.push.consecutive_failures >= 25)
    counting.most = 0
    await receiver.wait_for(len(receiver.requests) + 5)
    assert counting.most == 1
    receiver.behaviour = status(204)
    await editor.get_until(is_idle)


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
            assert [(one.attempt, one.outcome) for one in await editor.deliveries(3)] == [(1, Outcome.DELIVERED)] * 3
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
        assert [delivery.attempt for delivery in await editor.deliveries(1)] == [1]
