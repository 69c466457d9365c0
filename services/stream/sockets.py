"""The server's side of a WebSocket, which takes its leave before it hangs up."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

# How long a client may take to answer our close frame, or to send the rest of what it was refused for.
PARTING_SECONDS = 2.0


class Socket(web.WebSocketResponse):
    """After its close frame it takes, and drops, what the client still sends: until the client's own, or for 2 s.

    Hanging up over unread input makes the kernel reset the connection, and the close frame is lost on the way.
    """

    def __init__(self, max_message: int) -> None:
        super().__init__(compress=False, max_msg_size=max_message, autoclose=False)
        self._is_parting = False
        self._was_answered = asyncio.Event()
        self._has_parted = asyncio.Event()

    @property
    def is_parting(self) -> bool:
        """Whether our close frame is sent, or about to be: after it there is none."""
        return self._is_parting

    async def run(self, reading: Coroutine[Any, Any, None], sending: Coroutine[Any, Any, None]) -> None:
        """Do both until one has ended: *reading* with the client's close frame, *sending* with ours."""
        tasks = [asyncio.create_task(reading), asyncio.create_task(sending)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self._was_answered.set()
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def send_frame(self, message: bytes, opcode: WSMsgType, compress: int | None = None) -> None:
        """Send a frame; after the close frame there is none.

        Raises:
            ConnectionError: the connection is over.
        """
        if self._is_parting:
            await self._has_parted.wait()
            raise ConnectionResetError("the WebSocket is closed")
        await super().send_frame(message, opcode, compress)

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Send the close frame, once, and hang up when the client has answered."""
        if self._is_parting:
            await self._has_parted.wait()
        else:
            await self._part(code.to_bytes(2, "big") + message)
        # On a connection that is closing, aiohttp sends no close frame of its own.
        if self._req is not None and (transport := self._req.transport) is not None:
            if transport.get_write_buffer_size():
                transport.abort()  # it would wait for a reader who had its time, and whom nobody looks after any more
            else:
                transport.close()
        return await super().close(code=code, message=message, drain=drain)

    async def _part(self, last_words: bytes) -> None:
        self._is_parting = True
        try:
            with suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(PARTING_SECONDS):
                    await super().send_frame(last_words, WSMsgType.CLOSE)
                    await self._was_answered.wait()
        finally:
            self._has_parted.set()
