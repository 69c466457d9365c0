"""Who may read a feed, and how it ends for one who may not any more."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping

import grpc
import pytest
from strandline.stream.v1 import feed_pb2

from tests.nats import Nats

from .conftest import TIDES, MakeStream
from .owner import SYSTEM, Data, Owner
from .service import ANN, SESSION, StreamService, access_token, reason

End = feed_pb2.End
STRANGER = "0192f0a0-0000-7000-8000-00000000000f"
MEMBERSHIP = ("membership", f"tides~{ANN}")


async def test_a_stranger_hears_not_found_and_no_token_unauthenticated(stream: StreamService) -> None:
    for token, code in ((access_token(STRANGER), "NOT_FOUND"), ("no token", "UNAUTHENTICATED")):
        async with stream.watch(token=token, now=True) as reader:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await reader.next()
        assert raised.value.code().name == code


@pytest.fixture
async def listening(make_stream: MakeStream, monkeypatch: pytest.MonkeyPatch) -> StreamService:
    """One that learns only what the bus tells it: it looks at nothing by itself, and at no clock."""
    for name in ("runtime.access.HEARTBEAT_SECONDS", "runtime.access.STALE_SECONDS", "stream.hubs.POLL_SECONDS"):
        monkeypatch.setattr(f"services.{name}", 3600.0)
    return await make_stream()


async def ended(owner: Owner, stream: StreamService, change: Mapping[tuple[str, str], Data]) -> End:
    """How a feed, which has had everything, ends when *change* in ``system`` is told on the bus."""
    async with stream.watch(now=True) as reader:
        await reader.next()
        hearing = asyncio.create_task(reader.until(1))
        while not hearing.done():  # what is told before the bus is there is lost
            head = await owner.put(TIDES, "a", n=random.random())
            await asyncio.sleep(0.02)
        await hearing
        await reader.until(head)
        await owner.write(SYSTEM, change)
        end = await reader.end()
        assert end.resume_after_revision == head
    return end


async def test_a_removed_member_stops_reading_at_once(owner: Owner, listening: StreamService) -> None:
    assert (await ended(owner, listening, {MEMBERSHIP: None})).reason == End.ACCESS_REVOKED


async def test_an_ended_session_stops_reading_at_once(owner: Owner, listening: StreamService) -> None:
    revoked = {"user": ANN, "expiresAt": int(time.time()) + 600}
    assert (await ended(owner, listening, {("revocation", SESSION): revoked})).reason == End.ACCESS_REVOKED


async def test_the_feeds_of_a_deleted_namespace_say_so(owner: Owner, listening: StreamService) -> None:
    deleting = {"epoch": TIDES.epoch, "state": "DELETING", "massChangeGuard": "OFF"}
    assert (await ended(owner, listening, {("namespace", "tides"): deleting})).reason == End.NAMESPACE_DELETED


async def restart(nats_server: Nats) -> None:
    """Bring the bus back, and give everybody the second after which they reconnect."""
    nats_server.start()
    await asyncio.sleep(1.5)


async def test_a_deletion_is_not_taken_for_a_new_life_of_the_log_without_the_bus(
    owner: Owner, make_stream: MakeStream, nats_server: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.hubs.POLL_SECONDS", 0.01)  # the hub hears of it before the copy does
    monkeypatch.setattr("services.stream.permit.DELETION_SECONDS", 10.0)  # which may take its time
    stream = await make_stream()
    await owner.put(TIDES, "a", n=1)
    async with stream.watch(now=True) as reader:
        await reader.next()
        nats_server.kill()
        try:
            deleting = {"epoch": TIDES.epoch, "state": "DELETING", "massChangeGuard": "OFF"}
            await owner.write(SYSTEM, {("namespace", "tides"): deleting})
            # As the purge does.
            await owner.execute("UPDATE heads SET epoch = '~' || epoch WHERE namespace = %s", "tides")
            end = await reader.end()
        finally:
            await restart(nats_server)
    assert end.reason == End.NAMESPACE_DELETED


async def test_a_feed_ends_when_its_token_does(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stream.watch(now=True) as reader:
        await reader.next()
        monkeypatch.setattr("services.stream.permit.LEEWAY", -600)  # as if its ten minutes were over
        end = await reader.end()
    assert end.reason == End.TOKEN_EXPIRED


async def test_nothing_is_delivered_while_access_cannot_be_verified_and_everything_after(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.permit.UNVERIFIABLE_SECONDS", 3600.0)
    async with stream.watch(now=True) as reader:
        await reader.next()
        await owner.stop()  # which is the user service, too
        await stream.is_stale()
        await owner.put(TIDES, "a", n=1)  # still announced on the bus
        reading = asyncio.create_task(reader.until(1))
        await asyncio.sleep(1)
        assert reader.units == []
        await owner.start()
        assert [unit.revision for unit in await reading] == [1]


async def test_nobody_begins_a_feed_while_access_cannot_be_verified(
    owner: Owner, stream: StreamService, nats_server: Nats
) -> None:
    await owner.put(TIDES, "a", n=1)
    await owner.stop()  # which is the user service, too
    nats_server.kill()
    try:
        await stream.is_stale()
        for start in ({"now": True}, {"after_revision": 0}, {"snapshot": True}):
            async with stream.watch(**start) as reader:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await reader.next()
            assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
            assert reason(raised.value)[0] == "ACCESS_UNVERIFIABLE"
        async with stream.get("now=true") as response:
            assert (response.status, (await response.json(content_type=None))["reason"]) == (503, "ACCESS_UNVERIFIABLE")
    finally:
        await restart(nats_server)
        await owner.start()


async def test_a_feed_ends_when_access_could_not_be_verified_for_long(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.permit.UNVERIFIABLE_SECONDS", 1.0)
    async with stream.watch(now=True) as reader:
        await reader.next()
        await owner.stop()
        end = await reader.end()
    assert end.reason == End.ACCESS_UNVERIFIABLE
    await owner.start()
