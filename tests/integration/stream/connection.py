"""A client of a connection of many watches, over gRPC or WebSocket: it sorts what comes by watch."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2
from strandline.stream.v1 import feed_pb2, stream_service_pb2_grpc
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest, WatchManyResponse

from .service import SECONDS, Reader, StreamService, access_token, reason

URL = "http://stream/v1/namespaces:watch"
TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "websocket"])
"""Over both."""


class Client:
    """One connection. ``received`` is all that came, in order."""

    def __init__(self, call: Any = None, socket: aiohttp.ClientWebSocketResponse | None = None) -> None:
        self._call = call
        self.socket = socket
        self.received: list[WatchManyResponse] = []
        self._taken: dict[str, int] = defaultdict(int)
        self._arrived = asyncio.Condition()
        self._failure: Exception | None = None
        self._over = False
        self.reading = asyncio.Event()  # clear it: nothing is read any more
        self.reading.set()
        self._reader = asyncio.create_task(self._read())

    async def _responses(self) -> AsyncIterator[WatchManyResponse]:
        if self.socket is None:
            async for response in self._call:
                yield response
            return
        async for frame in self.socket:
            assert frame.type is aiohttp.WSMsgType.TEXT
            yield json_format.Parse(frame.data, WatchManyResponse())

    async def _read(self) -> None:
        try:
            async for response in self._responses():
                await self.reading.wait()
                async with self._arrived:
                    self.received.append(response)
                    self._arrived.notify_all()
        except grpc.aio.AioRpcError as failure:
            self._failure = failure
        finally:
            async with self._arrived:
                self._over = True
                self._arrived.notify_all()

    async def aclose(self) -> None:
        if self._call is not None:
            self._call.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def send(self, **request: Any) -> None:
        message = WatchManyRequest(**request)
        if self.socket is not None:
            await self.socket.send_str(json_format.MessageToJson(message))
        else:
            await self._call.write(message)

    async def create(self, watch_id: str, namespace: str = "tides", **watch: Any) -> None:
        """Ask for a watch."""
        await self.send(create={"watch_id": watch_id, "watch": {"parent": f"namespaces/{namespace}", **watch}})

    async def open(self, watch_id: str, namespace: str = "tides", **watch: Any) -> Reader:
        """A watch that is open, for a reader that checks its messages."""
        await self.create(watch_id, namespace, **watch)
        assert (await self.next(watch_id)).HasField("created")
        return self.reader(watch_id)

    def reader(self, watch_id: str) -> Reader:
        async def messages() -> AsyncIterator[feed_pb2.WatchResponse]:
            ended = False
            while not ended:
                response = await self.next(watch_id)
                assert response.HasField("message"), response
                ended = response.message.HasField("end")
                yield response.message

        return Reader(messages())

    async def next(self, watch_id: str, seconds: float = SECONDS) -> WatchManyResponse:
        """The next that is said of the watch; "" for what is said of the connection."""
        async with asyncio.timeout(seconds), self._arrived:
            while True:
                of_watch = [response for response in self.received if response.watch_id == watch_id]
                if len(of_watch) > self._taken[watch_id]:
                    self._taken[watch_id] += 1
                    return of_watch[self._taken[watch_id] - 1]
                assert not self._over, f"the connection is over: {self._failure}"
                await self._arrived.wait()

    async def canceled(self, watch_id: str) -> str:
        """The reason for which a watch is canceled, which is the next that is said of it; CANCELLED: as asked."""
        return reason_of(await self.next(watch_id))

    async def over(self) -> None:
        """Return when the server has ended the connection."""
        async with asyncio.timeout(SECONDS), self._arrived:
            while not self._over:
                await self._arrived.wait()

    async def failure(self) -> str:
        """The reason for which the connection ends, once it is over; "" without one."""
        await self.over()
        if isinstance(self._failure, grpc.aio.AioRpcError):
            return reason(self._failure)[0]
        last = self.received[-1] if self.received else None
        return reason_of(last) if last is not None and not last.watch_id else ""

    @property
    def last_words(self) -> str:
        """The text of ``failure``."""
        if isinstance(self._failure, grpc.aio.AioRpcError):
            return str(self._failure.details())
        return str(self.received[-1].canceled.status.message)

    async def done(self) -> None:
        """Ask for nothing more."""
        await self._call.done_writing()


def reason_of(response: WatchManyResponse) -> str:
    assert response.HasField("canceled"), response
    status = response.canceled.status
    if status.code == grpc.StatusCode.CANCELLED.value[0]:
        return "CANCELLED"
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    return str(info.reason)


def fields_of(response: WatchManyResponse) -> list[str]:
    """The fields that a refusal names."""
    request = error_details_pb2.BadRequest()
    for detail in response.canceled.status.details[1:]:
        detail.Unpack(request)
    return [violation.field for violation in request.field_violations]


@asynccontextmanager
async def connect(stream: StreamService, transport: str = "grpc", token: str = "") -> AsyncIterator[Client]:
    """A connection, by ``grpc`` or ``websocket``."""
    token = token or access_token()
    if transport == "websocket":
        async with (
            stream.session(token) as session,
            session.ws_connect(URL, max_msg_size=0) as socket,
            aclosing(Client(socket=socket)) as client,
        ):
            yield client
        return
    async with grpc.aio.insecure_channel(stream.grpc_address) as channel:
        stub: stream_service_pb2_grpc.StreamServiceAsyncStub = stream_service_pb2_grpc.StreamServiceStub(channel)
        call = stub.WatchMany(metadata=(("authorization", f"Bearer {token}"),))
        async with aclosing(Client(call=call)) as client:
            yield client
