"""Messages straight into a connection's buffer, past the HTTP library, while nothing else is on its way there.

The bytes are those that the library would write; it does so in a coroutine, which is what a push must not need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aiohttp import web

from services.stream.feed import Push
from services.stream.messages import Message

# About as much as the HTTP library leaves in a connection's buffer before it waits.
MAX_BYTES = 64 * 1024


def pusher(request: web.Request, encode: Callable[[Message], Iterable[bytes]]) -> Push:
    """What sends a message, in the pieces that *encode* makes of it, on the connection of *request*."""

    def push(message: Message) -> bool:
        transport = request.transport
        if transport is None or transport.is_closing():
            return False
        # What may have to wait for its reader is for the reader's own task to send: that can be looked at, and ended.
        if transport.get_write_buffer_size() or len(message.json) > MAX_BYTES:
            return False
        transport.writelines(encode(message))
        return True

    return push


def text_frame(message: Message) -> tuple[bytes, bytes]:
    """The message as one WebSocket text frame of a server (RFC 6455, section 5.2)."""
    json = message.json
    size = len(json)
    if size < 126:
        return bytes((0x81, size)), json
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2), json
    return b"\x81\x7f" + size.to_bytes(8), json
