"""Workers on a subscription, through the edge, while the processes behind it are killed."""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

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
