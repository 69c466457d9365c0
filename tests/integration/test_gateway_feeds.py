"""Feeds over HTTP: through edge and sidecar to the service's own HTTP port, without a stop on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession, WSMsgType, web
from strandline.stream.v1 import feed_pb2, stream_service_pb2, stream_service_pb2_grpc, ticket_service_pb2

from tests.gateway_stack import Stack, stack

__all__ = ["stack"]

WATCH = "/v1/namespaces/demo:watch"
MANY = "/v1/namespaces:watch"
MEMBERS = "/v1/namespaces/demo/members:watch"


def session(stack: Stack) -> ClientSession:
    return ClientSession(headers={"authorization": f"Bearer {stack.token()}"})


def lines(content_type: str, arrived: asyncio.Semaphore) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """A feed of three messages, each sent when the one before has *arrived*."""

    async def feed(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": content_type})
        await response.prepare(request)
        for number in range(3):
            await response.write(f"data: {number}\n\n".encode())
            await arrived.acquire()
        return response

    return feed


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "text/event-stream"])
async def test_each_message_arrives_when_it_is_sent(stack: Stack, content_type: str) -> None:
    arrived = asyncio.Semaphore(0)
    stack.upstreams.http = lines(content_type, arrived)
    pieces = []
    async with asyncio.timeout(30), session(stack) as client, client.get(f"{stack.url}{WATCH}?now=true") as reply:
        assert reply.status == 200
        assert reply.headers["content-type"] == content_type
        assert reply.headers["cache-control"] == "no-store"
        async for piece in reply.content.iter_any():
            pieces.append(piece)
            arrived.release()
    assert pieces == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]


async def test_the_service_sees_query_and_headers_of_the_client(stack: Stack) -> None:
    seen: dict[str, Any] = {}

    async def feed(request: web.Request) -> web.StreamResponse:
        seen.update(request.headers, path=request.path_qs)
        return web.Response()

    stack.upstreams.http = feed
    await stack.call("GET", f"{WATCH}?after_revision=7&types=a&types=b", last_event_id="0123abcd.7", x_user_id="admin")
    assert seen["path"] == f"{WATCH}?after_revision=7&types=a&types=b"
    assert seen["Last-Event-ID"] == "0123abcd.7"
    assert seen["Authorization"].startswith("Bearer ")
    assert seen["X-Request-ID"]
    assert "x-user-id" not in {name.lower() for name in seen}


async def test_a_websocket_passes_both_proxies_both_ways(stack: Stack) -> None:
    async def feed(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_str("first")
        await socket.send_str(f"echo {(await socket.receive()).data}")
        await socket.close()
        return socket

    stack.upstreams.http = feed
    async with session(stack) as client, client.ws_connect(f"{stack.url}{WATCH}?now=true") as socket:
        assert await socket.receive_str() == "first"
        await socket.send_str("hello")
        assert await socket.receive_str() == "echo hello"
        assert (await socket.receive()).type is WSMsgType.CLOSE


async def test_an_error_of_the_service_before_the_first_message_is_passed_on(stack: Stack) -> None:
    async def feed(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=410, text='{"reason": "COMPACTED"}', content_type="application/problem+json")

    stack.upstreams.http = feed
    reply = await stack.call("GET", f"{WATCH}?after_revision=1")
    assert reply.status == 410
    assert reply.json == {"reason": "COMPACTED"}


async def test_a_feed_needs_a_token_on_every_transport(stack: Stack) -> None:
    reply = await stack.call("GET", WATCH, token=None)
    assert (reply.status, reply.reason) == (401, "TOKEN_MISSING")
    upgrade = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec_websocket_key": "x" * 24,
        "sec_websocket_version": "13",
    }
    reply = await stack.call("GET", WATCH, token=None, **upgrade)
    assert (reply.status, reply.reason) == (401, "TOKEN_MISSING")


async def test_the_end_of_a_client_ends_the_feed_behind_it(stack: Stack) -> None:
    ended = asyncio.Event()

    async def feed(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"{}\n")
                await asyncio.sleep(0.02)
        finally:
            ended.set()

    stack.upstreams.http = feed
    async with session(stack) as client, client.get(f"{stack.url}{WATCH}?now=true") as reply:
        await reply.content.readline()
    async with asyncio.timeout(30):
        await ended.wait()


async def test_a_feed_by_grpc_streams_as_well(stack: Stack) -> None:
    arrived = asyncio.Semaphore(0)

    async def watch(_request: Any, _context: Any) -> Any:
        for revision in (1, 2):
            yield feed_pb2.WatchResponse(revision=revision)
            await arrived.acquire()

    stack.upstreams.streams["StreamService.Watch"] = watch
    metadata = (("authorization", f"Bearer {stack.token()}"),)
    revisions = []
    async with asyncio.timeout(30), grpc.aio.insecure_channel(stack.address) as channel:
        watching = stream_service_pb2_grpc.StreamServiceStub(channel).Watch(
            stream_service_pb2.WatchRequest(parent="namespaces/demo", now=True), metadata=metadata
        )
        async for message in watching:
            revisions.append(message.revision)
            arrived.release()
    assert revisions == [1, 2]


async def test_a_page_of_changes_keeps_the_services_word_on_what_may_be_kept(stack: Stack) -> None:
    seen: dict[str, str] = {}

    async def page(request: web.Request) -> web.StreamResponse:
        seen.update(request.headers, path=request.path_qs)
        kept = {"etag": 'W/"1"', "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match"):
            return web.Response(status=304, headers=kept)
        return web.json_response({"units": []}, headers=kept)

    stack.upstreams.http = page
    path = "/v1/namespaces/demo/changes?after_revision=7&limit=3"
    reply = await stack.call("GET", path)
    assert (reply.status, reply.json) == (200, {"units": []})
    reply = await stack.call("GET", path, if_none_match='W/"1"')
    assert (reply.status, reply.text) == (304, "")
    assert (reply.headers["etag"], reply.headers["cache-control"]) == ('W/"1"', "private, no-cache")
    assert (seen["path"], seen["If-None-Match"]) == (path, 'W/"1"')
    assert (await stack.call("GET", path, token=None)).reason == "TOKEN_MISSING"
    assert (await stack.call("POST", path)).status == 405


async def test_many_watches_by_grpc_go_both_ways_for_as_long_and_as_much_as_both_like(stack: Stack) -> None:
    async def watch_many(requests: Any, _context: Any) -> Any:
        async for request in requests:
            yield stream_service_pb2.WatchManyResponse(watch_id=request.cancel.watch_id)

    stack.upstreams.streams["StreamService.WatchMany"] = watch_many
    metadata = (("authorization", f"Bearer {stack.token()}"),)
    large = stream_service_pb2.WatchManyRequest(
        refresh=stream_service_pb2.WatchManyRequest.Refresh(access_token="x" * 200_000)
    )
    async with grpc.aio.insecure_channel(stack.address) as channel:
        stub: stream_service_pb2_grpc.StreamServiceAsyncStub = stream_service_pb2_grpc.StreamServiceStub(channel)
        call = stub.WatchMany(metadata=metadata)
        for number in range(100):  # 20 MB: more than one request of the edge may have
            cancel = stream_service_pb2.WatchManyRequest.Cancel(watch_id=str(number))
            for request in (stream_service_pb2.WatchManyRequest(cancel=cancel), large):
                await call.write(request)
                response = await call.read()
                assert isinstance(response, stream_service_pb2.WatchManyResponse)
                assert response.watch_id == request.cancel.watch_id
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_many_watches_by_websocket_have_no_limit_in_sum(stack: Stack) -> None:
    async def feed(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for frame in socket:
            await socket.send_str(str(len(frame.data)))
        return socket

    stack.upstreams.http = feed
    async with session(stack) as client, client.ws_connect(f"{stack.url}{MANY}") as socket:
        for _ in range(100):
            await socket.send_str("x" * 200_000)
            assert await socket.receive_str(timeout=30) == "200000"


async def test_many_watches_need_a_token_too(stack: Stack) -> None:
    reply = await stack.call("GET", MANY, token=None, connection="Upgrade", upgrade="websocket")
    assert (reply.status, reply.reason) == (401, "TOKEN_MISSING")
    reply = await stack.call("POST", MANY, {})
    assert (reply.status, reply.reason) == (405, "METHOD_NOT_ALLOWED")


COOKIE = {"cookie": "theme=dark; __Secure-strandline-watch=sealed"}


async def test_the_cookie_of_a_page_goes_to_the_service_instead_of_a_token(stack: Stack) -> None:
    seen: list[tuple[str, str, bool]] = []

    async def feed(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, request.headers["cookie"], "authorization" in request.headers))
        return web.Response(text="{}")

    stack.upstreams.http = feed
    for path in (WATCH, MANY, MEMBERS):
        assert (await stack.call("GET", path, token=None, **COOKIE)).status == 200
    assert seen == [(path, COOKIE["cookie"], False) for path in (WATCH, MANY, MEMBERS)]
    # Beside it a token may be missing, and not wrong.
    assert (await stack.call("GET", WATCH, token=stack.token(aud="other"), **COOKIE)).reason == "TOKEN_INVALID"


async def test_the_cookie_lets_nobody_in_anywhere_else(stack: Stack) -> None:
    async def feed(_request: web.Request) -> web.StreamResponse:
        raise AssertionError("no request gets here")

    stack.upstreams.http = feed
    for method, path in (
        ("GET", "/v1/namespaces/demo/changes"),
        ("GET", "/v1/namespaces/demo"),
        ("GET", "/v1/users/me"),
        ("POST", "/v1/namespaces:issueTicket"),
        ("POST", "/v1/namespaces/demo/types/buoy/entities"),
        ("DELETE", "/v1/namespaces/demo"),
    ):
        reply = await stack.call(method, path, {} if method == "POST" else None, token=None, **COOKIE)
        assert (reply.status, reply.reason) == (401, "TOKEN_MISSING"), path
    for path in (WATCH, MANY):
        assert (await stack.call("POST", path, {}, token=None, **COOKIE)).status == 405
    for cookie in ("theme=dark", "strandline-watch"):
        assert (await stack.call("GET", WATCH, token=None, cookie=cookie)).reason == "TOKEN_MISSING"


async def test_a_ticket_is_redeemed_without_a_token_and_the_cookie_comes_back(stack: Stack) -> None:
    async def redeem(request: Any, context: Any) -> Any:
        await context.send_initial_metadata((("set-cookie", "strandline-watch=sealed; HttpOnly"),))
        return ticket_service_pb2.RedeemTicketResponse(path=WATCH)

    stack.answers["TicketService.RedeemTicket"] = redeem
    # What a page says of itself goes on; what only the edge may say does not come from it.
    headers = {"origin": stack.url, "x_strandline_host": "evil.example", "sec_fetch_site": "same-origin"}
    reply = await stack.call("POST", "/v1/namespaces:redeemTicket", {"ticket": "t"}, token=None, **headers)
    assert (reply.status, reply.json["path"]) == (200, WATCH)
    assert reply.headers["set-cookie"] == "strandline-watch=sealed; HttpOnly"
    assert reply.headers["cache-control"] == "no-store"
    metadata = stack.seen["TicketService.RedeemTicket"][1]
    assert (metadata["x-strandline-host"], metadata["origin"]) == (stack.address, stack.url)
    assert metadata["sec-fetch-site"] == "same-origin"
