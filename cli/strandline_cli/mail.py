"""The mail sink: takes every mail that the platform sends and keeps it as a file."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

from strandline_cli.home import write_private
from strandline_cli.parts import Layout, Part, PlatformFailure
from strandline_cli.probes import tcp_greets


def part(layout: Layout) -> Part:
    """The sink, as `status` sees it. It has no process of its own."""
    port = layout.ports.mail
    return Part(name="mail", address=f"smtp://127.0.0.1:{port}", ready=lambda: tcp_greets(port, b"220 "))


@asynccontextmanager
async def sink(layout: Layout) -> AsyncIterator[None]:
    """Take mail on 127.0.0.1 inside the running event loop until the block ends.

    Raises:
        PlatformFailure: somebody has taken its port.
    """
    from aiosmtpd.smtp import SMTP

    keeper = _Keeper(layout.home.mail)
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: SMTP(keeper, hostname="localhost", enable_SMTPUTF8=True), "127.0.0.1", layout.ports.mail
        )
    except OSError as failure:
        raise PlatformFailure(f"mail cannot be taken: {failure.strerror}") from None
    try:
        yield
    finally:
        server.close()


def read(folder: Path) -> Iterator[dict[str, str]]:
    """The mails that were taken, newest first: date (when it came), to, subject and text, safe to print."""
    for path in sorted(folder.glob("*.eml"), reverse=True):
        message = message_from_bytes(path.read_bytes(), policy=default)
        assert isinstance(message, EmailMessage)
        body = message.get_body(("plain", "html"))
        came = datetime.fromtimestamp(path.stat().st_mtime).astimezone().isoformat(timespec="seconds")
        yield {
            "date": came,
            "to": _printable(str(message["to"] or "")),
            "subject": _printable(str(message["subject"] or "")),
            "text": _printable(body.get_content().replace("\r\n", "\n").strip()) if body is not None else "",
        }


def _printable(text: str) -> str:
    """*text* without what could steer a terminal: any local process may put a mail here."""
    return "".join(
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}" for character in text
    )


class _Keeper:
    """The handler that aiosmtpd asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        # The names sort by time; the number keeps two mails of one millisecond apart.
        name = f"{time.time_ns() // 1_000_000}-{next(self._numbers):04}.eml"
        write_private(self._folder / name, envelope.content)
        return "250 kept"
