"""The hand-written health question, asked of a real gRPC server."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from strandline_cli.probes import grpc_serves, http_answers


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path may be too long for a socket
        yield Path(folder, "app.sock")


@pytest.fixture
async def servicer(socket: Path) -> AsyncIterator[health.aio.HealthServicer]:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    yield servicer
    await server.stop(None)


async def test_a_serving_server_serves(servicer: health.aio.HealthServicer, socket: Path) -> None:
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    assert await grpc_serves(socket)


async def test_a_draining_server_does_not_serve(servicer: health.aio.HealthServicer, socket: Path) -> None:
    await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    assert not await grpc_serves(socket)


async def test_a_server_without_the_health_service_does_not_serve(socket: Path) -> None:
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    assert not await grpc_serves(socket)
    await server.stop(None)


async def test_nobody_there_is_an_answer_too(socket: Path) -> None:
    assert not await grpc_serves(socket)
    assert not await http_answers(socket)
