"""gRPC calls whose answers nobody reads: HTTP/2 by hand, with a window that never opens."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0, 1, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4


@asynccontextmanager
async def unread(address: str, token: str, calls: Sequence[tuple[str, bytes]]) -> AsyncIterator[None]:
    """Make each of *calls* (method, message) on one connection, and take only that their answers begin."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0))
        )
        for number, (method, message) in enumerate(calls):
            stream = 2 * number + 1
            headers = {
                ":method": "POST",
                ":scheme": "http",
                ":path": method,
                ":authority": address,
                "te": "trailers",
                "content-type": "application/grpc",
                "authorization": f"Bearer {token}",
            }
            fields = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
            body = b"\0" + struct.pack(">I", len(message)) + message
            writer.write(_frame(_HEADERS, _END_HEADERS, stream, fields) + _frame(_DATA, _END_STREAM, stream, body))
        begun = 0
        while begun < len(calls):
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags = head[3], head[4]
            assert kind != _GOAWAY
            assert kind != _HEADERS or not flags & _END_STREAM, "a call was refused"
            begun += kind == _HEADERS
        yield
    finally:
        writer.transport.abort()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(text: str) -> bytes:
    """A string as RFC 7541, 5.2 has it, without Huffman's code."""
    length = len(text)
    if length < 127:
        return bytes([length]) + text.encode()
    head, length = b"\x7f", length - 127
    while length >= 128:
        head, length = head + bytes([length % 128 + 128]), length // 128
    return head + bytes([length]) + text.encode()
