"""Mail: what is written to people, and its delivery in the background.

Whether a mail was delivered never changes an answer. Nothing about the recipient is logged, not even what the mail
server says, for it repeats the address.
"""

from __future__ import annotations

import asyncio
import logging
from email.message import EmailMessage
from typing import Final
from urllib.parse import unquote, urlsplit

import aiosmtplib

logger = logging.getLogger(__name__)

_MAX_WAITING: Final = 1000
_AT_ONCE: Final = 4
_TIMEOUT_SECONDS: Final = 10.0
# Pauses between attempts, in seconds; after the last one the mail is given up, and the person registers again.
_PAUSES: Final = (0.2, 0.5, 1, 2, 5, 15, 60, 300)


def verification_mail(address: str, token: str) -> EmailMessage:
    """Asks the owner of *address* to confirm it."""
    return _mail(
        address,
        "Confirm your address for Strandline",
        "Somebody, probably you, registered this address with Strandline. To confirm it, present this token within\n"
        f"72 hours:\n\n    {token}\n\n"
        f'that is: POST /v1/auth:verifyEmail {{"token": "{token}"}}\n\n'
        "If it was not you, do nothing: without the token the registration disappears.\n",
    )


def known_address_mail(address: str) -> EmailMessage:
    """Tells the owner of *address* that somebody tried to register it again."""
    return _mail(
        address,
        "You already have a Strandline account",
        "Somebody, probably you, tried to register this address with Strandline, but it has an account already.\n"
        "Nothing has changed. Sign in with the password that you have.\n",
    )


def _mail(address: str, subject: str, text: str) -> EmailMessage:
    message = EmailMessage()
    message["To"] = address
    message["Subject"] = subject
    message.set_content(text)
    return message


class Mailer:
    """Delivers mails over one SMTP server, each as soon as that takes it."""

    def __init__(self, url: str, sender: str) -> None:
        """*url* is ``smtp://[user:password@]host:port`` or ``smtps://...``."""
        parts = urlsplit(url)
        self._tls = parts.scheme == "smtps"
        self._host = parts.hostname or "localhost"
        self._port = parts.port
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._sender = sender
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._waiting: set[asyncio.Task[None]] = set()

    def send(self, message: EmailMessage) -> None:
        """Deliver *message* in the background, with retries; drop it when a thousand wait already."""
        if len(self._waiting) >= _MAX_WAITING:
            logger.error("a mail was dropped: %d wait already", _MAX_WAITING)
            return
        message["From"] = self._sender
        task = asyncio.create_task(self._deliver(message))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def close(self, seconds: float) -> None:
        """Give the mails that wait *seconds* to leave."""
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=seconds)
        for task in self._waiting:
            task.cancel()

    async def _deliver(self, message: EmailMessage) -> None:
        for pause in (*_PAUSES, None):
            try:
                async with self._slots:
                    await aiosmtplib.send(
                        message,
                        hostname=self._host,
                        port=self._port,
                        username=self._user,
                        password=self._password,
                        use_tls=self._tls,
                        timeout=_TIMEOUT_SECONDS,
                    )
                return
            except Exception as failure:
                # Not only the expected ones: nobody awaits this task. Without their text, which may hold the address.
                code = getattr(failure, "code", "no answer")
                logger.warning("a mail was not taken: %s, %s", type(failure).__name__, code)
            if pause is not None:
                await asyncio.sleep(pause)
        logger.error("a mail was given up")
