"""Requests to addresses that users name, so that none of them reaches what only this platform may reach.

The rules, in the order in which they are applied:

- A URL is ``https``, with a DNS name in ASCII and port 443 or 8443; no user, no fragment, no address in any spelling.
- The name is resolved once for each new connection. If one of its addresses is not public, nothing is connected to;
  otherwise the connection goes to the very addresses that were looked at. The certificate is checked against the name.
- Redirects are answers, not orders. Proxies in the environment do not count. Bodies are not decompressed; at most
  64 KiB of one are read. Everything together has 5 s.

A topology may open single *receivers* on loopback, for tests: ``host:port`` and the authority of their certificate.
They and nothing else may be on loopback, and each has a pool of its own.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.runtime.errors import invalid_field

Address: TypeAlias = IPv4Address | IPv6Address
GetAddresses: TypeAlias = Callable[..., Sequence[tuple[Any, ...]]]

SECONDS: Final = 5.0
MAX_RESPONSE: Final = 64 * 1024
MAX_URL: Final = 2048
PORTS: Final = frozenset({443, 8443})
# A name that does not answer holds a thread until the resolver gives up: not the threads that others wait for.
_RESOLVER_THREADS: Final = 16

_URL = re.compile(
    r"https://(?P<host>\[[^\]/?#]*\]|[^:/?#\[\]]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?"
    r"(?P<query>\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# A last label of digits, or 0x and digits, makes the whole name an address to some parser.
_TOP_LABEL = re.compile(r"[a-z][a-z0-9-]*")
# Names that mean this machine or this network by definition (RFC 6761, 6762, 8375, 9476 and ICANN's `internal`).
_LOCAL_SUFFIXES = frozenset({"localhost", "localdomain", "local", "internal", "arpa", "onion", "alt"})

_REFUSED_V4: tuple[IPv4Network, ...] = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; some clouds' metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # one cloud's platform address, though it looks public
        "169.254.0.0/16",  # link-local, metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
# Only here are IPv6 addresses of the public internet: everything mapped, translated (64:ff9b::/96), unique local,
# link-local, site-local or multicast lies outside.
_PUBLIC_V6 = IPv6Network("2000::/3")
_REFUSED_V6: tuple[IPv6Network, ...] = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3ffe::/16",
        "3fff::/20",
    )
)


def is_public(address: Address) -> bool:
    """Whether *address* is one of the public internet, and not a wrapping of another one."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _REFUSED_V4)
    return address.scope_id is None and address in _PUBLIC_V6 and not any(address in block for block in _REFUSED_V6)


def _is_loopback(address: Address) -> bool:
    return address.is_loopback


@dataclass(frozen=True, slots=True)
class Receiver:
    """One address on loopback that the topology opens, and the file with the authority of its certificate."""

    host: str
    port: int
    authority: Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL that may be asked; its host is in lower case."""

    url: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said: status, headers in lower case, at most 64 KiB of the body, and how long it took."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class EgressFailure(Exception):
    """No answer came. ``reason`` is stable; the text names nothing that the resolver or the network said."""

    def __init__(self, reason: str, message: str, seconds: float) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.seconds = seconds


class _Refused(OSError):
    """The name leads to an address that is not allowed."""


def parse_receivers(text: str) -> tuple[Receiver, ...]:
    """Receivers from ``host:port=/path/of/ca.pem``, separated by commas; empty: none.

    Raises:
        RuntimeError: one is malformed, not on loopback, or its file is missing.
    """
    receivers = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        address, _, authority = item.partition("=")
        host, _, port = address.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536 and authority):
            raise RuntimeError(f"a webhook receiver is <host>:<port>=<file of its authority>, not {item!r}")
        literal = _literal(host)
        if literal is not None and not literal.is_loopback:
            raise RuntimeError(f"a webhook receiver must be on loopback, and {host} is not")
        if not Path(authority).is_file():
            raise RuntimeError(f"the authority of the webhook receiver {address} is missing: {authority}")
        receivers.append(Receiver(host.lower(), int(port), Path(authority)))
    return tuple(receivers)


def parse_endpoint(url: str, receivers: Sequence[Receiver] = (), field: str = "endpoint") -> Endpoint:
    """The endpoint that *url* names.

    Raises:
        InvalidArgument: INVALID_FIELD, not a URL that may be asked.
    """
    if len(url) > MAX_URL:
        raise invalid_field(field, f"must have at most {MAX_URL} characters")
    match = _URL.fullmatch(url)
    if match is None:
        raise invalid_field(field, "must be https://<name>[:443|:8443][/path][?query], all of it in ASCII")
    host, port = match["host"].lower(), int(match["port"] or 443)
    endpoint = Endpoint(url, host, port)
    if any((receiver.host, receiver.port) == (host, port) for receiver in receivers):
        return endpoint
    labels = host.split(".")
    if host.startswith("[") or not _TOP_LABEL.fullmatch(labels[-1]):
        raise invalid_field(field, "must have a DNS name, not an address; a name does not end with a dot")
    if len(host) > 253 or len(labels) < 2 or not all(map(_LABEL.fullmatch, labels)):
        raise invalid_field(field, "must have a full DNS name; one with other letters is written xn--...")
    if labels[-1] in _LOCAL_SUFFIXES:
        raise invalid_field(field, "must have a name of the public internet")
    if port not in PORTS:
        raise invalid_field(field, "must have port 443 or 8443")
    return endpoint


class Egress:
    """Sends requests to endpoints. The certificates of authorities are loaded when the first one is sent."""

    def __init__(
        self,
        receivers: Sequence[Receiver] = (),
        *,
        seconds: float = SECONDS,
        get_addresses: GetAddresses = socket.getaddrinfo,
    ) -> None:
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, "egress-dns")
        self._get_addresses = get_addresses
        self._receivers = {(receiver.host, receiver.port): receiver for receiver in receivers}
        self._sessions: dict[Receiver | None, aiohttp.ClientSession] = {}

    def _session(self, receiver: Receiver | None) -> aiohttp.ClientSession:
        """The connections to *receiver*; None: to the public internet."""
        session = self._sessions.get(receiver)
        if session is None:
            allowed = is_public if receiver is None else _is_loopback
            context = ssl.create_default_context(cafile=str(receiver.authority) if receiver else None)
            session = self._sessions[receiver] = self._new_session(allowed, context)
        return session

    def _new_session(self, allowed: Callable[[Address], bool], context: ssl.SSLContext) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Resolver(allowed, self._get_addresses, self._threads),
                use_dns_cache=False,
                ssl=context,
                limit=0,  # who sends bounds how much: a request that waited here would count as slow
                keepalive_timeout=15,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._seconds),
            auto_decompress=False,
            trust_env=False,
        )

    async def post(self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> Answer:
        """What the receiver answers to *body*, whatever the status.

        Raises:
            EgressFailure: ADDRESS_REFUSED, NAME_NOT_FOUND, TLS_FAILED, CONNECTION_FAILED, TIMEOUT or BAD_RESPONSE.
        """
        session = self._session(self._receivers.get((endpoint.host, endpoint.port)))
        began = monotonic()
        try:
            async with session.post(
                URL(endpoint.url, encoded=True),
                data=body,
                headers={"accept-encoding": "identity", **headers},
                allow_redirects=False,
            ) as response:
                start = await _read_start(response)
                found = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, found, start, monotonic() - began)
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            reason, message = _explain(failure, self._seconds)
            raise EgressFailure(reason, message, monotonic() - began) from failure

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Resolver(AbstractResolver):
    """Resolves names to addresses that are *allowed*, or to none at all."""

    def __init__(self, allowed: Callable[[Address], bool], get_addresses: GetAddresses, threads: ThreadPoolExecutor):
        self._allowed = allowed
        self._get_addresses = get_addresses
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._threads, lambda: self._get_addresses(host, port, type=socket.SOCK_STREAM)
        )
        addresses = [address[0] for *_, address in found]
        if not addresses or not all(self._allowed(ip_address(address)) for address in addresses):
            raise _Refused("an address of the name is not allowed")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held open."""


async def _read_start(response: aiohttp.ClientResponse) -> bytes:
    """At most 64 KiB of the body; a connection with more to come is closed."""
    start = bytearray()
    async for chunk in response.content.iter_any():
        start += chunk
        if len(start) >= MAX_RESPONSE:
            response.close()
            break
    return bytes(start[:MAX_RESPONSE])


def _explain(failure: BaseException, seconds: float) -> tuple[str, str]:
    """A stable reason and a text. What the system said may name inner addresses, so it is not repeated."""
    causes: list[BaseException] = []
    cause: BaseException | None = failure
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, _Refused) for cause in causes):
        return "ADDRESS_REFUSED", "the name leads to an address that is not public"
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return "NAME_NOT_FOUND", "the name cannot be resolved"
    if isinstance(failure, TimeoutError):
        return "TIMEOUT", f"no complete answer within {seconds:g} s"
    for cause in causes:
        # aiohttp's own error is one of ssl's too, but without the message.
        if isinstance(cause, ssl.SSLCertVerificationError) and not isinstance(cause, aiohttp.ClientError):
            return "TLS_FAILED", f"the certificate is not good: {cause.verify_message}"
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return "TLS_FAILED", "no TLS connection came about"
    if isinstance(failure, aiohttp.ClientConnectionError | OSError):
        return "CONNECTION_FAILED", "the connection was refused or broke off"
    return "BAD_RESPONSE", "the answer is not HTTP"


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
