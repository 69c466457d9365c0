"""Requests to endpoints that users name, so that none of them reaches what only this platform may reach.

- The name is resolved once for each new connection. If one of its addresses is not public, nothing is connected to;
  otherwise the connection goes to the very addresses that were looked at. The certificate is checked against the name.
- Redirects are answers, not orders. Proxies in the environment do not count. Bodies are not decompressed; at most
  64 KiB of one are read. Everything together has 5 s, from the moment at which there is room to look up the name.

Each receiver that the topology opens has a pool of its own.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import ip_address
from time import monotonic
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.stream.endpoints import Address, Endpoint, Receiver, is_loopback, is_public
from services.stream.lookups import GetAddresses, LookUps

SECONDS: Final = 5.0
MAX_RESPONSE: Final = 64 * 1024


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
        self._look_ups = LookUps(get_addresses)
        self._receivers = {(receiver.host, receiver.port): receiver for receiver in receivers}
        self._sessions: dict[Receiver | None, aiohttp.ClientSession] = {}

    def _session(self, receiver: Receiver | None) -> aiohttp.ClientSession:
        """The connections to *receiver*; None: to the public internet."""
        session = self._sessions.get(receiver)
        if session is None:
            allowed = is_public if receiver is None else is_loopback
            context = ssl.create_default_context(cafile=str(receiver.authority) if receiver else None)
            session = self._sessions[receiver] = self._new_session(allowed, context)
        return session

    def _new_session(self, allowed: Callable[[Address], bool], context: ssl.SSLContext) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Resolver(allowed, self._look_ups),
                use_dns_cache=False,
                ssl=context,
                limit=0,  # who sends bounds how much: a request that waited here would count as slow
                keepalive_timeout=15,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),  # `post` has its own
            auto_decompress=False,
            trust_env=False,
        )

    async def post(self, namespace: str, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> Answer:
        """What the receiver answers to *body*, sent for *namespace*, whatever the status.

        Raises:
            EgressFailure: ADDRESS_REFUSED, NAME_NOT_FOUND, TLS_FAILED, CONNECTION_FAILED, TIMEOUT or BAD_RESPONSE.
            Unavailable: OVERLOADED, it was not sent because of a limit of ours.
        """
        session = self._session(self._receivers.get((endpoint.host, endpoint.port)))
        limit = asyncio.timeout(self._seconds)
        request = _Request(namespace, limit, self._seconds)
        _REQUEST.set(request)
        try:
            async with (
                limit,
                session.post(
                    URL(endpoint.url, encoded=True),
                    data=body,
                    headers={"accept-encoding": "identity", **headers},
                    allow_redirects=False,
                ) as response,
            ):
                start = await _read_start(response)
                found = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, found, start, monotonic() - request.began)
        except (aiohttp.ClientError, OSError, TimeoutError) as failure:
            reason, message = _explain(failure, self._seconds)
            raise EgressFailure(reason, message, monotonic() - request.began) from failure

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()


class _Request:
    """A request that is under way: for whom, and since when its time runs."""

    def __init__(self, namespace: str, limit: asyncio.Timeout, seconds: float) -> None:
        self.namespace = namespace
        self.began = monotonic()
        self._limit = limit
        self._seconds = seconds

    def hold(self) -> None:
        """Let no time pass, until it begins again."""
        self._limit.reschedule(None)

    def begin(self) -> None:
        """All of its time is ahead."""
        self.began = monotonic()
        self._limit.reschedule(asyncio.get_running_loop().time() + self._seconds)


# The one that this task is about: a resolver is not told.
_REQUEST: Final[ContextVar[_Request]] = ContextVar("_REQUEST")


class _Resolver(AbstractResolver):
    """Resolves names to addresses that are *allowed*, or to none at all."""

    def __init__(self, allowed: Callable[[Address], bool], look_ups: LookUps) -> None:
        self._allowed = allowed
        self._look_ups = look_ups

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        request = _REQUEST.get()
        request.hold()
        addresses = await self._look_ups.addresses(request.namespace, host, port, request.begin)
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
