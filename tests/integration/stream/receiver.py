"""A receiver of webhooks: a TLS server on loopback that answers as badly as it is told to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from services.stream.endpoints import Receiver


@dataclass(frozen=True)
class Request:
    """What arrived."""

    server_name: str | None
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def is_signed_by(self, secret: str) -> bool:
        """Whether one of the signatures is by *secret*, checked as the specification tells a receiver to."""
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        content = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.body
        expected = "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        return expected in self.headers["webhook-signature"].split(" ")


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[bool | None]]
"""Answers; true: with 2xx."""


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    """Answer with *code*; ``retry_after="1"`` is the header ``retry-after``."""

    async def answer(request: Request, writer: asyncio.StreamWriter) -> bool:
        lines = [f"HTTP/1.1 {code} x", f"content-length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return 200 <= code < 300

    return answer


class Counting:
    """Take a moment, then answer as *behaviour* does. ``most``: so many requests were open at the same time."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.most = 0
        self._behaviour = behaviour
        self._open = 0

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> bool | None:
        self._open += 1
        self.most = max(self.most, self._open)
        await asyncio.sleep(0.01)
        self._open -= 1
        return await self._behaviour(request, writer)


async def silence(request: Request, writer: asyncio.StreamWriter) -> None:
    """Say nothing for as long as the other side waits."""
    await writer.wait_closed()


async def drip(request: Request, writer: asyncio.StreamWriter) -> None:
    """Always a byte more, never an end."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def reset(request: Request, writer: asyncio.StreamWriter) -> None:
    """Break off without a word."""
    writer.transport.abort()


async def garbage(request: Request, writer: asyncio.StreamWriter) -> None:
    """Speak something else."""
    writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
    writer.close()


async def flood(request: Request, writer: asyncio.StreamWriter) -> None:
    """A body that never ends, as fast as it is read."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


class HookReceiver:
    """The server. ``behaviour`` answers each request; ``requests`` are those that arrived whole."""

    def __init__(self, folder: Path, *, name: str = "127.0.0.1", certified: str | None = None) -> None:
        self.behaviour: Behaviour = status(204)
        self.requests: list[Request] = []
        self.connections = 0
        self.name = name
        self.authority = folder / f"receiver-{name}-{id(self)}.pem"
        self._context = _context(self.authority, certified or name)
        self._server_names: dict[Any, str | None] = {}
        self._server: asyncio.Server | None = None
        self._arrived = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        def remember(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            self._server_names[connection] = name

        self._context.sni_callback = remember
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections from now on, and break off those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def opened(self) -> Receiver:
        """The entry of the topology that opens it."""
        return Receiver(self.name, self.port, self.authority)

    def url(self, path: str = "/hook") -> str:
        return f"https://{self.name}:{self.port}{path}"

    async def wait_for(self, count: int) -> list[Request]:
        """Wait until *count* requests have arrived."""
        async with asyncio.timeout(60), self._arrived:
            await self._arrived.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                request = await self._read(reader, writer)
                async with self._arrived:
                    self.requests.append(request)
                    self._arrived.notify_all()
                await self.behaviour(request, writer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side has gone, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in head[1:] if line)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        server_name = self._server_names.get(writer.get_extra_info("ssl_object"))
        return Request(server_name, head[0].split(" ")[1], headers, body)


def _context(authority_file: Path, name: str) -> ssl.SSLContext:
    """A server's context with a fresh certificate for *name*; its authority is written to *authority_file*."""
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receivers of the tests")])
    authority = (
        _builder(issuer, issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    try:
        alternative: x509.GeneralName = x509.IPAddress(ip_address(name))
    except ValueError:
        alternative = x509.DNSName(name)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    leaf = (
        _builder(x509.Name([]), issuer, key.public_key())
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=True)
        .add_extension(issuer_id, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    authority_file.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    chain = authority_file.with_suffix(".chain")
    chain.write_bytes(
        leaf.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
    )
