"""The bus: hints that something was committed. Losing it costs milliseconds, never a change."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from strandline.stream.v1 import log_service_pb2

from services.runtime.changelog import Head
from services.runtime.committer import Commit

logger = logging.getLogger(__name__)

# Above this only the range is sent; hubs read the log then.
MAX_NOTICE_BYTES = 512 * 1024
# What a stuck server may leave unsent; the client would wait at twice as much.
MAX_PENDING_BYTES = 2**20


def commit_subject(namespace: str) -> str:
    """Where commits to *namespace* are announced."""
    return f"strandline.commits.{namespace}"


class Bus:
    """One connection that looks after itself: it connects and reconnects in the background for as long as it lives."""

    def __init__(self, url: str, credentials: tuple[str, str], tls_dir: Path | None, name: str) -> None:
        self._url = url
        self._credentials = credentials
        self._tls_dir = tls_dir
        self._name = name
        self._client = Client()
        self._subscriptions: list[tuple[str, Callable[[bytes], Awaitable[None]]]] = []
        self._connecting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect; returns at once."""
        if self._url:
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        user, password = self._credentials
        pause = 0.05
        while True:
            try:
                await self._client.connect(
                    self._url,
                    user=user or None,
                    password=password or None,
                    name=self._name,
                    tls=self._tls(),
                    inbox_prefix=f"_INBOX_{self._name}".encode(),
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=1,
                    allow_reconnect=True,
                    connect_timeout=2,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    error_cb=self._failed,
                )
                break
            except (TimeoutError, OSError, nats.errors.Error) as failure:
                logger.warning("no bus yet: %s", failure)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
                self._client = Client()
        for subject, receive in list(self._subscriptions):
            await self._listen(subject, receive)

    async def _failed(self, failure: Exception) -> None:
        logger.warning("bus: %s", failure)

    def _tls(self) -> ssl.SSLContext | None:
        if self._tls_dir is None:
            return None
        context = ssl.create_default_context(cafile=self._tls_dir / "ca.pem")
        context.load_cert_chain(self._tls_dir / "cert.pem", self._tls_dir / "key.pem")
        return context

    async def subscribe(self, subject: str, receive: Callable[[bytes], Awaitable[None]]) -> None:
        """Call *receive* with each payload on *subject* (wildcards allowed), for as long as the bus lives."""
        self._subscriptions.append((subject, receive))
        if self._client.is_connected:
            await self._listen(subject, receive)

    async def _listen(self, subject: str, receive: Callable[[bytes], Awaitable[None]]) -> None:
        async def deliver(message: Msg) -> None:
            await receive(message.data)

        await self._client.subscribe(subject, cb=deliver)

    async def publish(self, subject: str, payload: bytes) -> None:
        """Send *payload* if there is a connection that takes it; otherwise it is lost, as everything here may be.

        Waits for nothing: what is sent by the next task is on its way before whoever the caller wakes afterwards runs.
        """
        if not self._client.is_connected or self._client.pending_data_size > MAX_PENDING_BYTES:
            return
        try:
            await self._client.publish(subject, payload)
        except (OSError, nats.errors.Error) as failure:
            logger.warning("not published on %s: %s", subject, failure)

    async def publish_commit(self, commit: Commit) -> None:
        """Announce *commit*, with its units when they are small enough."""
        notice = log_service_pb2.CommitNotice(head=head_message(commit.head), after_revision=commit.after)
        if sum(map(len, commit.units)) <= MAX_NOTICE_BYTES:
            notice.units.extend(commit.units)
        await self.publish(commit_subject(commit.head.namespace), notice.SerializeToString())

    async def close(self) -> None:
        """Flush and disconnect."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._client.is_connected or self._client.is_reconnecting:
            await self._client.close()


def head_message(head: Head) -> log_service_pb2.Head:
    """*head* as it travels."""
    return log_service_pb2.Head(
        namespace_id=head.namespace, epoch=head.epoch, revision=head.revision, horizon_revision=head.horizon
    )
