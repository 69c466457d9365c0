"""Callers that read nothing of what they asked for: nobody else may notice."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from strandline.entity.v1 import entity_pb2, entity_service_pb2
from strandline.stream.v1 import stream_service_pb2
from strandline_cli.home import Home
from strandline_cli.platform import Running

from tests.unread import unread

from .local_platform import Platform
from .rest import Rest

ENTITIES, ENTITY_BYTES = 320, 200_000
"""64 MB: more than all that proxies and sockets take between a service and who does not read."""
SCHEMA = {"type": "object", "properties": {"keel": {"type": "string"}}}
WATCH = "/strandline.stream.v1.StreamService/Watch"
LIST = "/strandline.entity.v1.EntityService/ListEntities"


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    """The administrator's."""
    client = Rest(platform.rest, platform.token())
    yield client
    await client.close()


@pytest.fixture(scope="module")
async def bulky(platform: Platform) -> AsyncIterator[str]:
    """A namespace with 64 MB of log."""
    name = f"bulky-{uuid.uuid4().hex[:8]}"
    rest = Rest(platform.rest, platform.token())
    await rest.ok("POST", "/v1/namespaces", {}, params={"namespace_id": name})
    await rest.ok("POST", f"/v1/namespaces/{name}/types", {"schema": SCHEMA}, params={"type_id": "hulk"})
    async with Running.in_home(Home(platform.home)).client() as client:
        for begin in range(0, ENTITIES, 10):
            answer = await client.batch_write(
                name,
                [
                    entity_pb2.Mutation(
                        create=entity_pb2.CreateMutation(
                            name=f"namespaces/{name}/types/hulk/entities/h{number}",
                            data_json=b'{"keel":"%b"}' % (b"x" * ENTITY_BYTES),
                        )
                    )
                    for number in range(begin, begin + 10)
                ],
            )
            assert [result.revision for result in answer.results] == list(range(begin + 2, begin + 12))
    yield name
    await rest.ok("DELETE", f"/v1/namespaces/{name}")
    await rest.close()


@pytest.mark.parametrize("watches", [1, 100])
async def test_feeds_that_are_not_read_hold_up_nobody(platform: Platform, rest: Rest, bulky: str, watches: int) -> None:
    request = stream_service_pb2.WatchRequest(parent=f"namespaces/{bulky}", after_revision=0).SerializeToString()
    async with unread(platform.grpc, platform.token(), [(WATCH, request)] * watches):
        await everybody_is_answered(rest)


async def test_answers_that_are_not_read_hold_up_nobody(platform: Platform, rest: Rest, bulky: str) -> None:
    request = entity_service_pb2.ListEntitiesRequest(parent=f"namespaces/{bulky}/types/hulk", page_size=100)
    async with unread(platform.grpc, platform.token(), [(LIST, request.SerializeToString())] * 100):
        await everybody_is_answered(rest)


async def everybody_is_answered(rest: Rest) -> None:
    for _ in range(5):
        for path in ("subscriptions", "types", "changes?limit=1", "usage"):
            answer = await rest("GET", f"/v1/namespaces/demo/{path}")  # which has half a minute
            assert answer.status == 200, (path, answer)
        await asyncio.sleep(0.5)
