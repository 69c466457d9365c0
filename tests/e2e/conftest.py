"""One real platform for the whole session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.local_platform import Platform, new_home, started
from tests.integration.stream.receiver import HookReceiver


@pytest.fixture(scope="session")
async def receiver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HookReceiver]:
    """What webhooks of the platform may reach on loopback."""
    server = HookReceiver(tmp_path_factory.mktemp("receiver"))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture(scope="session")
def platform(receiver: HookReceiver) -> Iterator[Platform]:
    """The platform that tests share. Who kills a part of it waits until it is ready again."""
    opened = f"127.0.0.1:{receiver.port}={receiver.authority}"
    with new_home() as home, started(home, "--port", "0", "--webhook-receivers", opened) as running:
        yield running
