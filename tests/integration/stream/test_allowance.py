"""How many feeds a user may have open at a replica, over all transports, and when one counts no longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlencode

import aiohttp
import grpc
import pytest
from strandline.stream.v1.stream_service_pb2 import WatchMembersRequest, WatchRequest
from strandline.stream.v1.stream_service_pb2_grpc import StreamServiceStub

from .conftest import MakeStream
from .connection import URL as URL_OF_MANY
from .connection import connect
from .owner import Owner
from .service import StreamService, access_token, reason
from .subscribers import BOB, let

TRANSPORTS = ("grpc", "members over grpc", "ndjson", "sse", "members over ndjson", "websocket")
NOW = {"now": "true"}
# What a slow machine may say, here of one that is owner, service and client at once; 503 is all that a WebSocket tells.
PASSING = ("OVERLOADED", "ACCESS_UNVERIFIABLE", 503)
FULL = ("TOO_MANY_FEEDS", 429)


class Refused(Exception):
    """A feed was not opened: the reason, and the metadata."""


@asynccontextmanager
async def feed(
    stream: StreamService,
    transport: str,
    asked: dict[str, str],
    token: str = "",
    passing: tuple[str | int, ...] = PASSING,
) -> AsyncIterator[None]:
    """A feed that is open; what comes first was read, and with `once` everything.

    *passing*: for which refusals it is asked for again.
    """
    patience = time.monotonic() + 30
    async with AsyncExitStack() as stack:
        while True:
            try:
                await stack.enter_async_context(attempt(stream, transport, asked, token or access_token()))
            except Refused as refusal:
                if refusal.args[0] not in passing or time.monotonic() > patience:
                    raise
                await asyncio.sleep(0.02)
            else:
                break
        yield


@asynccontextmanager
async def attempt(stream: StreamService, transport: str, asked: dict[str, str], token: str) -> AsyncIterator[None]:
    """The same, asked for once."""
    path = "/members:watch" if "members" in transport else ":watch"
    url = f"http://stream/v1/namespaces/tides{path}?{urlencode(asked)}"
    async with AsyncExitStack() as stack:
        if "grpc" in transport:
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(stream.grpc_address))
            stub: Any = StreamServiceStub(channel)
            kind, watch = (
                (WatchMembersRequest, stub.WatchMembers) if "members" in transport else (WatchRequest, stub.Watch)
            )
            fields: dict[str, Any] = {name: int(value) if value.isdigit() else True for name, value in asked.items()}
            request = kind(parent="namespaces/tides", **fields)
            call = watch(request, metadata=(("authorization", f"Bearer {token}"),))
            stack.callback(call.cancel)
            try:
                while await call.read() is not grpc.aio.EOF and "once" in asked:
                    pass
            except grpc.aio.AioRpcError as failure:
                raise Refused(*reason(failure)) from failure
        elif transport == "websocket":
            session = await stack.enter_async_context(stream.session(token))
            try:
                socket = await stack.enter_async_context(session.ws_connect(url))
            except aiohttp.WSServerHandshakeError as failure:
                raise Refused(failure.status) from failure
            await socket.receive_json()
        else:
            session = await stack.enter_async_context(stream.session(token))
            accept = {"accept": "text/event-stream"} if transport == "sse" else {}
            response = await stack.enter_async_context(session.get(url, headers=accept))
            if response.status != 200:
                problem = await response.json(content_type="application/problem+json")
                raise Refused(problem["reason"], problem["metadata"])
            await (response.read() if "once" in asked else response.content.readline())
        yield


async def open_in_time(
    stack: AsyncExitStack, stream: StreamService, transport: str, asked: dict[str, str], token: str = ""
) -> None:
    """Open a feed as soon as there is room for it: a server learns a little later that a client has gone."""
    await stack.enter_async_context(feed(stream, transport, asked, token, PASSING + FULL))


async def test_a_user_has_so_many_feeds_in_all_transports_together_and_no_more(
    owner: Owner, make_stream: MakeStream
) -> None:
    await let(owner, BOB, "VIEWER")
    stream = await make_stream(max_feeds_per_user=len(TRANSPORTS))
    too_many = ("TOO_MANY_FEEDS", {"limit": str(len(TRANSPORTS))})
    async with AsyncExitStack() as stack:
        for transport in TRANSPORTS:
            await open_in_time(stack, stream, transport, NOW)
        for transport in TRANSPORTS:
            with pytest.raises(Refused) as refusal:
                await stack.enter_async_context(feed(stream, transport, NOW))
            assert refusal.value.args == ((429,) if transport == "websocket" else too_many)
        async with connect(stream) as many:
            assert await many.failure() == "TOO_MANY_FEEDS"
        async with stream.session() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as handshake:
                await session.ws_connect(URL_OF_MANY)
            assert handshake.value.status == 429
        await stack.enter_async_context(feed(stream, "grpc", NOW, access_token(BOB)))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_feed_counts_until_it_ends_however_it_does(make_stream: MakeStream, transport: str) -> None:
    stream = await make_stream(max_feeds_per_user=1)
    async with AsyncExitStack() as stack:
        for _ in range(2):
            with pytest.raises(Refused, match=r"FUTURE_REVISION|400"):  # by the log, once there is room for the feed
                await open_in_time(stack, stream, transport, {"after_revision": "999"})
        for _ in range(2):
            async with AsyncExitStack() as one:
                await open_in_time(one, stream, transport, {**NOW, "once": "true"})
        for _ in range(2):
            async with AsyncExitStack() as one:
                await open_in_time(one, stream, transport, NOW)
                with pytest.raises(Refused, match="TOO_MANY_FEEDS"):
                    await stack.enter_async_context(feed(stream, "grpc", NOW))


async def test_feeds_that_follow_each_other_on_one_connection_count_one_after_the_other(
    make_stream: MakeStream,
) -> None:
    stream = await make_stream(max_feeds_per_user=1)
    async with stream.session() as session:
        for _ in range(5):
            async with session.get("http://stream/v1/namespaces/tides:watch?now=true&once=true") as response:
                assert response.status == 200
                assert b"COMPLETED" in await response.read()


@pytest.mark.parametrize("transport", ["grpc", "websocket"])
async def test_a_connection_of_many_watches_counts_as_one_feed_and_each_of_its_watches_as_another(
    make_stream: MakeStream, transport: str
) -> None:
    stream = await make_stream(max_feeds_per_user=3)
    async with connect(stream, transport) as client:
        first = await client.open("a", now=True)
        await first.next()
        await client.open("b", now=True)
        await client.create("c", now=True)
        assert await client.canceled("c") == "TOO_MANY_FEEDS"
        await client.send(cancel={"watch_id": "a"})
        assert await client.canceled("a") == "CANCELLED"
        await client.open("c", now=True)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await open_in_time(stack, stream, "grpc", NOW)
