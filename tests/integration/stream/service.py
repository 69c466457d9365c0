"""The stream service, composed as its ``server.py`` does it, and readers of what it sends."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2
from joserfc.jwk import OKPKey
from prometheus_client import REGISTRY
from strandline.stream.v1 import feed_pb2, stream_service_pb2, stream_service_pb2_grpc

from services.runtime import upstream
from services.runtime.access import AccessCopy
from services.runtime.bus import Bus
from services.runtime.call import Call, Namespace
from services.runtime.database import Database
from services.runtime.gate import Gate
from services.runtime.rpc import Method, generic_handler
from services.runtime.sealing import SealingKeys
from services.runtime.tokens import KeySet, TokenVerifier
from services.stream import subscription_api
from services.stream.api import StreamHandlers
from services.stream.changes import Changes
from services.stream.deliveries import Deliveries
from services.stream.egress import Egress
from services.stream.endpoints import Receiver
from services.stream.feeds import Feeds, feeds_for_each_user
from services.stream.http import HttpPort
from services.stream.hub import MAX_RING_BYTES
from services.stream.hubs import Hubs
from services.stream.lookups import GetAddresses
from services.stream.multiplex import Connection, Multiplexer
from services.stream.parked_changes import ParkedChanges
from services.stream.passes import Passes
from services.stream.pulls import Pulls
from services.stream.snapshots import ResumeTokens
from services.stream.stalls import Stalls
from services.stream.subscription_api import SubscriptionHandlers
from services.stream.subscriptions import Subscriptions
from services.stream.ticket_api import TicketHandlers
from services.stream.upstream import Logs
from services.stream.webhook_sender import WebhookSender
from services.stream.webhooks import Webhooks
from tests.loopback import HOST

ISSUER = "https://strandline.local"
ANN = "0192f0a0-0000-7000-8000-000000000001"
SESSION = "0192f0a0-0000-7000-8000-000000000002"
KEY = OKPKey.generate_key("Ed25519")
SECONDS = 30.0


def access_token(user: str = ANN, session: str = SESSION, lifetime: float = 600, scope: str = "") -> str:
    now = int(time.time())
    claims: dict[str, Any] = {"iss": ISSUER, "aud": "strandline", "sub": user, "sid": session, "scope": scope}
    claims |= {"iat": now, "nbf": now, "exp": now + lifetime}
    signed = ".".join(
        _encode(json.dumps(part).encode()) for part in ({"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"}, claims)
    )
    private_key = KEY.private_key
    assert isinstance(private_key, Ed25519PrivateKey)
    return f"{signed}.{_encode(private_key.sign(signed.encode()))}"


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def _keys(look_again: bool) -> KeySet:
    return KeySet({"k1": KEY})


class StreamService:
    """One replica."""

    def __init__(
        self,
        owner: Path,
        nats_url: str,
        address: Path,
        *,
        ring_bytes: int = MAX_RING_BYTES,
        http_port: int = 0,
        own_url: str = "",
        receivers: Sequence[Receiver] = (),
        get_addresses: GetAddresses = socket.getaddrinfo,
        public_tls: bool = False,
        max_feeds_per_user: int = 15_000,
    ) -> None:
        """*own_url*: its own database; without one there are only feeds. *receivers*: open to webhooks.

        *get_addresses*: what their names are looked up with.
        """
        self.grpc_address = f"unix:{address}.sock"
        self.http_socket = f"{address}-http.sock"
        self._http_address = f"{HOST}:{http_port}" if http_port else f"unix:{self.http_socket}"
        self.bus = Bus(nats_url, ("", ""), None, address.name)
        self._upstream = upstream.channel(f"unix:{owner}")
        self.access = AccessCopy(self._upstream, self.bus)
        self.logs = logs = Logs(self._upstream, self._upstream)
        self.hubs = Hubs(logs, self.bus, ring_bytes=ring_bytes)
        allowance = feeds_for_each_user(max_feeds_per_user)
        self._feeds = feeds = Feeds(self.hubs, logs, self.access, ResumeTokens(bytes(32)), allowance)
        self.gate = gate = Gate(TokenVerifier(ISSUER, _keys), self.access)
        self._multiplexer = multiplexer = Multiplexer(feeds, gate, allowance)
        changes = Changes(self.hubs)
        passes = Passes(bytes(32), public_tls)
        self._stalls = stalls = Stalls()
        self._http = HttpPort(feeds, multiplexer, changes, gate, passes, stalls)
        self._server = grpc.aio.server()
        handlers = StreamHandlers(feeds, multiplexer, changes, stalls)
        handler = generic_handler("strandline.stream.v1.StreamService", handlers, gate.admit)
        self._server.add_generic_rpc_handlers((handler,))
        self.database = Database(own_url) if own_url else None
        if self.database is not None:
            self.egress = Egress(receivers, seconds=120, get_addresses=get_addresses)
            self.webhooks = Webhooks(self.database, WebhookSender(self.egress, SealingKeys({1: bytes(32)})), receivers)
            self.subscriptions = Subscriptions(self.database, logs, self.webhooks)
            self.deliveries = Deliveries(self.database, self.hubs, logs)
            self.parked = ParkedChanges(self.database, logs)
            pulls = Pulls(self.deliveries, self.hubs, self.access, stalls)
            consumers = SubscriptionHandlers(self.subscriptions, self.parked, self.deliveries, pulls, bytes(32))
            handler = generic_handler(subscription_api.SERVICE, consumers, gate.admit)
            self._server.add_generic_rpc_handlers((handler,))
            tickets = TicketHandlers(passes, self.database, self.access)
            handler = generic_handler("strandline.stream.v1.TicketService", tickets, gate.admit)
            self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(self.grpc_address)

    async def start(self) -> None:
        self.bus.start()
        self.access.on_change(self.hubs.access_changed)
        await self.access.start()
        await self.hubs.start()
        await self._http.start(self._http_address)
        await self._server.start()
        self._looking = asyncio.create_task(self._stalls.run())

    @property
    def open_feeds(self) -> int:
        """As the metrics tell it."""
        return int(REGISTRY.get_sample_value("strandline_stream_feeds_open") or 0)

    async def emptied(self) -> None:
        """Return when no feed is open any more."""
        async with asyncio.timeout(30):
            while True:
                if not self.open_feeds:
                    return
                await asyncio.sleep(0.02)

    async def knows(self, namespace: Namespace) -> None:
        """Return when the copy of access rules has heard that this life of *namespace* began."""
        async with asyncio.timeout(30):
            while True:
                if self.access.began(namespace) is not None:
                    return
                await asyncio.sleep(0.02)

    async def is_stale(self) -> None:
        """Return when the copy of access rules is too old to go by."""
        async with asyncio.timeout(30):
            while True:
                if not self.access.fresh:
                    return
                await asyncio.sleep(0.02)

    async def has_pulls(self, count: int) -> None:
        """Return when so many streams of deliveries are open, as the metrics tell it."""
        async with asyncio.timeout(30):
            while True:
                if REGISTRY.get_sample_value("strandline_stream_pulls_open") == count:
                    return
                await asyncio.sleep(0.02)

    async def drain(self) -> None:
        self._multiplexer.drain()
        await self._feeds.drain()
        await self._http.stop()
        await self._server.stop(grace=2)

    async def stop(self) -> None:
        await self.drain()
        await self.disconnect()

    async def break_off(self) -> None:
        """Go away without a word, as far as that is possible inside one process."""
        await asyncio.gather(self._server.stop(None), self._http.stop())
        await self.disconnect()

    async def disconnect(self) -> None:
        self._looking.cancel()
        await self.hubs.stop()
        await self.access.stop()
        await self.bus.close()
        await self._upstream.close()
        if self.database is not None:
            await self.egress.close()
            await self.database.close()

    @asynccontextmanager
    async def watch(self, namespace: str = "tides", token: str = "", **request: Any) -> AsyncIterator[Reader]:
        """A feed over gRPC."""
        message = stream_service_pb2.WatchRequest(parent=f"namespaces/{namespace}", **request)
        async with grpc.aio.insecure_channel(self.grpc_address) as channel:
            stub: stream_service_pb2_grpc.StreamServiceAsyncStub = stream_service_pb2_grpc.StreamServiceStub(channel)
            call = stub.Watch(message, metadata=(("authorization", f"Bearer {token or access_token()}"),))
            yield Reader(call.__aiter__())
            call.cancel()

    @asynccontextmanager
    async def watch_members(self, namespace: str = "tides", token: str = "", **request: Any) -> AsyncIterator[Reader]:
        """The feed of a namespace's members over gRPC."""
        message = stream_service_pb2.WatchMembersRequest(parent=f"namespaces/{namespace}", **request)
        async with grpc.aio.insecure_channel(self.grpc_address) as channel:
            stub: stream_service_pb2_grpc.StreamServiceAsyncStub = stream_service_pb2_grpc.StreamServiceStub(channel)
            call = stub.WatchMembers(message, metadata=(("authorization", f"Bearer {token or access_token()}"),))
            yield Reader(call.__aiter__())
            call.cancel()

    @asynccontextmanager
    async def step(self, **request: Any) -> AsyncIterator[Reader]:
        """A feed without a transport: a message is made when it is asked for, and not before."""
        message = stream_service_pb2.WatchRequest(parent="namespaces/tides", **request)
        call = Call({"authorization": f"Bearer {access_token()}"})
        service = stream_service_pb2.DESCRIPTOR.services_by_name["StreamService"]
        await self.gate.admit(Method(service.methods_by_name["Watch"]), message, call)
        async with self._feeds.open(message, call) as feed, aclosing(feed.messages()) as messages:
            yield Reader(feed_pb2.WatchResponse.FromString(each.protobuf) async for each in messages)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of many watches without a transport: nothing is taken from it before it is asked for."""
        call = Call({"authorization": f"Bearer {access_token()}"})
        service = stream_service_pb2.DESCRIPTOR.services_by_name["StreamService"]
        method = Method(service.methods_by_name["WatchMany"])
        await self.gate.admit(method, stream_service_pb2.WatchManyRequest(), call)
        async with self._multiplexer.connect(call) as connection:
            yield connection

    @asynccontextmanager
    async def get(
        self, query: str, headers: dict[str, str] | None = None, namespace: str = "tides"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A feed over HTTP."""
        async with self.session() as session:
            url = f"http://stream/v1/namespaces/{namespace}:watch?{query}"
            async with session.get(url, headers=headers) as response:
                yield response

    def session(self, token: str | None = None) -> aiohttp.ClientSession:
        """An HTTP session that carries a token (empty: none)."""
        token = access_token() if token is None else token
        return aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self.http_socket),
            headers={"authorization": f"Bearer {token}"} if token else {},
            read_bufsize=2**24,
        )


class Reader:
    """Reads a feed and checks, message by message, that ranges join up and units are dense."""

    def __init__(self, messages: AsyncIterator[feed_pb2.WatchResponse]) -> None:
        self._messages = messages
        self.last: feed_pb2.WatchResponse | None = None
        self.units: list[feed_pb2.Unit] = []

    async def next(self, seconds: float = SECONDS) -> feed_pb2.WatchResponse:
        """The next message."""
        message = await asyncio.wait_for(anext(self._messages), seconds)
        if self.last is not None:
            assert message.after_revision == self.last.revision, "ranges do not join up"
        assert message.revision >= message.after_revision
        previous = max([message.after_revision, *(unit.revision for unit in self.units[-1:])])
        for unit in message.units.units:
            assert previous < unit.revision <= message.revision, "a unit is out of order or range"
            previous = unit.revision
        self.units += message.units.units
        self.last = message
        return message

    async def until(self, revision: int, seconds: float = SECONDS) -> list[feed_pb2.Unit]:
        """Read until a message covers *revision*; all units so far."""
        async with asyncio.timeout(seconds):
            while self.last is None or self.last.revision < revision:
                await self.next(seconds)
        return self.units

    async def end(self, seconds: float = SECONDS) -> feed_pb2.End:
        """Read until the feed ends, with ``End`` as its last message."""
        async with asyncio.timeout(seconds):
            while not (await self.next(seconds)).HasField("end"):
                pass
        assert self.last is not None
        try:
            more = await anext(self._messages)
        except StopAsyncIteration:
            return self.last.end
        raise AssertionError(f"{more} came after the end")


def entities_of(units: list[feed_pb2.Unit]) -> dict[str, dict[str, Any]]:
    """The state that the units add up to: data by id."""
    state: dict[str, dict[str, Any]] = {}
    for unit in units:
        for change in unit.changes:
            entity_id = change.entity.name.rsplit("/", 1)[1]
            if change.kind == feed_pb2.Change.DELETED:
                state.pop(entity_id, None)
            else:
                state[entity_id] = dict(change.entity.data)
    return state


def reason(failure: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    """Reason and metadata of a refusal."""
    info = error_details_pb2.ErrorInfo()
    _status(failure).details[0].Unpack(info)
    return info.reason, dict(info.metadata)


def fields(failure: grpc.aio.AioRpcError) -> list[str]:
    """The fields that a refusal names."""
    request = error_details_pb2.BadRequest()
    for detail in _status(failure).details[1:]:
        detail.Unpack(request)
    return [violation.field for violation in request.field_violations]


def _status(failure: grpc.aio.AioRpcError) -> status_pb2.Status:
    raw = dict(failure.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(raw, bytes)
    return status_pb2.Status.FromString(raw)
