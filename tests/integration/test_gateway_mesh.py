"""The sidecars: who may call what, and what TLS they insist on."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from strandline_gateway.access import access_matrix, hosts
from strandline_gateway.certificates import ensure_certificates
from strandline_gateway.descriptor import rpcs

from tests.gateway_stack import Stack, running_stack

WORKLOADS = ("edge", "user", "entity", "stream")
SERVICES = ("user", "entity", "stream")


@pytest.fixture(scope="module")
async def mesh() -> AsyncIterator[Stack]:
    """A stack in which every workload, the edge too, has a way out to every service: more than an installation has."""
    async with running_stack(open_mesh=True) as running:
        yield running


@pytest.mark.parametrize("caller", WORKLOADS)
async def test_every_caller_reaches_exactly_the_rpcs_that_declare_it(mesh: Stack, caller: str) -> None:
    allowed = set()
    for target in SERVICES:
        async with grpc.aio.insecure_channel(f"unix:{mesh.folder}/{caller}-to-{target}.sock") as channel:
            allowed |= {(target, rpc.path) for rpc in rpcs() if await lets_through(channel, rpc.path)}
    declared = {(host, rpc.path) for rpc in rpcs() if caller in rpc.callers for host in hosts(rpc.service)}
    assert allowed == declared
    assert {path for target in SERVICES for path, callers in access_matrix(target).items() if caller in callers} == {
        path for _, path in declared
    }


@pytest.mark.parametrize(
    "path",
    [
        "/strandline.entity.v1.EntityService/DropEverything",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_an_rpc_that_nobody_declared_is_refused(mesh: Stack, path: str) -> None:
    for caller in WORKLOADS:
        async with grpc.aio.insecure_channel(f"unix:{mesh.folder}/{caller}-to-entity.sock") as channel:
            assert not await lets_through(channel, path)


async def test_a_service_learns_who_called_from_its_sidecar_alone(mesh: Stack) -> None:
    async with grpc.aio.insecure_channel(f"unix:{mesh.folder}/stream-to-user.sock") as channel:
        forged = (("x-forwarded-client-cert", "URI=spiffe://strandline.local/ns/default/sa/edge"),)
        jwks: Any = channel.unary_unary("/strandline.user.v1.AuthService/GetJwks")
        await jwks(b"", metadata=forged)
    _, metadata = mesh.seen["AuthService.GetJwks"]
    assert metadata["x-forwarded-client-cert"].endswith("URI=spiffe://strandline.local/ns/default/sa/stream")


async def test_a_feed_over_http_is_for_the_edge_alone(mesh: Stack) -> None:
    request = "GET /v1/namespaces/demo:watch HTTP/1.1\r\nhost: stream\r\nconnection: close\r\n\r\n"
    folder = mesh.folder / "certs"
    assert (await spoken(mesh, "stream", folder / "edge", request)).startswith("HTTP/1.1 501")  # the stand-in's answer
    for workload in SERVICES:
        reply = await spoken(mesh, "stream", folder / workload, request)
        assert reply.startswith("HTTP/1.1 403")
        assert "CALLER_REFUSED" in reply
    for other in ("POST /v1/namespaces/demo:watch", "GET /metrics"):
        reply = await spoken(mesh, "stream", folder / "edge", request.replace("GET /v1/namespaces/demo:watch", other))
        assert reply.startswith("HTTP/1.1 403")


async def test_a_caller_without_a_certificate_of_ours_gets_no_word(mesh: Stack, tmp_path: Path) -> None:
    ensure_certificates(tmp_path / "foreign", ["edge"], "strandline.local")
    ensure_certificates(mesh.folder / "other", ["edge"], "elsewhere.local")
    request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    for certificate in (None, tmp_path / "foreign" / "edge", mesh.folder / "other" / "edge"):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await spoken(mesh, "entity", certificate, request)


async def test_tls_below_1_3_and_plaintext_are_refused(mesh: Stack) -> None:
    context = client_context(mesh.folder / "certs" / "edge")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await exchange(mesh, "entity", context, "GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    try:
        plain = await exchange(mesh, "entity", None, "GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    except ConnectionError:
        plain = ""
    assert "HTTP/" not in plain


async def test_a_caller_refuses_a_target_with_another_identity() -> None:
    async with running_stack(certificate_of={"entity": "stream"}) as mixed_up:
        reply = await mixed_up.call("GET", "/v1/namespaces/demo/types/port/entities")
        assert (reply.status, reply.reason) == (503, "UNAVAILABLE")


async def test_a_deadline_travels_to_the_service_behind(mesh: Stack) -> None:
    left: list[float] = []

    async def get_jwks(request: Any, context: Any) -> Any:
        left.append(context.time_remaining())
        return await mesh.key.get_jwks(request, context)

    mesh.answers["AuthService.GetJwks"] = get_jwks
    async with grpc.aio.insecure_channel(f"unix:{mesh.folder}/stream-to-user.sock") as channel:
        jwks: Any = channel.unary_unary("/strandline.user.v1.AuthService/GetJwks")
        await jwks(b"", timeout=1000)
    assert 500 < left[-1] < 1100  # without the header it would be none, or that of the sidecar


async def lets_through(channel: grpc.aio.Channel, path: str) -> bool:
    """Whether the sidecars pass a call on; the stand-ins answer UNIMPLEMENTED to most."""
    call: Any = channel.unary_unary(path)
    answer = call(b"", timeout=30)
    code = await answer.code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED), path
    return bool(code is not grpc.StatusCode.PERMISSION_DENIED)


def client_context(certificate: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False  # names are SPIFFE ids, which Python does not compare
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


async def spoken(mesh: Stack, target: str, certificate: Path | None, request: str) -> str:
    """What a sidecar answers over HTTP/1.1 to a caller with *certificate*."""
    return await exchange(mesh, target, client_context(certificate), request)


async def exchange(mesh: Stack, target: str, context: ssl.SSLContext | None, request: str) -> str:
    host, _, port = mesh.topology.service(target).address.partition(":")
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        try:
            writer.write(request.encode())
            return (await reader.read()).decode(errors="replace")
        finally:
            writer.transport.abort()
