"""A feed as its units, one after the other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Self

from strandline.stream.v1 import feed_pb2

from strandline_client.position import Start


class Watch(AsyncIterator[feed_pb2.Unit]):
    """``async for unit in watch``: every unit that matches, once, in order, for as long as somebody asks.

    ``start`` is where another watch would go on after the unit that was given last: keep it together with what was
    made of that unit, and nothing is lost or done twice, however the program ends. ``head_revision`` and
    ``horizon_revision`` are as of the last Progress, 0 before the first: who falls behind sees the horizon come.
    """

    def __init__(self, messages: AsyncGenerator[feed_pb2.WatchResponse, None], start: Start) -> None:
        self.start = start
        self.head_revision = 0
        self.horizon_revision = 0
        self._units = self._run(messages)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> feed_pb2.Unit:
        return await anext(self._units)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection now, not when the garbage collector finds it."""
        await self._units.aclose()

    async def _run(self, feed: AsyncGenerator[feed_pb2.WatchResponse, None]) -> AsyncGenerator[feed_pb2.Unit, None]:
        async with aclosing(feed) as messages:
            async for message in messages:
                for unit in message.units.units:
                    self.start = Start(after_revision=unit.revision, epoch=message.epoch)
                    yield unit
                self.start = Start(after_revision=message.revision, epoch=message.epoch)
                if message.HasField("progress"):
                    self.head_revision = message.progress.head_revision
                    self.horizon_revision = message.progress.horizon_revision
