"""An index is added to a type with many entities while it is written to, and the service is killed in the middle."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator

import pytest
from strandline.entity.v1 import entity_pb2
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_client import Client

from .local_platform import Platform
from .rest import Rest

ENTITIES = 30_000
KILLS = 3


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    client = Rest(platform.rest, platform.token())
    yield client
    await client.close()


def write(namespace: str, number: int, value: int) -> entity_pb2.Mutation:
    name = f"namespaces/{namespace}/types/ship/entities/s{number:05}"
    content = json.dumps({"n": value, "name": f"ship {value % 100}"}).encode()
    update = entity_pb2.UpdateMutation(name=name, data_json=content, update_mask=["*"], allow_missing=True)
    return entity_pb2.Mutation(update=update)


@pytest.mark.timeout(300)
async def test_a_build_that_is_killed_goes_on_and_every_entity_is_in_the_index_once(
    platform: Platform, rest: Rest
) -> None:
    namespace = f"builds-{uuid.uuid4().hex[:8]}"
    path = f"/v1/namespaces/{namespace}/types"
    await rest.ok("POST", "/v1/namespaces", {"massChangeGuard": "OFF"}, params={"namespace_id": namespace})
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "name": {"type": "string"}}}
    await rest.ok("POST", path, {"schema": schema}, params={"type_id": "ship"})
    async with Running.in_home(Home(platform.home)).client() as client:
        for start in range(0, ENTITIES, 500):
            await client.batch_write(namespace, [write(namespace, n, n) for n in range(start, start + 500)])
        expected = {f"s{n:05}": n for n in range(ENTITIES)}
        indexes = [{"fields": ["data.n"], "unique": True}, {"fields": ["data.name"], "kind": "FULL_TEXT"}]
        await rest.ok("PATCH", f"{path}/ship", {"indexes": indexes})
        early = await rest("GET", f"{path}/ship/entities", params={"filter": "data.n > 5"})
        assert early.problem == (400, "INDEX_REQUIRED")
        stopping = asyncio.Event()
        writer = asyncio.create_task(keep_writing(client, namespace, expected, stopping))
        progress = [(0, 0)]
        for _ in range(KILLS):
            progress.append(await read_further(rest, f"{path}/ship", progress[-1][0]))
            await asyncio.to_thread(platform.kill, "entity")
            await asyncio.to_thread(platform.wait_until_ready)
        async with asyncio.timeout(120):
            await until_ready(rest, f"{path}/ship")
        stopping.set()
        await writer
        assert any(0 < done < total for done, total in progress), progress  # killed in the middle, not after
        parent = f"namespaces/{namespace}/types/ship"
        listed = [
            (entity.name.rsplit("/", 1)[1], int(entity.data.fields["n"].number_value))
            async for entity in client.list_entities(parent, order_by="data.n", page_size=1000)
        ]
        assert listed == sorted(expected.items(), key=lambda item: item[1])
    found = await search_all(rest, f"{path}/ship/entities", "ship 7")
    assert found == sorted(name for name, value in expected.items() if value % 100 == 7)


async def keep_writing(client: Client, namespace: str, expected: dict[str, int], stopping: asyncio.Event) -> None:
    """Give one entity after the other a value that none has had, until told to stop."""
    for value in itertools.count(ENTITIES):
        if stopping.is_set():
            return
        number = value * 7919 % ENTITIES
        answer = await client.batch_write(namespace, [write(namespace, number, value)])
        assert answer.results[0].status.code == 0, answer
        expected[f"s{number:05}"] = value


async def until_ready(rest: Rest, path: str) -> None:
    while True:
        type_ = await rest.ok("GET", path)
        if all(index["state"] == "READY" for index in type_["indexes"]):
            return
        await asyncio.sleep(0.1)


async def read_further(rest: Rest, path: str, before: int) -> tuple[int, int]:
    """How far the build is, of how much, when it is further than *before*; or when it has ended."""
    while True:
        index = (await rest.ok("GET", path))["indexes"][0]
        done, total = int(index["indexed"]), int(index["estimatedTotal"])
        if done > before or index["state"] != "BUILDING":
            return done, total


async def search_all(rest: Rest, path: str, search: str) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        params = {"search": search, "page_size": "1000", "page_token": token}
        page = await rest.ok("GET", path, params=params)
        found += [entity["name"].rsplit("/", 1)[1] for entity in page["entities"]]
        if not (token := page["nextPageToken"]):
            return found
