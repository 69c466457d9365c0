"""Real questions to the parts, one function per kind; True when the answer says that it serves.

The supervisor asks them while everything else starts, so they import nothing heavy: grpcio alone would cost it 0.15 s
of a core and 15 MB.
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

_PATIENCE_SECONDS = 2.0
_HEALTH_PATH = b"/grpc.health.v1.Health/Check"
# HTTP/2, RFC 9113: frame types, flags, and literal header fields without indexing (RFC 7541, 6.2.2).
_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0x0, 0x1, 0x4, 0x7
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_REQUEST_HEADERS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", _HEALTH_PATH),
    (b":authority", b"localhost"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)
# HealthCheckResponse{status: SERVING}, behind gRPC's five bytes of framing.
_SERVING = b"\0\0\0\0\x02\x08\x01"


async def http_answers(socket: Path, path: str = "/ready") -> bool:
    """Whether ``GET path`` on a unix socket is answered 200. HTTP/1.1: Envoy's admin port answers no HTTP/1.0."""
    request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()
    return (await _first_line(socket, request)).startswith(b"HTTP/1.1 200")


async def grpc_serves(socket: Path) -> bool:
    """Whether the gRPC health service on a unix socket says SERVING for the whole server."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                fields = b"".join(_literal(name) + _literal(value, b"") for name, value in _REQUEST_HEADERS)
                writer.write(
                    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
                    + _frame(_SETTINGS, 0, 0, b"")
                    + _frame(_HEADERS, _END_HEADERS, 1, fields)
                    + _frame(_DATA, _END_STREAM, 1, b"\0\0\0\0\0")
                )
                return await _read_data(reader, writer) == _SERVING
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False


async def tcp_greets(port: int, greeting: bytes) -> bool:
    """Whether the server on 127.0.0.1 opens the conversation with *greeting*, as NATS and SMTP do."""
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return (await reader.readline()).startswith(greeting)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def post(socket: Path, path: str) -> bool:
    """Send an empty POST to an admin socket; whether it was answered 200."""
    request = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
    return (await _first_line(socket, request)).startswith(b"HTTP/1.1 200")


async def _first_line(socket: Path, request: bytes) -> bytes:
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            reader, writer = await asyncio.open_unix_connection(socket)
            try:
                writer.write(request)
                return await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return b""


def _literal(text: bytes, prefix: bytes = b"\0") -> bytes:
    return prefix + bytes([len(text)]) + text


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


async def _read_data(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The first DATA frame of stream 1; empty when the answer has none. Its headers need not be understood."""
    while True:
        head = await reader.readexactly(9)
        length = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        payload = await reader.readexactly(length)
        if kind == _SETTINGS and not flags & _ACK:
            writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _DATA and stream == 1:
            return payload
        elif kind == _GOAWAY or (stream == 1 and flags & _END_STREAM):
            return b""
