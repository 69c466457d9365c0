"""Readers that take nothing: they are ended when they may have nothing more, and else wait as long as they like."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, TypeAlias

import aiohttp
import grpc
import pytest
from prometheus_client import REGISTRY
from strandline.stream.v1 import stream_service_pb2_grpc, subscription_service_pb2_grpc
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest, WatchRequest
from strandline.stream.v1.subscription_service_pb2 import StreamingPullRequest

from .conftest import TIDES, MakeReplica
from .owner import SYSTEM, Owner
from .service import ANN, SESSION, StreamService, access_token, reason
from .subscribers import BOB, NAME, client_of, let
from .test_allowance import NOW, Refused, feed, open_in_time

ROOM = 8
"""For the feeds of one reader over each transport: the connections of many count, and their watches."""
UNITS = 60
"""Of 200 kB: more than sockets and gRPC take for a reader who takes nothing."""
ALL = WatchRequest(parent="namespaces/tides", after_revision=0)
MANY = WatchManyRequest(create=WatchManyRequest.Create(watch_id="a", watch=ALL))
MANY_AS_JSON = {"create": {"watchId": "a", "watch": {"parent": "namespaces/tides", "afterRevision": "0"}}}
URL = "http://stream/v1/namespaces/tides:watch?after_revision=0"
URL_OF_PAGE = f"http://stream/v1/namespaces/tides/changes?after_revision={UNITS}"
URL_OF_MANY = "http://stream/v1/namespaces:watch"

Wake: TypeAlias = Callable[[], Awaitable[tuple[int, str]]]
"""Reads on: the last revision that came, and how the stream ended."""


@pytest.fixture
async def stream(owner: Owner, make_replica: MakeReplica, monkeypatch: pytest.MonkeyPatch) -> StreamService:
    """Over a long log, with a subscription to all of it. It looks for stalled readers ten times a second."""
    monkeypatch.setattr("services.stream.stalls.SWEEP_SECONDS", 0.1)
    stream = await make_replica(max_feeds_per_user=ROOM)
    async with client_of(stream) as client:
        await client.create()
    for number in range(UNITS):
        await owner.put(TIDES, f"e{number}", text="x" * 200_000)
    return stream


@asynccontextmanager
async def over_http(stream: StreamService, token: str, accept: str) -> AsyncIterator[Wake]:
    async with session(stream, token) as http, http.get(URL, headers={"accept": accept}) as response:

        async def wake() -> tuple[int, str]:
            revision = 0
            try:
                while revision < UNITS and (line := await response.content.readline()):
                    if line.startswith((b"data: ", b"{")):
                        revision = int(json.loads(line.removeprefix(b"data: "))["revision"])
            except aiohttp.ClientError:
                return revision, "cut"
            return revision, ""

        yield wake


@asynccontextmanager
async def over_websocket(stream: StreamService, token: str, url: str = URL) -> AsyncIterator[Wake]:
    async with session(stream, token) as http, http.ws_connect(url, max_msg_size=0) as socket:
        if url == URL_OF_MANY:
            await socket.send_json(MANY_AS_JSON)

        async def wake() -> tuple[int, str]:
            revision = 0
            while revision < UNITS:
                frame = await socket.receive()
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    return revision, "cut" if socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE else "closed"
                told = json.loads(frame.data)
                revision = int((told if url == URL else told.get("message", {})).get("revision", revision))
            return revision, ""

        yield wake


@asynccontextmanager
async def over_grpc(
    stream: StreamService, token: str, what: WatchRequest | WatchManyRequest | StreamingPullRequest
) -> AsyncIterator[Wake]:
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(stream.grpc_address) as channel:
        watches: stream_service_pb2_grpc.StreamServiceAsyncStub = stream_service_pb2_grpc.StreamServiceStub(channel)
        pulls: subscription_service_pb2_grpc.SubscriptionServiceAsyncStub = (
            subscription_service_pb2_grpc.SubscriptionServiceStub(channel)
        )
        call: Any
        if isinstance(what, WatchRequest):
            call = watches.Watch(what, metadata=metadata)
        elif isinstance(what, WatchManyRequest):
            call = watches.WatchMany(metadata=metadata)
            await call.write(what)
        else:
            call = pulls.StreamingPull(what, metadata=metadata)

        async def wake() -> tuple[int, str]:
            revision = 0
            try:
                while revision < UNITS:
                    answer = await call.read()
                    assert answer is not grpc.aio.EOF, "it ended without a word"
                    if isinstance(what, WatchRequest):
                        revision = answer.revision
                    elif isinstance(what, WatchManyRequest):
                        revision = answer.message.revision
                    else:
                        revision = max([revision, *(delivery.revision for delivery in answer.deliveries)])
            except grpc.aio.AioRpcError as failure:
                return revision, reason(failure)[0]
            return revision, ""

        yield wake
        call.cancel()


Open: TypeAlias = Callable[[StreamService, str], AbstractAsyncContextManager[Wake]]
FEEDS: dict[str, Open] = {
    "ndjson": lambda stream, token: over_http(stream, token, "application/x-ndjson"),
    "sse": lambda stream, token: over_http(stream, token, "text/event-stream"),
    "websocket": over_websocket,
    "many over websocket": lambda stream, token: over_websocket(stream, token, URL_OF_MANY),
    "grpc": lambda stream, token: over_grpc(stream, token, ALL),
    "many over grpc": lambda stream, token: over_grpc(stream, token, MANY),
}
PULL = "pull"
TRANSPORTS: dict[str, Open] = {
    **FEEDS,
    PULL: lambda stream, token: over_grpc(stream, token, StreamingPullRequest(name=NAME)),
}


def session(stream: StreamService, token: str) -> aiohttp.ClientSession:
    """One that holds little for who reads nothing."""
    connector, headers = aiohttp.UnixConnector(stream.http_socket), {"authorization": f"Bearer {token}"}
    return aiohttp.ClientSession(connector=connector, headers=headers, read_bufsize=2**18)


@asynccontextmanager
async def stalled(
    stream: StreamService, token: str, names: list[str], *, besides: int = 0
) -> AsyncIterator[dict[str, Wake]]:
    """A reader over each of the transports who takes nothing, and for whom a message waits."""
    async with AsyncExitStack() as stack:
        readers = {name: await stack.enter_async_context(TRANSPORTS[name](stream, token)) for name in names}
        await until_stalled(besides + len(names))
        yield readers


async def until_stalled(count: int) -> None:
    """Return when so many readers take nothing, as the metrics tell it several times: not one that is only slow."""
    times = 0
    async with asyncio.timeout(30):
        while times < 20:
            is_so = REGISTRY.get_sample_value("strandline_stream_readers_stalled") == count
            times = times + 1 if is_so else 0
            await asyncio.sleep(0.02)


async def ends(readers: dict[str, Wake]) -> dict[str, str]:
    """How each one's stream ended, before it had everything."""
    outcomes = {name: await asyncio.wait_for(wake(), 30) for name, wake in readers.items()}
    assert all(last < UNITS for last, _ in outcomes.values())
    return {name: outcome for name, (_, outcome) in outcomes.items()}


def told(why: str) -> dict[str, str]:
    """What each reader sees: over HTTP there is no way to say it."""
    return {name: why if "grpc" in name or name == PULL else "cut" for name in TRANSPORTS}


async def end(owner: Owner, how: str) -> None:
    """Take from Ann what her readers need."""
    if how == "member removed":
        await owner.write(SYSTEM, {("membership", f"tides~{ANN}"): None})
    elif how == "session ended":
        revoked = {"user": ANN, "expiresAt": int(time.time()) + 600}
        await owner.write(SYSTEM, {("revocation", SESSION): revoked})


@pytest.mark.parametrize(
    ("how", "why"),
    [("member removed", "NOT_FOUND"), ("session ended", "TOKEN_INVALID"), ("token expired", "TOKEN_INVALID")],
)
async def test_a_reader_that_takes_nothing_does_not_outlive_its_rights(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    token = access_token()
    async with stalled(stream, token, list(TRANSPORTS)) as readers:
        assert stream.open_feeds == len(FEEDS)
        if how == "token expired":
            # As if its ten minutes were over.
            for module in ("services.stream.permit", "services.stream.pulls", "services.runtime.gate"):
                monkeypatch.setattr(f"{module}.LEEWAY", -600)
        await end(owner, how)
        await stream.emptied()
        await stream.has_pulls(0)
        assert await ends(readers) == told(why)


async def test_a_reader_that_takes_nothing_and_may_have_it_gets_everything_when_it_wakes(
    owner: Owner, stream: StreamService
) -> None:
    await let(owner, BOB, "VIEWER")
    bob = access_token(BOB, session="0192f0a0-0000-7000-8000-0000000000b5")
    async with stalled(stream, access_token(), list(TRANSPORTS)) as readers:
        async with stalled(stream, bob, ["grpc"], besides=len(readers)):
            await owner.write(SYSTEM, {("membership", f"tides~{BOB}"): None})
            await until_stalled(len(readers))  # whoever looked at Bob's has looked at all
        outcomes = {name: await asyncio.wait_for(wake(), 30) for name, wake in readers.items()}
        assert outcomes == dict.fromkeys(TRANSPORTS, (UNITS, ""))


async def test_a_feed_that_is_hung_up_on_counts_until_its_reader_knows(owner: Owner, stream: StreamService) -> None:
    anew = access_token(session="0192f0a0-0000-7000-8000-0000000000a2")
    async with stalled(stream, access_token(), list(FEEDS)) as readers:
        with pytest.raises(Refused, match="TOO_MANY_FEEDS"):
            async with feed(stream, "grpc", NOW, anew):
                pass
        await end(owner, "session ended")
        await stream.emptied()
        await ends(readers)
        async with AsyncExitStack() as stack:
            for _ in range(ROOM):
                await open_in_time(stack, stream, "grpc", NOW, anew)


async def test_a_page_that_nobody_takes_is_cut_as_soon_as_its_reader_may_not_have_it(
    owner: Owner, stream: StreamService
) -> None:
    await let(owner, BOB, "VIEWER")
    bob = access_token(BOB, session="0192f0a0-0000-7000-8000-0000000000b5")
    # A unit is never divided, so a page of one may be larger than what sockets take for a reader who takes nothing.
    await owner.write(TIDES, {("buoy", f"p{number}"): {"text": "x" * 200_000} for number in range(12)})
    async with (
        session(stream, access_token()) as anns,
        session(stream, bob) as bobs,
        anns.get(URL_OF_PAGE) as her_page,
        bobs.get(URL_OF_PAGE) as his_page,
    ):
        await until_stalled(2)
        await owner.write(SYSTEM, {("membership", f"tides~{BOB}"): None})
        await until_stalled(1)
        with pytest.raises(aiohttp.ClientPayloadError):
            await asyncio.wait_for(his_page.read(), 30)
        assert len((await asyncio.wait_for(her_page.json(), 30))["units"][0]["changes"]) == 12


async def test_a_reader_that_takes_nothing_goes_on_while_nobody_can_tell_but_not_for_long(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stalled(stream, access_token(), list(TRANSPORTS)) as readers:
        for module in ("services.stream.permit", "services.stream.pulls"):
            monkeypatch.setattr(f"{module}.UNVERIFIABLE_SECONDS", 0.5)
        await owner.stop()  # which is the user service, too
        async with asyncio.timeout(30):
            while True:
                if stream.open_feeds < len(FEEDS) or REGISTRY.get_sample_value("strandline_stream_pulls_open") == 0:
                    break
                await asyncio.sleep(0.02)
        assert stream.access.unverifiable_for > 0.5
        await stream.emptied()
        await stream.has_pulls(0)
        assert await ends(readers) == told("ACCESS_UNVERIFIABLE")
    await owner.start()
