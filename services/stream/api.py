"""``StreamService`` over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from strandline.stream.v1 import stream_service_pb2

from services.runtime.call import Call
from services.stream.feeds import Feeds


class StreamHandlers:
    """The handlers of ``StreamService``."""

    def __init__(self, feeds: Feeds) -> None:
        self._feeds = feeds

    async def watch(self, request: stream_service_pb2.WatchRequest, call: Call) -> AsyncIterator[bytes]:
        async with self._feeds.open(request, call) as feed, aclosing(feed.messages()) as messages:
            async for message in messages:
                yield message.protobuf
