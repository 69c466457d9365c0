"""How a worker waits."""

from __future__ import annotations

import asyncio

import grpc
from strandline.stream.v1 import feed_pb2

from services.runtime.call import Namespace
from services.runtime.changelog import Head
from services.runtime.database import Database
from services.stream.hub import Hub
from services.stream.upstream import Logs
from services.stream.worker import Shared, Worker

TIDES = Namespace("tides", "00c0ffee")


async def test_a_worker_hears_what_is_told_while_it_begins_to_wait() -> None:
    hub = Hub("tides", max_bytes=10_000, max_units=50)
    hub.start(Head("tides", "00c0ffee", 0))
    async with grpc.aio.insecure_channel("unix:nowhere.sock") as channel:
        worker = Worker(Database(""), Logs(channel, channel), hub, TIDES, "orders", Shared(), 0)
        # After the worker has looked whether there is news, before anything that waits has had its first step.
        asyncio.get_running_loop().call_soon(hub.append, 0, [feed_pb2.Unit(revision=1).SerializeToString()])
        async with asyncio.timeout(30):
            await worker.wait(600)
        assert worker.should_look
