"""Ends streams whose readers take nothing and may have nothing more.

What a reader may have is looked at before each message, and that moment does not come while the message before waits
to be taken. So all streams are looked over once a second, and one that has waited for a while is asked whether it may
go on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import Gauge

from services.runtime.call import Call
from services.runtime.errors import Error

logger = logging.getLogger(__name__)

STALLED = Gauge("strandline_stream_readers_stalled", "Streams whose reader has taken nothing for half a second.")

SWEEP_SECONDS = 1.0
# Who is slower than this is looked at; whoever may go on is left alone, however slow.
STALLED_SECONDS = 0.5


class Stream(Protocol):
    """What goes to one reader, message by message."""

    @property
    def waits_since(self) -> float | None:
        """None, unless a message waits for the transport: then how long nothing was taken (``time.monotonic``).

        It is another moment for each message. It may lie before the message, if there was none for a while.
        """
        ...

    async def check(self) -> None:
        """Raises ``Error`` if the reader may have nothing more."""
        ...


class Stalls:
    """All streams of this process that are being handed over."""

    def __init__(self) -> None:
        self._open: dict[Stream, tuple[Call, Callable[[Error], object]]] = {}
        self._asked: set[Stream] = set()

    @contextmanager
    def looking_after(self, stream: Stream, call: Call, hang_up: Callable[[Error], object]) -> Iterator[None]:
        """*stream* is the answer to *call*. *hang_up* ends whoever waits for the transport, and is told why.

        It is called once at most, and not after the block.
        """
        self._open[stream] = call, hang_up
        try:
            yield
        finally:
            self._open.pop(stream, None)

    async def run(self) -> None:
        """Look over all streams, for ever."""
        async with asyncio.TaskGroup() as checks:
            while True:
                await asyncio.sleep(SWEEP_SECONDS)
                before = time.monotonic() - STALLED_SECONDS
                stalled = [each for each in self._open if (since := each.waits_since) is not None and since < before]
                STALLED.set(len(stalled))
                for stream in stalled:
                    if stream not in self._asked:
                        checks.create_task(self._ask(stream))  # an answer may take a second
                        await asyncio.sleep(0)  # thousands of them hold up nobody

    async def _ask(self, stream: Stream) -> None:
        since = stream.waits_since
        self._asked.add(stream)
        try:
            await stream.check()
        except Error as failure:
            # It may have begun to wait just now. Once the message is taken the stream ends by itself, with an `End`.
            await asyncio.sleep(STALLED_SECONDS)
            if stream in self._open and since is not None and stream.waits_since == since:
                call, hang_up = self._open.pop(stream)
                what = call.namespace.id if call.namespace else "a connection of many watches"
                why = f"{failure.reason}: {failure.message}"
                logger.info("%s takes nothing of %s and is hung up on: %s", call.actor, what, why)
                hang_up(failure)
        except Exception:
            logger.exception("a stream that waits for its reader cannot be looked at")
        finally:
            self._asked.discard(stream)
