"""100 subscribers in one C program (``sink.c``), and what each of them saw.

Python clients would be the limit: 100 of them at 100 commits a second is 10,000 deliveries a second, of which each
would wait for the others' interpreter.
"""

from __future__ import annotations

import asyncio
import shutil
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.http2 import PREFACE, frame, header
from benchmarks.machine import LOAD_CORE, pin

MISSING = "there is no C compiler: apt-get install gcc libc6-dev"
READY_SECONDS = 20.0
_RECORD = struct.Struct("=IIq")
# HTTP/2 (RFC 9113): frame types and flags, a window as large as it goes.
_DATA, _HEADERS, _SETTINGS, _WINDOW_UPDATE = 0x0, 0x1, 0x4, 0x8
_END_STREAM, _END_HEADERS, _ACK = 0x1, 0x4, 0x1
_LARGEST_WINDOW = 2**31 - 1


def installed() -> bool:
    return shutil.which("cc") is not None


def mark(number: int) -> str:
    """What the sink looks for."""
    return f"mark-{number:09}"


@dataclass(frozen=True, slots=True)
class Hello:
    """What a subscriber sends at first, and when it was first answered."""

    first: bytes
    reply: bytes = b""


def http_hello(path: str, token: str) -> Hello:
    """A feed as NDJSON."""
    return Hello(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {token}\r\n\r\n".encode())


def grpc_hello(method: str, message: bytes, token: str, *, half_close: bool = True) -> Hello:
    """A gRPC call with one message from the client, whose flow control never stops the server."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **({"authorization": f"Bearer {token}"} if token else {}),
    }
    window = struct.pack(">HI", 4, _LARGEST_WINDOW)
    return Hello(
        PREFACE
        + frame(_SETTINGS, 0, 0, window)
        + frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - 65_535))
        + frame(_HEADERS, _END_HEADERS, 1, b"".join(header(name, value) for name, value in headers.items()))
        + frame(_DATA, _END_STREAM if half_close else 0, 1, b"\0" + struct.pack(">I", len(message)) + message),
        reply=frame(_SETTINGS, _ACK, 0, b""),
    )


class Sink:
    """Subscribers that are connected and ready."""

    def __init__(self, process: asyncio.subprocess.Process, subscribers: int, expected: int, records: Path) -> None:
        self._process = process
        self._subscribers = subscribers
        self._expected = expected
        self._records = records

    async def arrivals(self, patience: float) -> list[dict[int, int]]:
        """Wait for the end; for each subscriber, mark to when it arrived (``time.time_ns``), in its order.

        Raises:
            RuntimeError: a subscriber missed a mark or waited for it longer than *patience* seconds, got one twice, or
                got them in another order than its neighbours.
        """
        try:
            await asyncio.wait_for(self._process.wait(), patience)
        except TimeoutError:
            self._process.terminate()
            await self._process.wait()
        seen: list[dict[int, int]] = [{} for _ in range(self._subscribers)]
        for subscriber, number, moment in _RECORD.iter_unpack(self._records.read_bytes()):
            if number in seen[subscriber]:
                raise RuntimeError(f"subscriber {subscriber} got mark {number} twice")
            seen[subscriber][number] = moment
        order = list(seen[0])
        if sorted(order) != list(range(self._expected)) or any(list(each) != order for each in seen):
            raise RuntimeError(f"of {self._expected} marks some were missed, or came in different orders")
        return seen


@asynccontextmanager
async def sink(
    folder: Path, address: Path | str, hello: Hello, ready: str, *, subscribers: int, expected: int
) -> AsyncIterator[Sink]:
    """Connect *subscribers* to *address* (a socket's path, or host:port).

    The block begins when *ready* (a text) has reached all of them.
    """
    program = folder / "sink"
    if not program.exists():
        source = Path(__file__).with_suffix(".c")
        compiler = await asyncio.create_subprocess_exec("cc", "-O2", str(source), "-o", str(program))
        if await compiler.wait() != 0:
            raise RuntimeError("sink.c does not compile")
    first, reply, records = folder / "sink.hello", folder / "sink.reply", folder / "sink.records"
    first.write_bytes(hello.first)
    reply.write_bytes(hello.reply)
    process = await asyncio.create_subprocess_exec(
        *(*pin(LOAD_CORE), str(program), str(address), str(subscribers), str(first), str(reply), ready),
        *(str(expected), str(records)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), READY_SECONDS)
        if line != b"ready\n":
            raise RuntimeError("the subscribers could not connect")
        yield Sink(process, subscribers, expected, records)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
