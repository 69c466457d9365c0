"""Many watches on one connection: each is a feed of its own, and all go through one outbox. Knows no transport.

Each watch has a task that moves its feed. While the reader takes nothing, feeds wait before they look at the log, with
a cursor and no message, so that a connection costs what the cursors of its watches cost. When it takes again they go in
turns: one that catches up sends one message, then the others have theirs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass

from google.rpc import code_pb2, status_pb2
from strandline.stream.v1 import stream_service_pb2
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest, WatchManyResponse, WatchRequest

from services.runtime.call import Call
from services.runtime.errors import (
    AlreadyExists,
    Error,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    invalid_field,
    within,
)
from services.runtime.gate import Gate
from services.runtime.rpc import Method, status_of, status_of_error
from services.runtime.rules import check_rules
from services.runtime.tokens import LEEWAY
from services.stream.allowance import Allowance
from services.stream.envelopes import AboutWatch, Envelope, OfWatch
from services.stream.feed import Feed
from services.stream.feeds import Feeds
from services.stream.frames import Misfit
from services.stream.outbox import Outbox
from services.stream.permit import Ended

MAX_WATCHES = 100
# A watch that is over may still wait with its last word. With so many in all, nothing more is read from the client.
MAX_TASKS = 2 * MAX_WATCHES
MAX_REQUEST_BYTES = 256 * 1024
# What the watches of a connection were asked with, in sum: a watch keeps its request, for its ids.
MAX_HELD_BYTES = 8 * 2**20
# How long the watches of a connection that ends may take for their last words: they look up every second.
GOODBYE_SECONDS = 5.0
# So much later than its watches ends a connection whose token has expired.
EXPIRY_SECONDS = 5.0

_AS_ASKED = status_pb2.Status(code=code_pb2.CANCELLED, message="canceled, as you asked")


class Multiplexer:
    """Everything a connection needs, once for the process."""

    def __init__(self, feeds: Feeds, gate: Gate, allowance: Allowance) -> None:
        """*allowance*: that of feeds. A connection counts as one, also while it has no watch."""
        self._feeds = feeds
        self._gate = gate
        self._allowance = allowance
        service = stream_service_pb2.DESCRIPTOR.services_by_name["StreamService"]
        self._watch = Method(service.methods_by_name["Watch"])
        self._connections: set[Connection] = set()

    def drain(self) -> None:
        """Let every connection end when its watches have; these are ended by whoever drains the feeds."""
        for connection in self._connections:
            connection.drain()

    @asynccontextmanager
    async def connect(self, call: Call) -> AsyncIterator[Connection]:
        """A connection for a call whose caller was identified.

        Raises:
            ResourceExhausted: TOO_MANY_FEEDS.
        """
        self._allowance.take(call)
        connection = Connection(self._feeds, self._gate, self._watch, call)
        self._connections.add(connection)
        try:
            yield connection
        finally:
            self._connections.discard(connection)
            self._allowance.give_back_with_task(call)
            await connection.close()


@dataclass(eq=False)
class _Watch:
    """One watch. ``feed`` is there once it is open; ``asked``: before that, the client wanted to know where it is."""

    id: str
    call: Call
    task: asyncio.Task[None] | None = None
    feed: Feed | None = None
    asked: bool = False


class Connection:
    """One client's watches. It is fed by ``read`` and speaks by ``responses``; a ``stalls.Stream``."""

    def __init__(self, feeds: Feeds, gate: Gate, method: Method, call: Call) -> None:
        self.closing = False
        self.waits_since: float | None = None
        self._feeds = feeds
        self._gate = gate
        self._method = method
        self._principal = call.identified()
        self._watches: dict[str, _Watch] = {}
        self._tasks: dict[asyncio.Task[None], int] = {}  # and the size of what each was asked with
        self._outbox: Outbox[Envelope | None] = Outbox()
        self._failure: Error | None = None
        self._ends_when_idle = False
        self._news = asyncio.Event()

    async def read(self, requests: AsyncIterator[WatchManyRequest | Misfit]) -> None:
        """Do what the client asks, in this order, until it asks no more or asks for what cannot be.

        The outcome of a request that concerns one watch is a response. One that is none ends the connection, unless it
        is about a watch that is not there: then it is refused as that watch.
        """
        try:
            async for request in requests:
                if isinstance(request, Misfit):
                    await self._refuse(request)
                else:
                    await self._take(request)
        except Error as failure:
            self._failure = self._failure or failure
            self.closing = True
        self._ends_when_idle = True
        self._news.set()

    async def responses(self) -> AsyncGenerator[Envelope, None]:
        """Everything that is said, in order.

        Raises:
            Error: the connection ends because of this; every watch has had its ``End``.
        """
        ending = asyncio.create_task(self._end())
        try:
            while (response := await self._outbox.take()) is not None:
                self.waits_since = time.monotonic()
                yield response
                self.waits_since = None
            self.waits_since = time.monotonic()  # the transport's own last word
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
        if self._failure is not None:
            raise self._failure

    def drain(self) -> None:
        """End when no watch is left."""
        self._ends_when_idle = True
        self._news.set()

    async def close(self) -> None:
        """Drop every watch."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def clear(self) -> None:
        """Return when the reader takes more (``permit.Way``)."""
        await self._outbox.clear()

    async def check(self) -> None:
        """Raises ``Error`` if the reader may have nothing more of any one of the watches."""
        await self._gate.recheck(self._principal)
        for watch in list(self._watches.values()):
            if watch.feed is not None:
                await watch.feed.check()

    # The end

    async def _end(self) -> None:
        """Wait until the connection is to end, and let ``responses`` know."""
        while self._failure is None and not (self._ends_when_idle and not self._watches):
            left = self._principal.expires_at + LEEWAY + EXPIRY_SECONDS - time.time()
            if left <= 0:
                self._failure = Unauthenticated("TOKEN_INVALID", "the access token has expired and was not refreshed")
            else:
                await self._hear(left)
        with suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                while self._watches:
                    await self._hear(GOODBYE_SECONDS)
        await self._outbox.put(None)

    async def _hear(self, seconds: float) -> None:
        """Wait for news, but not for longer than *seconds*."""
        with suppress(TimeoutError):  # not `wait_for`, which forgets that it was cancelled when there is news as well
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()

    # Requests

    async def _take(self, request: WatchManyRequest) -> None:
        if request.ByteSize() > MAX_REQUEST_BYTES:
            raise invalid_field("request", f"is larger than {MAX_REQUEST_BYTES} bytes")
        match request.WhichOneof("request"):
            case "create":
                await self._create(request.create)
            case "cancel":
                await self._cancel(request.cancel.watch_id)
            case "progress":
                await self._ask(request.progress.watch_id)
            case "refresh":
                await self._refresh(request.refresh.access_token)
            case _:
                raise invalid_field("request", "must be one of create, cancel, progress and refresh")

    async def _refuse(self, misfit: Misfit) -> None:
        # Said of a watch that there is, it would be taken for its end.
        if not misfit.watch_id or misfit.watch_id in self._watches:
            raise misfit.error
        check_rules(WatchManyRequest.Create(watch_id=misfit.watch_id))
        await self._say_canceled(misfit.watch_id, status_of_error(misfit.error))

    async def _create(self, request: WatchManyRequest.Create) -> None:
        # Its watch is looked at later, as that watch.
        check_rules(WatchManyRequest(create=WatchManyRequest.Create(watch_id=request.watch_id)))
        while len(self._tasks) >= MAX_TASKS:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        if request.watch_id in self._watches:
            # Said of the watch, it would be taken for a word about the one that there is.
            taken = f"there is a watch {request.watch_id} already"
            raise AlreadyExists("ALREADY_EXISTS", taken, watch_id=request.watch_id)
        if (full := self._is_full(request)) is not None:
            await self._say_canceled(request.watch_id, status_of_error(full))
            return
        watch = _Watch(request.watch_id, Call(metadata={}, principal=self._principal))
        self._watches[watch.id] = watch
        watch.task = asyncio.create_task(self._run(watch, request.watch))
        self._tasks[watch.task] = request.ByteSize()
        watch.task.add_done_callback(self._tasks.pop)

    def _is_full(self, request: WatchManyRequest.Create) -> ResourceExhausted | None:
        if len(self._watches) >= MAX_WATCHES:
            message = "the connection has as many watches as it may have"
            return ResourceExhausted("TOO_MANY_WATCHES", message, limit=str(MAX_WATCHES))
        if sum(self._tasks.values()) + request.ByteSize() > MAX_HELD_BYTES:
            message = "the requests of the connection's watches are together larger than they may be, in bytes"
            return ResourceExhausted("WATCHES_TOO_LARGE", message, limit=str(MAX_HELD_BYTES))
        return None

    async def _cancel(self, watch_id: str) -> None:
        watch = self._watches.pop(watch_id, None)
        if watch is None:
            await self._say_unknown(watch_id)
        elif watch.task is not None:
            watch.task.cancel()
            await asyncio.gather(watch.task, return_exceptions=True)
            await self._say_canceled(watch_id, _AS_ASKED)

    async def _ask(self, watch_id: str) -> None:
        watch = self._watches.get(watch_id)
        if watch is None:
            await self._say_unknown(watch_id)
        elif watch.feed is None:
            watch.asked = True
        else:
            await self._tell(watch, watch.feed)

    async def _refresh(self, token: str) -> None:
        principal = await self._gate.verify(token)
        held = self._principal
        if (principal.user_id, principal.session_id) != (held.user_id, held.session_id):
            raise Unauthenticated("TOKEN_INVALID", "the access token is of another session")
        if principal.expires_at > held.expires_at:
            self._principal = principal
            for watch in self._watches.values():
                watch.call.principal = principal

    # Watches

    async def _run(self, watch: _Watch, request: WatchRequest) -> None:
        """The life of a watch, to its last word."""
        try:
            await self._gate.admit_again(self._method, request, watch.call)
            async with self._feeds.open(request, watch.call, self) as feed:
                watch.feed = feed
                created = WatchManyResponse.Created(head_revision=feed.head.revision, epoch=feed.head.epoch)
                await self._outbox.put(AboutWatch(WatchManyResponse(watch_id=watch.id, created=created)))
                if watch.asked:
                    await self._tell(watch, feed)
                async with aclosing(feed.messages()) as messages:
                    async for message in messages:
                        await self._outbox.put(OfWatch(watch.id, message))
                self._forget(watch)  # before anything else is awaited: the client may use the id again
        except Exception as failure:
            self._forget(watch)
            told = within("create.watch", failure) if isinstance(failure, InvalidArgument) else failure
            await self._say_canceled(watch.id, status_of(told, self._method.path))
        finally:
            self._forget(watch)

    async def _tell(self, watch: _Watch, feed: Feed) -> None:
        """Say where the watch is, unless its end is under way."""
        with suppress(Ended):
            position = await feed.position()
            if position is not None:
                await self._outbox.put(OfWatch(watch.id, position))

    def _forget(self, watch: _Watch) -> None:
        if self._watches.get(watch.id) is watch:
            del self._watches[watch.id]
            self._news.set()

    async def _say_unknown(self, watch_id: str) -> None:
        unknown = NotFound("NOT_FOUND", "there is no such watch; it may just have ended")
        await self._say_canceled(watch_id, status_of_error(unknown))

    async def _say_canceled(self, watch_id: str, status: status_pb2.Status) -> None:
        await self._outbox.put(AboutWatch(canceled(watch_id, status)))


def canceled(watch_id: str, status: status_pb2.Status) -> WatchManyResponse:
    """The last word about a watch, or, without an id, about the connection."""
    return WatchManyResponse(watch_id=watch_id, canceled=WatchManyResponse.Canceled(status=status))
