"""Webhooks, from a commit to a receiver and back: signed, in the order of each entity, at least once."""

from __future__ import annotations

import asyncio
import random

import pytest
from google.protobuf import json_format
from strandline.stream.v1 import feed_pb2, webhook_pb2

from .conftest import TIDES, MakeHooks
from .hooks import AT_ONCE, NAME, Editor, changes_of, is_idle
from .owner import Owner
from .receiver import Counting, HookReceiver, Request, reset, status


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


async def test_all_webhooks_together_send_no_more_requests_at_a_time_than_there_is_room_for(
    owner: Owner, receiver: HookReceiver, make_hooks: MakeHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.webhook_pushers.MAX_REQUESTS_OF_ALL", 2)
    counting = receiver.behaviour = Counting(status(204))
    service = await make_hooks()
    await owner.write(TIDES, {("buoy", f"b{number}"): {"depth": number} for number in range(4)})
    async with service.editor() as editor:
        for number in range(4):
            await editor.create(receiver.url(), id=f"hook{number}")
        await receiver.wait_for(16)
    assert 1 <= counting.most <= 2


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
