"""Feeds over HTTP/1.1: a namespace's and its members' in three transports, many in one, and pages of changes.

``Upgrade: websocket`` is a WebSocket, ``Accept: text/event-stream`` is SSE, anything else NDJSON. Every write waits
until the socket takes more, so a slow reader holds back its own feed and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path

from aiohttp import HttpVersion11, WSCloseCode, WSMsgType, web
from google.protobuf.message import Message as ProtoMessage
from strandline.stream.v1 import feed_pb2, stream_service_pb2
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest

from services.runtime.call import Call
from services.runtime.errors import Error, InvalidArgument, invalid_field
from services.runtime.gate import Gate
from services.runtime.rpc import Method, status_of_error, translate
from services.runtime.server import remove_stale_socket
from services.stream.changes import Changes
from services.stream.direct import pusher, text_frame
from services.stream.envelopes import AboutWatch
from services.stream.feed import Feed, Push
from services.stream.feeds import Feeds
from services.stream.frames import Misfit, parse_frame
from services.stream.messages import Message, OtherMessage
from services.stream.multiplex import MAX_REQUEST_BYTES, Connection, Multiplexer, canceled
from services.stream.origins import check_origin, check_own_page
from services.stream.passes import MANY, Passes
from services.stream.problems import headers_of, problem, status_of
from services.stream.query import W, fill, parse_watch
from services.stream.sockets import Socket
from services.stream.stalls import Stalls

logger = logging.getLogger(__name__)

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
# Nothing that the WebSocket client of one feed says is of use; more than this at once is no client of ours.
MAX_CLIENT_MESSAGE = 4096
# More than the edge lets through, whose refusal says what is wrong; the HTTP library's own repeats what was sent.
MAX_HEADER_BYTES = 128 * 1024
_STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}
# To be kept by the reader alone, and asked about before each use.
_PAGE_HEADERS = {"cache-control": "private, no-cache", "vary": "authorization", "x-content-type-options": "nosniff"}
_ETAG = re.compile(r'"[^"]*"')

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpPort:
    """The HTTP port of the stream service."""

    def __init__(
        self, feeds: Feeds, multiplexer: Multiplexer, changes: Changes, gate: Gate, passes: Passes, stalls: Stalls
    ) -> None:
        self._feeds = feeds
        self._multiplexer = multiplexer
        self._changes = changes
        self._gate = gate
        self._passes = passes
        self._stalls = stalls
        service = stream_service_pb2.DESCRIPTOR.services_by_name["StreamService"]
        self._one, self._many, self._members, self._list_changes = (
            Method(service.methods_by_name[name]) for name in ("Watch", "WatchMany", "WatchMembers", "ListChanges")
        )
        app = web.Application(middlewares=[as_problem])
        app.router.add_get("/v1/namespaces:watch", self._watch_many, allow_head=False)
        app.router.add_get("/v1/namespaces/{namespace:[^/:]+}:watch", self._watch, allow_head=False)
        app.router.add_get("/v1/namespaces/{namespace:[^/:]+}/members:watch", self._watch_members, allow_head=False)
        app.router.add_get("/v1/namespaces/{namespace:[^/:]+}/changes", self._page, allow_head=False)
        # A reader that goes away takes its feed with it at once.
        self._runner = web.AppRunner(
            app,
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=2,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )

    async def start(self, address: str) -> None:
        """Listen on *address*, ``unix:/path`` or ``127.0.0.1:port``."""
        await self._runner.setup()
        if address.startswith("unix:"):
            remove_stale_socket(address)
            site: web.BaseSite = web.UnixSite(self._runner, Path(address.removeprefix("unix:")))
        else:
            host, _, port = address.rpartition(":")
            site = web.TCPSite(self._runner, host, int(port))
        await site.start()

    async def stop(self) -> None:
        """Stop listening; give feeds 2 s for their last words."""
        await self._runner.cleanup()

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        watch = _asked(request, stream_service_pb2.WatchRequest)
        call = await self._admit(self._one, watch, request, watch.parent)
        async with self._feeds.open(watch, call) as feed:
            return await self._send_feed(request, feed, call)

    async def _watch_members(self, request: web.Request) -> web.StreamResponse:
        watch = _asked(request, stream_service_pb2.WatchMembersRequest)
        call = await self._admit(self._members, watch, request, f"{watch.parent}/members")
        async with self._feeds.open_members(watch, call) as feed:
            return await self._send_feed(request, feed, call)

    async def _send_feed(self, request: web.Request, feed: Feed, call: Call) -> web.StreamResponse:
        headers = call.response_headers
        taking = self._stalls.looking_after(feed, call, _hanging_up(request))
        if upgrades(request):
            return await _websocket(request, feed, headers, taking)
        with taking:
            if SSE in request.headers.get("accept", ""):
                return await _lines(request, feed, headers, SSE, _event)
            return await _lines(request, feed, headers, NDJSON, _line)

    async def _admit(self, method: Method, message: ProtoMessage, request: web.Request, watched: str) -> Call:
        """The call of *request*, let in by its token or, where the method takes one, by the cookie for *watched*."""
        call = Call(metadata={key.lower(): value for key, value in request.headers.items()})
        cookies = _cookies(request, self._passes.cookie_name) if method.takes_cookie else []
        if not cookies:
            await self._gate.admit(method, message, call)
            return call
        if len(cookies) > 1:
            # A site next door can add one of its own, for the domain of both: nobody knows which of them is ours.
            raise invalid_field("cookie", f"{self._passes.cookie_name} is given twice")
        if "authorization" in call.metadata:
            raise invalid_field("authorization", "is not taken together with the cookie: send one of them")
        check_own_page(call.metadata, request.host)
        call.principal = self._passes.open_cookie(cookies[0], watched)
        await self._gate.admit_again(method, message, call)
        return call

    async def _watch_many(self, request: web.Request) -> web.StreamResponse:
        if not upgrades(request):
            raise InvalidArgument("UPGRADE_REQUIRED", "many watches share a WebSocket: send Upgrade", http_status=426)
        call = await self._admit(self._many, WatchManyRequest(), request, MANY)
        async with self._multiplexer.connect(call) as connection:
            taking = self._stalls.looking_after(connection, call, _hanging_up(request))
            return await _websocket_of_many(request, connection, taking)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        asked = stream_service_pb2.ListChangesRequest(parent=f"namespaces/{request.match_info['namespace']}")
        fill(asked, request.rel_url.query.items())
        call = await self._admit(self._list_changes, asked, request, asked.parent)
        page = await self._changes.page(asked, call)
        headers = {**call.response_headers, **_PAGE_HEADERS, "etag": page.etag}
        if is_held(request.headers.get("if-none-match", ""), page.etag):
            return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=headers)
        response = web.Response(body=page.json, headers={**headers, "content-type": "application/json"})
        sending = _Page(partial(self._gate.admit_again, self._list_changes, asked, call))
        with self._stalls.looking_after(sending, call, _hanging_up(request)), suppress(ConnectionError):
            await response.prepare(request)
            await response.write_eof()
        return response


@dataclass(eq=False)
class _Page:
    """A page of changes on its way, which is one message (``stalls.Stream``)."""

    admit_again: Callable[[], Awaitable[None]]
    waits_since: float | None = field(default_factory=time.monotonic)

    async def check(self) -> None:
        await self.admit_again()


def _cookies(request: web.Request, name: str) -> list[str]:
    """Every value that *request* gives the cookie *name*, over all headers."""
    pairs = (pair.strip().partition("=") for sent in request.headers.getall("cookie", ()) for pair in sent.split(";"))
    return [value for key, _, value in pairs if key == name]


def upgrades(request: web.Request) -> bool:
    """Whether *request* asks for a WebSocket, and may: not from a page of another origin."""
    if request.headers.get("upgrade", "").lower() != "websocket":
        return False
    check_origin(request.headers.get("origin"), request.host)
    return True


def _asked(request: web.Request, kind: type[W]) -> W:
    """The watch that *request* asks for."""
    upgrades(request)  # or is refused, before anything else is looked at
    last_event_id = request.headers.get("last-event-id", "")
    return parse_watch(kind, request.match_info["namespace"], request.rel_url.query.items(), last_event_id)


def _hanging_up(request: web.Request) -> Callable[[Error], None]:
    """What cuts the connection of *request* at once: what waits in its buffer is not sent."""

    def hang_up(_: Error) -> None:
        if request.transport is not None:
            request.transport.abort()

    return hang_up


def is_held(if_none_match: str, etag: str) -> bool:
    """Whether the header says that the client has what *etag* stands for (RFC 9110: the weak comparison)."""
    return if_none_match.strip() == "*" or etag.removeprefix("W/") in _ETAG.findall(if_none_match)


def _line(message: Message) -> bytes:
    return message.json + b"\n"


def _event(message: Message) -> bytes:
    if not message.event_id:
        return b"data: %b\n\n" % message.json
    return b"id: %b\ndata: %b\n\n" % (message.event_id.encode(), message.json)


async def _lines(
    request: web.Request, feed: Feed, headers: dict[str, str], content_type: str, frame: Callable[[Message], bytes]
) -> web.StreamResponse:
    response = web.StreamResponse(headers={**headers, **_STREAM_HEADERS, "content-type": content_type})
    await response.prepare(request)

    def chunk(message: Message) -> tuple[bytes, ...]:
        line = frame(message)
        return b"%x\r\n" % len(line), line, b"\r\n"

    push = pusher(request, chunk) if request.version >= HttpVersion11 else None
    try:
        async with aclosing(feed.messages(push)) as messages:
            async for message in messages:
                await response.write(frame(message))
        await response.write_eof()
    except ConnectionError:
        logger.debug("a reader went away")
    return response


async def _websocket(
    request: web.Request, feed: Feed, headers: dict[str, str], taking: AbstractContextManager[None]
) -> web.StreamResponse:
    socket = Socket(MAX_CLIENT_MESSAGE)
    socket.headers.update(headers)
    await socket.prepare(request)
    push = pusher(request, text_frame)
    sending = _send(socket, feed, lambda message: not socket.is_parting and push(message), taking)
    await socket.run(_drop(socket), sending)
    return socket


async def _drop(socket: Socket) -> None:
    """Read on: it is what answers pings and notices that the client closes."""
    async for _ in socket:
        pass


async def _send(socket: Socket, feed: Feed, push: Push, taking: AbstractContextManager[None]) -> None:
    last: Message | None = None
    try:
        with taking:  # but not the leave, which takes as long as it may
            async with aclosing(feed.messages(push)) as messages:
                async for message in messages:
                    await socket.send_frame(message.json, WSMsgType.TEXT)
                    last = message
        draining = isinstance(last, OtherMessage) and last.response.end.reason == feed_pb2.End.DRAINING
        await socket.close(code=WSCloseCode.GOING_AWAY if draining else WSCloseCode.OK)
    except ConnectionError:
        logger.debug("a reader went away")


async def _websocket_of_many(
    request: web.Request, connection: Connection, taking: AbstractContextManager[None]
) -> web.StreamResponse:
    socket = Socket(MAX_REQUEST_BYTES)
    await socket.prepare(request)
    await socket.run(_read_many(socket, connection), _send_many(socket, connection, taking))
    return socket


async def _read_many(socket: Socket, connection: Connection) -> None:
    await connection.read(_requests(socket))
    await _drop(socket)  # while the last words are sent


async def _requests(socket: Socket) -> AsyncIterator[WatchManyRequest | Misfit]:
    async for frame in socket:
        if frame.type is WSMsgType.TEXT:
            yield parse_frame(frame.data)
        elif frame.type is WSMsgType.BINARY:
            yield Misfit(invalid_field("request", "must be one WatchManyRequest as JSON, in a text frame"))
        await asyncio.sleep(0)  # frames that came together are read without a turn for anybody else


async def _send_many(socket: Socket, connection: Connection, taking: AbstractContextManager[None]) -> None:
    code = WSCloseCode.GOING_AWAY
    try:
        with taking:
            try:
                async with aclosing(connection.responses()) as responses:
                    async for response in responses:
                        await socket.send_frame(response.json, WSMsgType.TEXT)
            except Error as failure:
                code = WSCloseCode.POLICY_VIOLATION
                last_word = AboutWatch(canceled("", status_of_error(failure)))
                await socket.send_frame(last_word.json, WSMsgType.TEXT)
        await socket.close(code=code)
    except ConnectionError:
        logger.debug("a reader went away")


@web.middleware
async def as_problem(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure before the first message with a problem; hide what is no ``Error`` of ours."""
    instance = request.headers.get("x-request-id", "")
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        status, reason, detail = HTTPStatus.BAD_REQUEST, "INVALID_REQUEST", "the request is malformed"
        if refusal.status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            status, reason, detail = HTTPStatus.NOT_FOUND, "NOT_FOUND", "there is nothing at this path"
        body = problem(status, reason, detail, instance=instance)
        return web.Response(status=status, body=body, headers=headers_of(status))
    except Exception as failure:
        error: Error | None = translate(failure)
        if error is None:
            logger.exception("internal error on %s", request.path)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            body = problem(status, "INTERNAL", "internal error", instance=instance)
        else:
            status = status_of(error)
            body = problem(status, error.reason, error.message, instance=instance, error=error)
        return web.Response(status=status, body=body, headers=headers_of(status, error))
