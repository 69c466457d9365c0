"""Turns at entities that several writers of this process want at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from services.entity.model import EntityKey


class Turns:
    """A queue for each entity that anybody takes turns at; it goes with the last of them."""

    def __init__(self) -> None:
        self._locks: Final[WeakValueDictionary[tuple[str, EntityKey], asyncio.Lock]] = WeakValueDictionary()

    @property
    def any(self) -> bool:
        """Whether anybody takes turns anywhere."""
        return bool(self._locks)

    @asynccontextmanager
    async def at(
        self, namespace: str, keys: Iterable[EntityKey], *, only_in_queues: bool = False
    ) -> AsyncIterator[None]:
        """Be the only one inside for *keys*; *only_in_queues*: for those of them that others take turns at already.

        Whoever is inside must not enter again.
        """
        async with AsyncExitStack() as held:
            # In one order, so that no two can wait for each other.
            for key in sorted(set(keys)):
                lock = self._locks.get((namespace, key))
                if lock is None:
                    if only_in_queues:
                        continue
                    lock = self._locks[(namespace, key)] = asyncio.Lock()
                await held.enter_async_context(lock)
            yield
