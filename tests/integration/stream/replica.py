"""A stream service that goes away and comes back, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from strandline_client import Client
from strandline_client.credentials import TokenProvider

from tests.loopback import HOST, free_ports
from tests.nats import Nats

from .owner import Owner
from .service import StreamService, access_token


@pytest.fixture
async def replica(owner: Owner, nats_server: Nats, run_folder: Any) -> AsyncGenerator[Replica, None]:
    # A small ring, so that a slow reader falls off it.
    (port,) = free_ports(1)
    options: dict[str, Any] = {"http_port": port, "ring_bytes": 1_000_000}
    made = Replica(port, lambda: StreamService(owner.socket, nats_server.url, run_folder / "s", **options))
    await made.start()
    yield made
    await made.service.stop()


class Replica:
    """A stream service that can go away and come back at the same addresses."""

    def __init__(self, port: int, make: Callable[[], StreamService]) -> None:
        self.port = port
        self._make = make

    async def start(self) -> None:
        self.service = self._make()
        await self.service.start()

    def client(self, patience: float | None = 20, token: TokenProvider | None = None) -> Client:
        async def fresh_token() -> str:
            return access_token()

        token = token or fresh_token
        return Client(self.service.grpc_address, token, rest=f"http://{HOST}:{self.port}", patience=patience)
