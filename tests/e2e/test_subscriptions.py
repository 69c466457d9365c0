"""Workers on a subscription, through the edge, by REST and by gRPC, while the processes behind it are killed."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import grpc
import pytest
from strandline.stream.v1 import subscription_service_pb2 as pb
from strandline.stream.v1 import subscription_service_pb2_grpc

from .local_platform import Platform
from .rest import Rest

CHANGES = 120
ENTITIES = 6
# Changes done: what is killed then.
KILLS = {30: "stream", 60: "postgres", 90: "stream"}
ANY = {"type": "object", "additionalProperties": True}


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    """The administrator's."""
    client = Rest(platform.rest, platform.token())
    yield client
    await client.close()


class Work:
    """What workers were given and have finished of one subscription."""

    def __init__(self, rest: Rest, path: str) -> None:
        self._rest = rest
        self._path = path
        self.given: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        """Entity: revision: the numbers of its deliveries, in the order in which they were handed out."""
        self.finished = 0
        self.is_done = False

    async def ask(self, verb: str, body: dict[str, Any]) -> Any:
        """The answer; None if there is none, or only that it cannot be had now."""
        try:
            answer = await self._rest("POST", f"{self._path}:{verb}", body)
        except (aiohttp.ClientError, TimeoutError):
            return None
        if answer.status >= 500:
            return None
        assert answer.status == 200, answer
        return answer.json

    async def until(self, count: int) -> None:
        """Return when so many changes are done."""
        while True:
            if self.finished >= count:
                return
            await asyncio.sleep(0.05)

    async def work(self) -> None:
        """Be one worker until everything is done."""
        while not self.is_done:
            pulled = await self.ask("pull", {"maxMessages": 3, "wait": "1s"})
            if pulled is None:
                await asyncio.sleep(0.1)
                continue
            for delivery in pulled["deliveries"]:
                name = delivery["change"]["entity"]["name"]
                number = int(delivery["ackId"].rsplit(".", 1)[1])
                self.given[name][int(delivery["revision"])].append(number)
                if (acked := await self.ask("ack", {"ackIds": [delivery["ackId"]]})) is not None:
                    self.finished += not acked["staleAckIds"]


async def test_whatever_is_killed_every_change_is_delivered_and_those_of_an_entity_one_after_the_other(
    rest: Rest, platform: Platform
) -> None:
    namespace = f"/v1/namespaces/subs-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {}, params={"namespace_id": namespace.rsplit("/", 1)[1]})
    await rest.ok("POST", f"{namespace}/types", {"schema": ANY}, params={"type_id": "buoy"})
    subscription = {
        "types": ["buoy"],
        "start": {"now": True},
        "ackDeadline": "2s",
        "retryPolicy": {"maxAttempts": 1000, "minBackoff": "0s"},
    }
    params = {"subscription_id": "work"}
    await rest.ok("POST", f"{namespace}/subscriptions", subscription, params=params)
    parent = f"{namespace.removeprefix('/v1/')}/types/buoy/entities"
    writes = [
        {"update": {"name": f"{parent}/b{n % ENTITIES}", "data": {"n": n}, "allowMissing": True}}
        for n in range(CHANGES)
    ]
    written = await rest.ok("POST", f"{namespace}:batchWrite", {"writes": writes})
    committed: dict[str, list[int]] = defaultdict(list)
    for result in written["results"]:
        committed[result["name"]].append(int(result["revision"]))

    path = f"{namespace}/subscriptions/work"
    work = Work(rest, path)
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(work.work())
        for after, part in KILLS.items():
            await work.until(after)
            await asyncio.to_thread(platform.kill, part)
            await asyncio.to_thread(platform.wait_until_ready)
        while True:
            answer = await rest("GET", path)
            if answer.status == 200 and answer.json["checkpointRevision"] == written["revision"]:
                break
            await asyncio.sleep(0.1)
        work.is_done = True

    assert {name: sorted(revisions) for name, revisions in work.given.items()} == committed, "nothing is skipped"
    for name, revisions in work.given.items():
        numbers = [number for _, given in sorted(revisions.items()) for number in sorted(given)]
        assert numbers == sorted(numbers), f"{name}: a change was delivered before an earlier one was done"


class Stream:
    """A worker that has its deliveries streamed to it, and opens the stream again as the documentation says."""

    def __init__(self, channel: grpc.aio.Channel, token: str, name: str) -> None:
        self._stub: subscription_service_pb2_grpc.SubscriptionServiceAsyncStub = (
            subscription_service_pb2_grpc.SubscriptionServiceStub(channel)
        )
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._name = name
        self.done: list[int] = []
        """Revisions, in the order in which they were acknowledged."""
        self.ends = 0
        self.most = 0
        """How many deliveries came at a time."""

    async def work(self) -> None:
        """Acknowledge everything, until cancelled."""
        while True:
            request = pb.StreamingPullRequest(name=self._name, max_unacknowledged=5)
            try:
                async for pulled in self._stub.StreamingPull(request, metadata=self._metadata):
                    self.most = max(self.most, len(pulled.deliveries))
                    if pulled.deliveries:
                        await self._ack(pulled)
            except grpc.aio.AioRpcError as end:
                # One that breaks behind a proxy ends without a status, of which libraries make INTERNAL.
                if end.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL):
                    raise
                self.ends += 1
            await asyncio.sleep(0.1)

    async def _ack(self, pulled: pb.StreamingPullResponse) -> None:
        ids = [delivery.ack_id for delivery in pulled.deliveries]
        acked = await self._stub.Ack(pb.AckRequest(name=self._name, ack_ids=ids), metadata=self._metadata)
        stale = set(acked.stale_ack_ids)
        self.done += [delivery.revision for delivery in pulled.deliveries if delivery.ack_id not in stale]


async def test_a_stream_of_deliveries_passes_both_proxies_and_is_opened_again_when_the_service_dies(
    rest: Rest, platform: Platform
) -> None:
    namespace = f"namespaces/pulls-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {}, params={"namespace_id": namespace.removeprefix("namespaces/")})
    await rest.ok("POST", f"/v1/{namespace}/types", {"schema": ANY}, params={"type_id": "buoy"})
    subscription = {"types": ["buoy"], "start": {"now": True}}
    params = {"subscription_id": "work"}
    await rest.ok("POST", f"/v1/{namespace}/subscriptions", subscription, params=params)

    async def write(turn: int) -> list[int]:
        name = f"{namespace}/types/buoy/entities/b"
        writes = [{"update": {"name": f"{name}{n}", "data": {"n": turn}, "allowMissing": True}} for n in range(20)]
        written = await rest.ok("POST", f"/v1/{namespace}:batchWrite", {"writes": writes})
        return [int(result["revision"]) for result in written["results"]]

    async with grpc.aio.insecure_channel(platform.grpc) as channel:
        stream = Stream(channel, platform.token(), f"{namespace}/subscriptions/work")

        async def done(count: int) -> None:
            while True:
                if len(stream.done) >= count:
                    return
                await asyncio.sleep(0.05)

        async with asyncio.timeout(100), asyncio.TaskGroup() as group:
            working = group.create_task(stream.work())
            committed = await write(1)
            await done(20)
            await asyncio.to_thread(platform.kill, "stream")
            await asyncio.to_thread(platform.wait_until_ready)
            committed += await write(2)
            await done(40)
            working.cancel()
    assert sorted(stream.done) == sorted(committed), "each is done once"
    assert stream.ends, "its stream broke with the service"
    assert 1 <= stream.most <= 5
