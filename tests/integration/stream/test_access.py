"""Who may read a feed, and how it ends for one who may not any more."""

from __future__ import annotations

import asyncio
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


async def ended(owner: Owner, stream: StreamService, change: Mapping[tuple[str, str], Data]) -> End:
    """How a feed ends after *change* in ``system``, which must take less than 2 s."""
    await owner.put(TIDES, "a", n=1)
    async with stream.watch(now=True) as reader:
        await reader.next()
        await owner.write(SYSTEM, change)
        began = time.monotonic()
        end = await reader.end(seconds=3)
        assert time.monotonic() - began < 2
    return end


async def test_a_removed_member_stops_reading_within_two_seconds(owner: Owner, stream: StreamService) -> None:
    end = await ended(owner, stream, {MEMBERSHIP: None})
    assert (end.reason, end.resume_after_revision) == (End.ACCESS_REVOKED, 1)


async def test_an_ended_session_stops_reading_within_two_seconds(owner: Owner, stream: StreamService) -> None:
    revoked = {"user": ANN, "expiresAt": int(time.time()) + 600}
    end = await ended(owner, stream, {("revocation", SESSION): revoked})
    assert end.reason == End.ACCESS_REVOKED


async def test_the_feeds_of_a_deleted_namespace_say_so(owner: Owner, stream: StreamService) -> None:
    deleting = {"epoch": TIDES.epoch, "state": "DELETING", "massChangeGuard": "OFF"}
    end = await ended(owner, stream, {("namespace", "tides"): deleting})
    assert end.reason == End.NAMESPACE_DELETED


async def restart(nats_server: Nats) -> None:
    """Bring the bus back, and give everybody the second after which they reconnect."""
    nats_server.start()
    await asyncio.sleep(1.5)


async def test_a_deletion_is_not_taken_for_a_new_life_of_the_log_without_the_bus(
    owner: Owner, make_stream: MakeStream, nats_server: Nats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.hubs.POLL_SECONDS", 0.01)  # the hub hears of it before the copy does
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
            began = time.monotonic()
            end = await reader.end(seconds=3)
            assert time.monotonic() - began < 2
        finally:
            await restart(nats_server)
    assert end.reason == End.NAMESPACE_DELETED


async def test_a_feed_ends_when_its_token_does(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.permit.LEEWAY", 0)
    async with stream.watch(token=access_token(lifetime=2), now=True) as reader:
        await reader.next()
        end = await reader.end(seconds=5)
    assert end.reason == End.TOKEN_EXPIRED


async def test_nothing_is_delivered_while_access_cannot_be_verified_and_everything_after(
    owner: Owner, stream: StreamService
) -> None:
    async with stream.watch(now=True) as reader:
        await reader.next()
        await owner.stop()  # which is the user service, too
        await asyncio.sleep(2)
        await owner.put(TIDES, "a", n=1)  # still announced on the bus
        reading = asyncio.ensure_future(reader.next())
        await asyncio.sleep(1)
        assert not reading.done()
        await owner.start()
        assert [unit.revision for unit in (await asyncio.wait_for(reading, 5)).units.units] == [1]


async def test_nobody_begins_a_feed_while_access_cannot_be_verified(
    owner: Owner, stream: StreamService, nats_server: Nats
) -> None:
    await owner.put(TIDES, "a", n=1)
    await owner.stop()  # which is the user service, too
    nats_server.kill()
    try:
        await asyncio.sleep(2)
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
        end = await reader.end(seconds=8)
    assert end.reason == End.ACCESS_UNVERIFIABLE
    await owner.start()
