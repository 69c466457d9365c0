"""The bus may lose what it is given, and holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from services.runtime.bus import Bus
from tests.nats import Nats


@pytest.fixture
def server() -> Iterator[Nats]:
    server = Nats()
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def bus(server: Nats) -> AsyncIterator[Bus]:
    bus = Bus(server.url, ("", ""), None, "tester")
    bus.start()
    yield bus
    server.resume()
    await bus.close()


async def listen(bus: Bus) -> list[bytes]:
    """What comes on "tides" from now on, once the bus carries it."""
    heard: list[bytes] = []

    async def take(payload: bytes) -> None:
        heard.append(payload)

    await bus.subscribe("tides", take)
    async with asyncio.timeout(30):
        while b"there" not in heard:
            await bus.publish("tides", b"there")
            await asyncio.sleep(0.01)
    return heard


async def test_a_server_that_takes_nothing_holds_up_nobody_and_loses_what_is_too_much(server: Nats, bus: Bus) -> None:
    heard = await listen(bus)
    server.pause()
    # Sixty times what may wait: an unbounded client would keep it all, a bounded one would wait for the server.
    for number in range(2000):
        with pytest.raises(StopIteration):
            bus.publish("tides", b"%d" % number + bytes(30_000)).send(None)
        await asyncio.sleep(0)
    server.resume()
    async with asyncio.timeout(30):
        while b"after" not in heard:
            await bus.publish("tides", b"after")  # lost as well, until the server has taken what waited
            await asyncio.sleep(0.01)
    numbers = [int(payload.rstrip(b"\0")) for payload in heard if len(payload) > 30_000]
    assert numbers == sorted(numbers)
    assert len(numbers) < 2000
