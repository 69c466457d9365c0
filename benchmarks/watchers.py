"""Watchers in one C program (``watchers.c``) that count deliveries and check that the ranges they get join up."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import LOAD_CORE, pin
from benchmarks.sink import Hello

MISSING = "there is no C compiler: apt-get install gcc libc6-dev"
READY_SECONDS = 60.0


def installed() -> bool:
    return shutil.which("cc") is not None


@dataclass(frozen=True, slots=True)
class Feed:
    """Where the watchers connect to, what they say, and how messages are found (``json``, ``grpc``, ``etcd``)."""

    protocol: str
    address: str
    hello: Hello


@dataclass(frozen=True, slots=True)
class Counted:
    """From the first later message to the last, over all watchers."""

    seconds: float
    bytes: int
    messages: int


class Watchers:
    """Watchers that all have their first message."""

    def __init__(self, process: asyncio.subprocess.Process, count: int) -> None:
        self._process = process
        self.count = count

    async def counted(self, patience: float) -> Counted:
        """Wait until every watcher got everything.

        Raises:
            RuntimeError: one was closed, waited for too long, or got a range that does not join up.
        """
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), patience)
        if not line:
            raise RuntimeError(f"the watchers failed with {await self._process.wait()}; see above")
        seconds, size, messages = line.split()
        return Counted(float(seconds), int(size), int(messages))


@asynccontextmanager
async def watchers(folder: Path, feed: Feed, *, count: int, revisions: int) -> AsyncIterator[Watchers]:
    """*count* watchers of *feed*, each until *revisions* more have come; the block begins when all are served."""
    program = folder / "watchers"
    if not program.exists():
        source = Path(__file__).with_suffix(".c")
        compiler = await asyncio.create_subprocess_exec("cc", "-O2", str(source), "-o", str(program))
        if await compiler.wait() != 0:
            raise RuntimeError("watchers.c does not compile")
    hello, reply = folder / "watchers.hello", folder / "watchers.reply"
    hello.write_bytes(feed.hello.first)
    reply.write_bytes(feed.hello.reply)
    process = await asyncio.create_subprocess_exec(
        *(*pin(LOAD_CORE), str(program), feed.protocol, feed.address, str(count), str(hello), str(reply)),
        str(revisions),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if await asyncio.wait_for(process.stdout.readline(), READY_SECONDS) != b"ready\n":
            raise RuntimeError("the watchers could not connect")
        yield Watchers(process, count)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
