"""What comes while a reader over HTTP waits goes straight into its connection: the same bytes, in the same order."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.stream import http
from services.stream.direct import pusher
from services.stream.feed import Push
from services.stream.http import MAX_CLIENT_MESSAGE
from services.stream.messages import Message

from .conftest import TIDES, MakeReplica
from .owner import SYSTEM, Owner
from .service import StreamService, access_token
from .subscribers import BOB, let

# Of one entity's text. A message has it twice, as it is and as it was; the larger ones go by the reader's own task.
SIZES = (1, 60, 300, 5_000, 30_000, 66_000, 250_000, 20)

Next = Callable[[], Awaitable[dict[str, Any]]]


@dataclass
class Pushes:
    """Revisions that were offered to connections."""

    taken: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    faults: int = 0
    """How many of the next ones fail."""


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> Pushes:
    """What is offered from now on."""
    seen = Pushes()

    def recorded(request: web.Request, encode: Callable[[Message], Iterable[bytes]]) -> Push:
        push = pusher(request, encode)

        def record(message: Message) -> bool:
            if seen.faults:
                seen.faults -= 1
                raise RuntimeError("it cannot be sent")
            took = push(message)
            (seen.taken if took else seen.refused).append(message.revision)
            return took

        return record

    monkeypatch.setattr(http, "pusher", recorded)
    return seen


@asynccontextmanager
async def reading(stream: StreamService, transport: str, query: str) -> AsyncIterator[Next]:
    """What returns the next message of a feed over *transport*, and reads little ahead."""
    headers = {"authorization": f"Bearer {access_token()}"}
    if transport == "sse":
        headers["accept"] = "text/event-stream"
    url = f"http://stream/v1/namespaces/tides:watch?{query}"
    connector = aiohttp.UnixConnector(stream.http_socket)
    async with aiohttp.ClientSession(connector=connector, headers=headers, read_bufsize=2**15) as session:
        if transport == "websocket":
            async with session.ws_connect(url, max_msg_size=0) as socket:
                yield lambda: socket.receive_json(timeout=20)
        else:
            async with session.get(url) as response:
                lines = _lines(response)
                yield lambda: asyncio.wait_for(_next(lines), 20)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    rest = b""
    while more := await response.content.readany():
        *lines, rest = (rest + more).split(b"\n")
        for line in lines:
            yield line


async def _next(lines: AsyncIterator[bytes]) -> dict[str, Any]:
    while True:
        line = (await anext(lines)).removeprefix(b"data: ")
        if line.startswith(b"{"):
            message: dict[str, Any] = json.loads(line)
            return message


@pytest.mark.parametrize("transport", ["ndjson", "sse", "websocket"])
@pytest.mark.parametrize("query", ["now=true", "now=true&filter=data.n>=0&types=buoy"])
async def test_a_waiting_reader_gets_units_of_any_size(
    owner: Owner, stream: StreamService, pushes: Pushes, transport: str, query: str
) -> None:
    async with reading(stream, transport, query) as next_message:
        assert "progress" in await next_message()
        reached = 0
        for n, size in enumerate(SIZES * 2):
            text = random.Random(n).randbytes(size // 2).hex()
            revision = await owner.put(TIDES, "a", n=n, text=text)
            while reached < revision:
                message = await next_message()
                assert int(message["afterRevision"]) == reached
                reached = int(message["revision"])
            assert message["units"]["units"][-1]["changes"][-1]["entity"]["data"] == {"n": n, "text": text}
    assert pushes.taken, "every one woke its reader"
    assert pushes.taken == sorted(set(pushes.taken))


@pytest.mark.parametrize("transport", ["ndjson", "sse", "websocket"])
async def test_a_reader_that_falls_behind_gets_everything_once_and_in_order(
    owner: Owner, stream: StreamService, pushes: Pushes, transport: str
) -> None:
    async with reading(stream, transport, "now=true") as next_message:
        assert "progress" in await next_message()
        for n in itertools.count():
            await owner.put(TIDES, "a", n=n, text="." * 15_000)
            if pushes.refused:  # its connection takes no more at once
                break
            assert n < 100, "a reader that reads nothing takes whatever comes"
        for n in range(1, 21):
            last = await owner.put(TIDES, "a", n=-n)
        reached = 0
        while reached < last:
            message = await next_message()
            assert int(message["afterRevision"]) == reached
            units = [int(unit["revision"]) for unit in message.get("units", {}).get("units", [])]
            assert units == list(range(reached + 1, reached + 1 + len(units)))
            reached = int(message["revision"])


async def test_a_reader_of_http_1_0_gets_no_chunks(owner: Owner, stream: StreamService, pushes: Pushes) -> None:
    reader, writer = await asyncio.open_unix_connection(stream.http_socket)
    request = "GET /v1/namespaces/tides:watch?now=true HTTP/1.0"
    writer.write(f"{request}\r\nauthorization: Bearer {access_token()}\r\n\r\n".encode())
    assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert "progress" in json.loads(await asyncio.wait_for(reader.readline(), 20))
    await owner.put(TIDES, "a", n=1)
    assert json.loads(await asyncio.wait_for(reader.readline(), 20))["revision"] == "1"
    assert not pushes.taken
    writer.close()


@pytest.mark.parametrize("query", ["now=true", "now=true&filter=data.n>=0"])
async def test_what_could_not_be_pushed_comes_all_the_same(
    owner: Owner, stream: StreamService, pushes: Pushes, query: str
) -> None:
    async with reading(stream, "ndjson", query) as next_message:
        assert "progress" in await next_message()
        pushes.faults = 3
        reached, units = 0, []
        for n in itertools.count():
            revision = await owner.put(TIDES, "a", n=n)
            while reached < revision:
                message = await next_message()
                assert int(message["afterRevision"]) == reached
                reached = int(message["revision"])
                units += [int(unit["revision"]) for unit in message.get("units", {}).get("units", [])]
            if not pushes.faults:
                break
        assert units == list(range(1, revision + 1))


async def test_nothing_follows_a_close_frame(owner: Owner, stream: StreamService, pushes: Pushes) -> None:
    async with websocket(stream, access_token()) as (reader, writer):
        size = MAX_CLIENT_MESSAGE + 1
        writer.write(b"\x81\xfe" + size.to_bytes(2) + bytes(4) + b"x" * size)  # larger than a client may say
        opcode, payload = await _frame(reader)
        assert (opcode, payload[:2]) == (0x88, (1009).to_bytes(2))
        for n in range(10):  # while the answer to the close frame is waited for
            await owner.put(TIDES, "a", n=n)
        assert await asyncio.wait_for(reader.read(), 20) == b""


async def test_a_reader_who_waited_is_cut_off_from_what_came_then(
    owner: Owner, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.stalls.SWEEP_SECONDS", 0.1)
    stream = await make_replica()
    await let(owner, BOB, "VIEWER")
    async with websocket(stream, access_token(BOB)) as (reader, _):
        # One unit that is far more than a socket takes, for a reader who takes the beginning of it.
        await owner.write(TIDES, {("buoy", f"e{number}"): {"text": "x" * 200_000} for number in range(12)})
        assert (await asyncio.wait_for(reader.readexactly(10), 20))[:2] == b"\x81\x7f"
        await owner.write(SYSTEM, {("membership", f"tides~{BOB}"): None})
        await stream.emptied()
        rest = 0
        with suppress(ConnectionError):
            while more := await asyncio.wait_for(reader.read(2**16), 20):
                rest += len(more)
        assert rest < 12 * 200_000


async def test_who_closes_and_takes_no_more_is_not_waited_for(owner: Owner, stream: StreamService) -> None:
    async with websocket(stream, access_token()) as (reader, writer):
        await owner.write(TIDES, {("buoy", f"e{number}"): {"text": "x" * 200_000} for number in range(12)})
        await asyncio.wait_for(reader.readexactly(10), 20)
        writer.write(b"\x88\x82" + bytes(4) + (1000).to_bytes(2))
        async with asyncio.timeout(20):
            while not writer.is_closing():  # nobody takes what is written to a connection that is gone
                writer.write(b"\x8a\x80" + bytes(4))
                await asyncio.sleep(0.05)
        await stream.emptied()


@asynccontextmanager
async def websocket(
    stream: StreamService, token: str
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A WebSocket that only reads what it is told to, and has read that the feed is up to date."""
    reader, writer = await asyncio.open_unix_connection(stream.http_socket)
    lines = (
        "GET /v1/namespaces/tides:watch?now=true HTTP/1.1",
        "host: stream",
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
        f"authorization: Bearer {token}",
    )
    writer.write("\r\n".join((*lines, "", "")).encode())
    assert b" 101 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert (await _frame(reader))[0] == 0x81
    yield reader, writer
    writer.close()


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The first byte of a frame, and what it carries."""
    first, size = await asyncio.wait_for(reader.readexactly(2), 20)
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2))
    return first, await reader.readexactly(size)
