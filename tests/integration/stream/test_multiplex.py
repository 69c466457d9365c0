"""Many watches on one connection, over gRPC and over WebSocket."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from strandline.stream.v1 import feed_pb2
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest, WatchRequest

from services.runtime.call import Namespace
from services.stream.envelopes import OfWatch

from .conftest import TIDES, MakeStream, found
from .connection import URL, connect, reason_of
from .owner import SYSTEM, Owner
from .service import ANN, SESSION, StreamService, access_token, entities_of

End = feed_pb2.End
REEFS = Namespace("reefs", "0000beef")
TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "websocket"])


@TRANSPORTS
async def test_each_watch_is_a_feed_of_its_own(owner: Owner, stream: StreamService, transport: str) -> None:
    await owner.put(TIDES, "a", n=1)
    async with connect(stream, transport) as client:
        all_, buoys, tail = [
            await client.open("all", after_revision=0),
            await client.open("buoys", types=["buoy"], filter="data.n > 1", after_revision=0),
            await client.open("tail", now=True),
        ]
        await owner.put(TIDES, "a", n=2)
        await owner.write(TIDES, {("ship", "s"): {"n": 5}})
        assert [unit.revision for unit in await all_.until(3)] == [1, 2, 3]
        assert [unit.revision for unit in await tail.until(3)] == [2, 3]
        assert [unit.changes[0].kind for unit in await buoys.until(2)] == [feed_pb2.Change.ENTERED]


@TRANSPORTS
async def test_watches_of_several_namespaces_share_a_connection(
    owner: Owner, stream: StreamService, transport: str
) -> None:
    await found(owner, REEFS)
    async with connect(stream, transport) as client:
        tides = await client.open("t", now=True)
        reefs = await client.open("r", "reefs", now=True)
        await owner.put(TIDES, "a", n=1)
        await tides.until(1)
        await owner.put(REEFS, "r", n=2)
        ((change,),) = [unit.changes for unit in await reefs.until(1)]
        assert (change.entity.name, reefs.last and reefs.last.epoch) == (
            "namespaces/reefs/types/buoy/entities/r",
            REEFS.epoch,
        )


@TRANSPORTS
async def test_created_says_where_the_log_is_before_anything_else_is_said(
    owner: Owner, stream: StreamService, transport: str
) -> None:
    await owner.put(TIDES, "a", n=1)
    async with connect(stream, transport) as client:
        await client.create("w", after_revision=0)
        created = (await client.next("w")).created
        assert (created.head_revision, created.epoch) == (1, TIDES.epoch)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "a stranger's namespace": ("elsewhere", {"now": True}, "NOT_FOUND"),
    "the log of access for no administrator": ("system", {"now": True}, "NOT_FOUND"),
    "no namespace": ("Not one", {"now": True}, "INVALID_FIELD"),
    "no start": ("tides", {}, "START_REQUIRED"),
    "a negative revision": ("tides", {"after_revision": -1}, "INVALID_FIELD"),
    "a revision of the future": ("tides", {"after_revision": 7}, "FUTURE_REVISION"),
    "another life": ("tides", {"after_revision": 0, "epoch": "deadbeef"}, "EPOCH_CHANGED"),
    "a filter that does not parse": ("tides", {"now": True, "filter": "data.a ="}, "INVALID_FIELD"),
    "a forged resume token": ("tides", {"resume_token": "abc"}, "INVALID_FIELD"),
}


@TRANSPORTS
async def test_a_watch_that_cannot_be_is_canceled_for_the_reason_of_an_error_and_harms_no_other(
    owner: Owner, stream: StreamService, transport: str
) -> None:
    async with connect(stream, transport) as client:
        good = await client.open("good", now=True)
        for watch_id, (namespace, watch, _) in zip(map(str, range(len(REFUSED))), REFUSED.values(), strict=True):
            await client.create(watch_id, namespace, **watch)
        reasons = [await client.canceled(str(number)) for number in range(len(REFUSED))]
        assert reasons == [reason for _, _, reason in REFUSED.values()]
        await owner.put(TIDES, "a", n=1)
        await good.until(1)


@TRANSPORTS
async def test_a_canceled_watch_is_silent_and_its_id_is_free(
    owner: Owner, stream: StreamService, transport: str
) -> None:
    async with connect(stream, transport) as client:
        first, other = await client.open("w", now=True), await client.open("other", now=True)
        await client.send(cancel={"watch_id": "w"})
        while (response := await client.next("w")).HasField("message"):
            pass
        assert response.canceled.status.code == 1
        await owner.put(TIDES, "a", n=1)
        await other.until(1)
        assert len([said for said in client.received if said.watch_id == "w" and said.message.units.units]) == 0
        second = await client.open("w", after_revision=0)
        assert [unit.revision for unit in await second.until(1)] == [1]
    assert first is not second


@TRANSPORTS
async def test_a_watch_that_is_not_there_cannot_be_canceled_or_asked(stream: StreamService, transport: str) -> None:
    async with connect(stream, transport) as client:
        await client.send(cancel={"watch_id": "x"})
        assert await client.canceled("x") == "NOT_FOUND"
        await client.send(progress={"watch_id": "y"})
        assert await client.canceled("y") == "NOT_FOUND"
        await client.open("x", now=True)  # the connection lives


async def test_a_watch_that_is_canceled_while_it_is_opened_leaves_nothing_behind(
    owner: Owner, stream: StreamService
) -> None:
    async with connect(stream) as client:
        for number in range(20):
            await client.create(str(number), now=True)
            await client.send(cancel={"watch_id": str(number)})
        for number in range(20):
            while not (response := await client.next(str(number))).HasField("canceled"):
                pass
            assert response.canceled.status.code == 1
        await stream.emptied()


async def test_the_client_that_goes_takes_its_watches_along(owner: Owner, stream: StreamService) -> None:
    for transport in ("grpc", "websocket"):
        async with connect(stream, transport) as client:
            for number in range(5):
                await client.open(str(number), now=True)
            assert stream.open_feeds == 5
        await stream.emptied()


async def test_who_asks_for_nothing_more_still_reads(owner: Owner, stream: StreamService) -> None:
    async with connect(stream) as client:
        reader = await client.open("w", now=True)
        await client.done()
        await owner.put(TIDES, "a", n=1)
        await reader.until(1)
        await owner.write(SYSTEM, {("membership", f"tides~{ANN}"): None})
        assert (await reader.end()).reason == End.ACCESS_REVOKED
        assert await client.failure() == ""  # and nothing is left to say


# Progress on demand


@TRANSPORTS
async def test_a_watch_that_is_asked_says_where_it_is(owner: Owner, stream: StreamService, transport: str) -> None:
    await owner.put(TIDES, "a", n=1)
    async with connect(stream, transport) as client:
        reader = await client.open("w", filter="data.n > 100", now=True)
        assert (await reader.next()).HasField("progress")
        for revision in range(2, 6):
            await owner.put(TIDES, "a", n=revision)
            async with asyncio.timeout(15):
                while True:  # nobody pushes changes that do not match
                    await client.send(progress={"watch_id": "w"})
                    if (message := await reader.next()).revision == revision:
                        break
            assert message.HasField("progress")
            assert message.progress.head_revision >= revision


async def test_progress_never_claims_a_change_that_was_not_sent_before(owner: Owner, stream: StreamService) -> None:
    async with connect(stream) as client:
        reader = await client.open("w", now=True)  # it checks that ranges join up and units are dense

        async def ask() -> None:
            while True:
                await client.send(progress={"watch_id": "w"})
                await asyncio.sleep(0)

        asking = asyncio.create_task(ask())
        for n in range(60):
            await owner.put(TIDES, f"b{n % 3}", n=n)
        units = await reader.until(60)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert [unit.revision for unit in units] == list(range(1, 61))
        answers = [said for said in client.received if said.message.HasField("progress")]
        assert len(answers) > 10


async def test_a_watch_that_is_asked_inside_a_snapshot_answers_with_an_empty_page(
    owner: Owner, stream: StreamService
) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:02}"): {"n": n} for n in range(45)})
    async with connect(stream) as client:
        await client.create("w", snapshot=True)
        await client.send(progress={"watch_id": "w"})
        assert (await client.next("w")).HasField("created")
        reader = client.reader("w")
        pages = []
        while (message := await reader.next()).HasField("snapshot_page"):
            assert message.snapshot_page.resume_token
            pages.append(list(message.snapshot_page.entities))
        assert [] in pages
        assert sum(map(len, pages)) == message.snapshot_done.count == 45


# Who is on the other side


@TRANSPORTS
async def test_a_removed_member_loses_the_watches_of_that_namespace_alone(
    owner: Owner, stream: StreamService, transport: str
) -> None:
    await found(owner, REEFS)
    async with connect(stream, transport) as client:
        tides, reefs = await client.open("t", now=True), await client.open("r", "reefs", now=True)
        await owner.write(SYSTEM, {("membership", f"tides~{ANN}"): None})
        assert (await tides.end()).reason == End.ACCESS_REVOKED
        await owner.put(REEFS, "a", n=1)
        await reefs.until(1)


@TRANSPORTS
async def test_an_ended_session_loses_all_its_watches_and_opens_none(
    owner: Owner, stream: StreamService, transport: str
) -> None:
    async with connect(stream, transport) as client:
        readers = [await client.open(str(number), now=True) for number in range(3)]
        revoked = {"user": ANN, "expiresAt": int(time.time()) + 600}
        await owner.write(SYSTEM, {("revocation", SESSION): revoked})
        for reader in readers:
            assert (await reader.end()).reason == End.ACCESS_REVOKED
        await client.create("late", now=True)
        assert await client.canceled("late") == "TOKEN_INVALID"


@pytest.fixture
def short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.stream.permit.LEEWAY", 0)
    monkeypatch.setattr("services.stream.multiplex.LEEWAY", 0)
    monkeypatch.setattr("services.stream.multiplex.EXPIRY_SECONDS", 2)


@pytest.mark.usefixtures("short_lives")
async def test_watches_end_with_their_token_and_then_the_connection(stream: StreamService) -> None:
    async with connect(stream, "grpc", access_token(lifetime=3)) as client:
        reader = await client.open("w", now=True)
        assert (await reader.end()).reason == End.TOKEN_EXPIRED
        assert await client.failure() == "TOKEN_INVALID"


@pytest.mark.usefixtures("short_lives")
async def test_a_refreshed_connection_outlives_its_first_token(owner: Owner, stream: StreamService) -> None:
    first = access_token(lifetime=5)
    expires = time.time() + 5
    async with connect(stream, "websocket", first) as client:
        reader = await client.open("w", now=True)
        await client.send(refresh={"access_token": access_token()})
        await client.send(refresh={"access_token": access_token(lifetime=1)})  # an older one takes nothing back
        await asyncio.sleep(expires + 1 - time.time())
        await owner.put(TIDES, "a", n=1)
        await reader.until(1)
        await client.open("another", now=True)


BAD_TOKENS = {
    "another user's": lambda: access_token(user="0192f0a0-0000-7000-8000-00000000000f"),
    "another session's": lambda: access_token(session="0192f0a0-0000-7000-8000-00000000000f"),
    "an expired one": lambda: access_token(lifetime=-60),
    "none": lambda: "no token",
}


@TRANSPORTS
@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_a_refresh_with_a_token_of_somebody_else_ends_the_connection(
    stream: StreamService, transport: str, token: object
) -> None:
    assert callable(token)
    async with connect(stream, transport) as client:
        reader = await client.open("w", now=True)
        await client.send(refresh={"access_token": token()})
        assert (await reader.end()).reason == End.REQUEST_INVALID
        assert await client.failure() == "TOKEN_INVALID"
    await stream.emptied()


@TRANSPORTS
async def test_a_drain_ends_every_watch_and_then_the_connection(
    owner: Owner, stream: StreamService, transport: str
) -> None:
    await owner.put(TIDES, "a", n=1)
    async with connect(stream, transport) as client, connect(stream, transport) as idle:
        await idle.open("w", now=True)
        await idle.send(cancel={"watch_id": "w"})
        readers = [await client.open(str(number), after_revision=0) for number in range(3)]
        for reader in readers:
            await reader.until(1)
        draining = asyncio.create_task(stream.drain())
        for reader in readers:
            end = await reader.end()
            assert (end.reason, end.resume_after_revision) == (End.DRAINING, 1)
        assert await client.failure() == ""
        await idle.over()
        if client.socket is not None:
            assert client.socket.close_code == aiohttp.WSCloseCode.GOING_AWAY
        await draining


# Limits


@TRANSPORTS
async def test_the_watch_after_the_hundredth_is_refused_and_fits_when_one_has_gone(
    stream: StreamService, transport: str
) -> None:
    async with connect(stream, transport) as client:
        for number in range(101):
            await client.create(str(number), now=True)
        assert await client.canceled("100") == "TOO_MANY_WATCHES"
        await client.send(cancel={"watch_id": "7"})
        while not (await client.next("7")).HasField("canceled"):
            pass
        await client.open("7", now=True)


@TRANSPORTS
async def test_a_watch_id_that_is_in_use_ends_the_connection(stream: StreamService, transport: str) -> None:
    async with connect(stream, transport) as client:
        reader = await client.open("w", now=True)
        await client.create("w", after_revision=0)
        assert (await reader.end()).reason == End.REQUEST_INVALID
        assert await client.failure() == "ALREADY_EXISTS"


@TRANSPORTS
@pytest.mark.parametrize("watch_id", ["", "a b", "ä", "x" * 65, "a\n"])
async def test_a_watch_id_is_short_and_plain(stream: StreamService, transport: str, watch_id: str) -> None:
    async with connect(stream, transport) as client:
        await client.create(watch_id, now=True)
        assert await client.failure() == "INVALID_FIELD"


@TRANSPORTS
async def test_a_request_of_nothing_ends_the_connection(stream: StreamService, transport: str) -> None:
    async with connect(stream, transport) as client:
        await client.send()
        assert await client.failure() == "INVALID_FIELD"


async def test_a_request_of_half_a_megabyte_ends_the_connection(stream: StreamService) -> None:
    async with connect(stream) as client:
        reader = await client.open("w", now=True)
        await client.create("big", filter="x" * 500_000)
        assert (await reader.end()).reason == End.REQUEST_INVALID
        assert await client.failure() == "INVALID_FIELD"
    async with connect(stream, "websocket") as client:
        with suppress(ConnectionError):  # closed before it has arrived
            await client.create("big", filter="x" * 500_000)
        await client.over()
    await stream.emptied()


BAD_FRAMES = {
    "no JSON": ("{", "INVALID_FIELD"),
    "no object": ("[1]", "INVALID_FIELD"),
    "an unknown field": ('{"subscribe": {}}', "UNKNOWN_FIELD"),
    "of a watch that there is": ('{"create": {"watchId": "w", "watch": {"frm": 1}}}', "UNKNOWN_FIELD"),
    "of no watch": ('{"create": {"watchId": "a b", "watch": {"frm": 1}}}', "INVALID_FIELD"),
    "a key twice": ('{"cancel": {"watchId": "a", "watchId": "b"}}', "INVALID_FIELD"),
    "two requests at once": ('{"cancel": {"watchId": "a"}, "progress": {"watchId": "a"}}', "INVALID_FIELD"),
    "nested without end": ("[" * 60_000, "INVALID_FIELD"),
    "bytes": (b'{"cancel": {"watchId": "a"}}', "INVALID_FIELD"),
}


@pytest.mark.parametrize(("frame", "reason"), BAD_FRAMES.values(), ids=BAD_FRAMES)
async def test_a_frame_that_is_no_request_ends_the_connection_and_says_why(
    stream: StreamService, frame: str | bytes, reason: str
) -> None:
    async with connect(stream, "websocket") as client:
        reader = await client.open("w", now=True)
        assert client.socket is not None
        await (client.socket.send_str(frame) if isinstance(frame, str) else client.socket.send_bytes(frame))
        assert (await reader.end()).reason == End.REQUEST_INVALID
        assert await client.failure() == reason
        assert client.socket.close_code == aiohttp.WSCloseCode.POLICY_VIOLATION


async def test_a_frame_that_misfits_is_refused_as_its_watch_and_leaves_the_others_alone(
    owner: Owner, stream: StreamService
) -> None:
    async with connect(stream, "websocket") as client:
        reader = await client.open("w", now=True)
        assert client.socket is not None
        for field, wrong in {"types": "buoy", "frm": 1, "progressInterval": "1h"}.items():
            watch = {"parent": "namespaces/tides", "now": True, field: wrong}
            await client.socket.send_json({"create": {"watchId": "bad", "watch": watch}})
            refusal = await client.next("bad")
            assert reason_of(refusal) in ("INVALID_FIELD", "UNKNOWN_FIELD")
            assert refusal.canceled.status.message.replace("'", "").find(f"create.watch.{field[:4]}") >= 0
        await client.open("bad", now=True)  # the id is free
        await owner.put(TIDES, "a", n=1)
        await reader.until(1)


@TRANSPORTS
async def test_what_watches_were_asked_with_is_bounded_in_sum(
    stream: StreamService, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.multiplex.MAX_HELD_BYTES", 100_000)
    ids = [f"buoy/{number:0100}" for number in range(350)]  # 37 kB
    async with connect(stream, transport) as client:
        await client.open("a", now=True, ids=ids)
        await client.open("b", now=True, ids=ids)
        await client.create("c", now=True, ids=ids)
        assert await client.canceled("c") == "WATCHES_TOO_LARGE"
        await client.send(cancel={"watch_id": "a"})
        while not (await client.next("a")).HasField("canceled"):
            pass
        await client.open("c", now=True, ids=ids)


async def test_the_frames_are_the_json_of_the_messages(owner: Owner, stream: StreamService) -> None:
    await owner.put(TIDES, "a", n=1)
    async with stream.session() as session, session.ws_connect(URL) as socket:
        watch = {"parent": "namespaces/tides", "after_revision": 0, "types": ["buoy"]}  # snake_case is taken, too
        await socket.send_json({"create": {"watch_id": "a", "watch": watch}})
        assert await socket.receive_json(timeout=15) == {
            "watchId": "a",
            "created": {"headRevision": "1", "epoch": TIDES.epoch},
        }
        said = await socket.receive_json(timeout=15)
        async with stream.get("after_revision=0") as response:
            line = await asyncio.wait_for(response.content.readline(), 15)
        assert said == {"watchId": "a", "message": json.loads(line)}
        await socket.send_json({"cancel": {"watchId": "b"}})
        refused = await socket.receive_json(timeout=15)
        assert refused["canceled"]["status"]["code"] == 5
        assert refused["canceled"]["status"]["details"][0]["reason"] == "NOT_FOUND"


async def test_many_watches_over_http_are_a_websocket_or_nothing(stream: StreamService) -> None:
    async with stream.session() as session, session.get(URL) as response:
        problem = await response.json(content_type="application/problem+json")
        assert (response.status, problem["reason"]) == (426, "UPGRADE_REQUIRED")
    async with stream.session(token="") as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            await session.ws_connect(URL)
    assert raised.value.status == 401
    async with stream.session() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            await session.ws_connect(URL, headers={"origin": "https://evil.example"})
    assert raised.value.status == 403


# Fair, and bounded


async def test_a_watch_that_catches_up_does_not_hold_up_another(owner: Owner, make_stream: MakeStream) -> None:
    stream = await make_stream(ring_bytes=50_000)
    await found(owner, REEFS)
    for n in range(40):
        await owner.put(TIDES, "a", n=n, text="x" * 200_000)  # 8 MB, none of it in the ring
    async with connect(stream) as client:
        live = await client.open("live", "reefs", now=True)
        # Nothing is read until the commit is known, or all that is behind might be through before it.
        client.reading.clear()
        await client.create("behind", after_revision=0)
        await owner.put(REEFS, "a", n=1)
        async with stream.watch("reefs", after_revision=0) as other:
            await other.until(1)
        client.reading.set()
        await live.until(1)
        assert (await client.next("behind")).HasField("created")
        behind = client.reader("behind")
        await behind.until(40)
        order = [said.watch_id for said in client.received if said.message.units.units]
        assert order.index("live") < len(order) - 1, order


async def test_a_connection_that_is_not_read_holds_cursors_and_everything_arrives_when_it_is(
    owner: Owner, make_stream: MakeStream
) -> None:
    stream = await make_stream(ring_bytes=200_000)
    async with connect(stream) as client:
        readers = [await client.open(str(number), now=True) for number in range(10)]
        for reader in readers:
            await reader.next()
        client.reading.clear()
        for n in range(150):
            await owner.put(TIDES, "a", n=n, text="x" * 20_000)  # 3 MB for each of them: far more than is on the way
        gc.collect()
        held = sum(isinstance(each, OfWatch) for each in gc.get_objects())
        assert held < len(readers), "not one each, and no queue of them"
        client.reading.set()
        for reader in readers:
            units = await reader.until(150, seconds=30)
            assert [unit.revision for unit in units] == list(range(1, 151))
        assert len(entities_of(readers[0].units)) == 1


async def test_who_reads_nothing_and_asks_for_what_is_refused_is_held_up(stream: StreamService) -> None:
    asked = 0

    async def requests() -> AsyncIterator[WatchManyRequest]:
        nonlocal asked
        for number in range(400):
            asked += 1
            watch = WatchRequest(parent="namespaces/Not one")
            yield WatchManyRequest(create=WatchManyRequest.Create(watch_id=str(number), watch=watch))
            await asyncio.sleep(0)  # let it be refused

    async with stream.connection() as connection:
        reading = asyncio.create_task(connection.read(requests()))
        deadline = time.monotonic() + 15
        while asked < 100:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # it could ask for all of them meanwhile
        assert asked <= 202
        async with asyncio.timeout(30):
            refused = [response async for response in connection.responses()]
            await reading
    assert len(refused) == asked == 400
