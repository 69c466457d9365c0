"""Many watches on one connection: what is refused to one watch, what ends the connection, and how much there can be."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from strandline.stream.v1 import feed_pb2

from .conftest import TIDES
from .connection import TRANSPORTS, URL, connect, fields_of, reason_of
from .owner import Owner
from .service import StreamService

End = feed_pb2.End

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
async def test_what_is_wrong_in_a_watch_is_named_by_its_path_in_the_request(
    stream: StreamService, transport: str
) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "start": {},
        "types[1]": {"now": True, "types": ["buoy", "Buoy"]},
        "types": {"now": True, "types": ["buoy"], "ids": ["buoy/a"]},
        "ids[0]": {"now": True, "ids": ["a"]},
        "filter": {"now": True, "filter": "data.a ="},
        "read_mask": {"now": True, "read_mask": ["data..x"]},
        "progress_interval": {"now": True, "progress_interval": {"seconds": 7200}},
        "after_revision": {"after_revision": -1},
        "resume_token": {"resume_token": "abc"},
        "parent": {"parent": "tides", "now": True},
    }
    async with connect(stream, transport) as client:
        for field, watch in wrong.items():
            await client.create("w", **watch)
            refusal = await client.next("w")
            assert fields_of(refusal) == [f"create.watch.{field}"]
            assert refusal.canceled.status.message.startswith(f"create.watch.{field}: ")


@TRANSPORTS
async def test_a_watch_that_is_not_there_cannot_be_canceled_or_asked(stream: StreamService, transport: str) -> None:
    async with connect(stream, transport) as client:
        await client.send(cancel={"watch_id": "x"})
        assert await client.canceled("x") == "NOT_FOUND"
        await client.send(progress={"watch_id": "y"})
        assert await client.canceled("y") == "NOT_FOUND"
        await client.open("x", now=True)  # the connection lives


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
        assert client.last_words.startswith("create.watch_id: ")


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
    await stream.emptied()


@pytest.mark.parametrize("path", ["namespaces:watch", "namespaces/tides:watch?now=true"])
async def test_a_frame_that_is_too_large_is_told_as_that_while_it_is_still_being_sent(
    stream: StreamService, path: str
) -> None:
    for _ in range(5):
        async with stream.session() as session, session.ws_connect(f"http://stream/v1/{path}") as socket:
            with suppress(ConnectionError):  # closed before it has arrived
                await socket.send_str("x" * 4_000_000)
            async with asyncio.timeout(30):
                async for _frame in socket:
                    pass
            assert socket.close_code == aiohttp.WSCloseCode.MESSAGE_TOO_BIG
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
