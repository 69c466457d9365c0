"""What comes while a reader over HTTP waits goes straight into its connection: the same bytes, in the same order."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.stream import http
from services.stream.direct import pusher
from services.stream.feed import Push
from services.stream.messages import Message

from .conftest import TIDES
from .owner import Owner
from .service import StreamService

# Of one entity's text: a frame's length takes one more field from 64 KiB on, and a socket less than the last at once.
SIZES = (1, 60, 300, 5_000, 64_000, 66_000, 250_000)

Next = Callable[[], Awaitable[dict[str, Any]]]


@dataclass
class Pushes:
    """Revisions that were offered to connections."""

    taken: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> Pushes:
    """What is offered from now on."""
    seen = Pushes()

    def recorded(request: web.Request, encode: Callable[[Message], Iterable[bytes]]) -> Push:
        push = pusher(request, encode)

        def record(message: Message) -> bool:
            took = push(message)
            (seen.taken if took else seen.refused).append(message.revision)
            return took

        return record

    monkeypatch.setattr(http, "pusher", recorded)
    return seen


@asynccontextmanager
async def reading(stream: StreamService, transport: str, query: str) -> AsyncIterator[Next]:
    """What returns the next message of a feed over *transport*, and reads little ahead."""
    async with stream.session() as known:
        headers = {"authorization": known.headers["authorization"]}
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
            await owner.put(TIDES, "a", n=n, text="." * 60_000)
            if pushes.refused:  # its connection takes no more at once
                break
            assert n < 100, "a reader that reads nothing takes whatever comes"
        for n in range(1, 21):
            last = await owner.put(TIDES, "a", n=-n)
        assert max(pushes.taken) < min(pushes.refused)
        reached = 0
        while reached < last:
            message = await next_message()
            assert int(message["afterRevision"]) == reached
            units = [int(unit["revision"]) for unit in message.get("units", {}).get("units", [])]
            assert units == list(range(reached + 1, reached + 1 + len(units)))
            reached = int(message["revision"])


async def test_a_reader_of_http_1_0_gets_no_chunks(owner: Owner, stream: StreamService, pushes: Pushes) -> None:
    session = stream.session()
    token = session.headers["authorization"]
    await session.close()
    reader, writer = await asyncio.open_unix_connection(stream.http_socket)
    request = f"GET /v1/namespaces/tides:watch?now=true HTTP/1.0\r\nhost: stream\r\nauthorization: {token}\r\n\r\n"
    writer.write(request.encode())
    assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert "progress" in json.loads(await asyncio.wait_for(reader.readline(), 20))
    await owner.put(TIDES, "a", n=1)
    assert json.loads(await asyncio.wait_for(reader.readline(), 20))["revision"] == "1"
    assert not pushes.taken
    writer.close()
