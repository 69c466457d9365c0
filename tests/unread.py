"""gRPC calls whose answers nobody reads: HTTP/2 by hand, with a window that never opens."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from benchmarks.http2 import PREFACE, frame, header

_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0, 1, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_INITIAL_WINDOW_SIZE = 4


@asynccontextmanager
async def unread(address: str, token: str, calls: Sequence[tuple[str, bytes]]) -> AsyncIterator[None]:
    """Make each of *calls* (method, message) on one connection, and take only that their answers begin."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(PREFACE + frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, 0)))
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
            fields = b"".join(header(name, value) for name, value in headers.items())
            body = b"\0" + struct.pack(">I", len(message)) + message
            writer.write(frame(_HEADERS, _END_HEADERS, stream, fields) + frame(_DATA, _END_STREAM, stream, body))
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
