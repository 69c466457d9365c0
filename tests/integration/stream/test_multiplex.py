"""Many watches on one connection, over gRPC and over WebSocket."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from strandline.stream.v1 import feed_pb2
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest, WatchRequest

from services.runtime.call import Namespace
from services.stream.envelopes import OfWatch

from .conftest import TIDES, MakeStream, found
from .connection import TRANSPORTS, URL, Client, connect
from .owner import SYSTEM, Owner
from .service import ANN, SESSION, StreamService, access_token, entities_of

End = feed_pb2.End
REEFS = Namespace("reefs", "0000beef")


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
            answers = progress(client)
            while True:
                if progress(client) > answers:  # between any two changes it is asked, and answers
                    break
                await asyncio.sleep(0.001)
        units = await reader.until(60)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert [unit.revision for unit in units] == list(range(1, 61))


def progress(client: Client) -> int:
    """How often a watch of *client* was told where it is."""
    return sum(said.message.HasField("progress") for said in client.received)


async def test_a_watch_that_is_asked_inside_a_snapshot_answers_with_an_empty_page(
    owner: Owner, stream: StreamService
) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:02}"): {"n": n} for n in range(45)})
    async with connect(stream) as client:
        owner.pages.clear()
        await client.create("w", snapshot=True)
        await client.send(progress={"watch_id": "w"})
        assert (await client.next("w")).HasField("created")
        reader = client.reader("w")
        pages = [list((await reader.next()).snapshot_page.entities)]
        assert pages == [[]]
        owner.pages.set()
        while (message := await reader.next()).HasField("snapshot_page"):
            assert message.snapshot_page.resume_token
            pages.append(list(message.snapshot_page.entities))
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


def let_pass(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tokens be so much older to those who look after watches and connections, which end 2 s later."""
    monkeypatch.setattr("services.stream.multiplex.EXPIRY_SECONDS", 2)
    for module in ("services.stream.permit", "services.stream.multiplex"):
        monkeypatch.setattr(f"{module}.LEEWAY", -seconds)


async def test_watches_end_with_their_token_and_then_the_connection(
    stream: StreamService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(stream, "grpc") as client:
        reader = await client.open("w", now=True)
        let_pass(600, monkeypatch)
        assert (await reader.end()).reason == End.TOKEN_EXPIRED
        assert await client.failure() == "TOKEN_INVALID"


async def test_a_refreshed_connection_outlives_its_first_token(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(stream, "websocket", access_token(lifetime=200)) as client:
        reader, other = await client.open("w", now=True), await client.open("other", now=True)
        await other.next()
        await client.send(refresh={"access_token": access_token()})
        await client.send(refresh={"access_token": access_token(lifetime=100)})  # an older one takes nothing back
        await client.send(cancel={"watch_id": "other"})
        while not (await client.next("other")).HasField("canceled"):  # all of that was taken
            pass
        let_pass(300, monkeypatch)
        await client.open("another", now=True)
        await client.send(cancel={"watch_id": "another"})  # with each watch that ends it looks at the clock
        await owner.put(TIDES, "a", n=1)
        await reader.until(1)
        await client.open("third", now=True)


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


# Frames


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
