"""Look-ups of names that users choose, so that those of one namespace cannot hold up those of another.

The system's resolver blocks a thread for as long as it likes: half a minute when the server of a name never answers. So
each look-up has a thread of its own, and a namespace as many at a time as leave room for others. A look-up counts until
the resolver is done with it, whether somebody still waits for it or not. Whoever finds no room waits for a moment.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread
from typing import Any, Final, TypeAlias

import prometheus_client

from services.runtime.errors import Unavailable

GetAddresses: TypeAlias = Callable[..., Sequence[tuple[Any, ...]]]

MAX_RUNNING: Final = 64
MAX_RUNNING_OF_ONE: Final = 4
"""Of one namespace."""
PATIENCE_SECONDS: Final = 2.0
"""How long a look-up waits for its turn. With the time of a request it stays below the ack deadline of a webhook."""
_CROWDED_OUT: Final = prometheus_client.Counter(
    "strandline_stream_lookups_crowded_out", "Look-ups of names for which there was no room in time."
)


class LookUps:
    """The look-ups of this process; *get_addresses* has the signature of ``socket.getaddrinfo``."""

    def __init__(self, get_addresses: GetAddresses = socket.getaddrinfo) -> None:
        self._get_addresses = get_addresses
        self._running: Counter[str] = Counter()
        self._ended = asyncio.Event()

    async def addresses(self, namespace: str, host: str, port: int, on_turn: Callable[[], None]) -> list[str]:
        """The addresses of *host*, for *namespace*; *on_turn* is called when there is room, and the look-up begins.

        Raises:
            Unavailable: OVERLOADED, there was no room. Nobody was asked, and the name is not to blame.
            OSError: what the resolver says.
        """
        await self._turn(namespace)
        on_turn()
        return [address[0] for *_, address in await asyncio.wrap_future(self._begin(namespace, host, port))]

    async def _turn(self, namespace: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self._running[namespace] >= MAX_RUNNING_OF_ONE or self._running.total() >= MAX_RUNNING:
                    await self._ended.wait()
        except TimeoutError:
            _CROWDED_OUT.inc()
            raise Unavailable("OVERLOADED", "too many names of webhooks are being looked up; retry") from None

    def _begin(self, namespace: str, host: str, port: int) -> Future[Sequence[tuple[Any, ...]]]:
        loop = asyncio.get_running_loop()
        found: Future[Sequence[tuple[Any, ...]]] = Future()
        found.set_running_or_notify_cancel()  # nobody can take it back any more

        def look_up() -> None:
            try:
                found.set_result(self._get_addresses(host, port, type=socket.SOCK_STREAM))
            except Exception as failure:
                found.set_exception(failure)
            with suppress(RuntimeError):  # the process has ended meanwhile
                loop.call_soon_threadsafe(self._end, namespace)

        # A daemon: the process does not wait for a resolver when it ends.
        Thread(target=look_up, name="egress-dns", daemon=True).start()
        self._running[namespace] += 1
        return found

    def _end(self, namespace: str) -> None:
        self._running[namespace] -= 1
        if not self._running[namespace]:
            del self._running[namespace]
        self._ended.set()
        self._ended.clear()
