"""``StreamService`` over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from strandline.stream.v1 import stream_service_pb2

from services.runtime.call import Call
from services.runtime.rpc import breaking_off
from services.stream.changes import Changes
from services.stream.feeds import Feeds
from services.stream.multiplex import Multiplexer
from services.stream.stalls import Stalls


class StreamHandlers:
    """The handlers of ``StreamService``."""

    def __init__(self, feeds: Feeds, multiplexer: Multiplexer, changes: Changes, stalls: Stalls) -> None:
        self._feeds = feeds
        self._multiplexer = multiplexer
        self._changes = changes
        self._stalls = stalls

    async def watch(self, request: stream_service_pb2.WatchRequest, call: Call) -> AsyncIterator[bytes]:
        async with self._feeds.open(request, call) as feed:
            with self._stalls.looking_after(feed, call, breaking_off()):
                async with aclosing(feed.messages()) as messages:
                    async for message in messages:
                        yield message.protobuf

    async def watch_many(
        self, requests: AsyncIterator[stream_service_pb2.WatchManyRequest], call: Call
    ) -> AsyncIterator[bytes]:
        async with self._multiplexer.connect(call) as connection:
            reading = asyncio.create_task(connection.read(requests))
            try:
                with self._stalls.looking_after(connection, call, breaking_off()):
                    async with aclosing(connection.responses()) as responses:
                        async for response in responses:
                            yield response.protobuf
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def watch_members(self, request: stream_service_pb2.WatchMembersRequest, call: Call) -> AsyncIterator[bytes]:
        async with self._feeds.open_members(request, call) as feed:
            with self._stalls.looking_after(feed, call, breaking_off()):
                async with aclosing(feed.messages()) as messages:
                    async for message in messages:
                        yield message.protobuf

    async def list_changes(self, request: stream_service_pb2.ListChangesRequest, call: Call) -> bytes:
        return (await self._changes.page(request, call)).protobuf
