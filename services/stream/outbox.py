"""The way from many senders to one reader: one item at a time, in the order in which they came."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Outbox(Generic[T]):
    """Holds one item for the reader; whoever has another waits with it, and goes first who waited first.

    Senders that can make their item later wait in ``clear`` instead, and hold nothing meanwhile.
    """

    def __init__(self) -> None:
        self._next: deque[T] = deque(maxlen=1)
        self._waiting: deque[tuple[T, asyncio.Future[None]]] = deque()
        self._filled = asyncio.Event()
        self._clear = asyncio.Event()
        self._clear.set()

    async def put(self, item: T) -> None:
        """Return when *item* is the reader's next. Cancelled before that, it is as if it had never been there."""
        if self._clear.is_set():
            self._give(item)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((item, turn))
        try:
            await turn
        finally:
            if turn.cancelled():
                self._waiting.remove((item, turn))

    async def take(self) -> T:
        """The next item."""
        await self._filled.wait()
        item = self._next.popleft()
        if self._waiting:
            following, turn = self._waiting.popleft()
            self._next.append(following)
            turn.set_result(None)
        else:
            self._filled.clear()
            self._clear.set()
        return item

    async def clear(self) -> None:
        """Return when ``put`` would not wait."""
        while not self._clear.is_set():
            await self._clear.wait()

    def _give(self, item: T) -> None:
        self._next.append(item)
        self._filled.set()
        self._clear.clear()
