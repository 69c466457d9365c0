"""A write is tried again with the same request id; a refusal is not tried again."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from strandline.entity.v1 import entity_pb2, entity_service_pb2
from strandline_client import ApiError, Client

from services.runtime.call import Call
from services.runtime.errors import Error, FailedPrecondition, Unavailable
from services.runtime.rpc import Method, generic_handler

MUTATION = entity_pb2.Mutation(delete=entity_pb2.DeleteMutation(name="namespaces/n/types/t/entities/e"))


class Entities:
    """Answers each call with the next of *failures*, then with success."""

    def __init__(self) -> None:
        self.failures: list[Error] = []
        self.seen: list[tuple[Message, Call]] = []

    def __getattr__(self, name: str) -> Any:
        async def handle(request: Message, call: Call) -> Message:
            self.seen.append((request, call))
            if self.failures:
                raise self.failures.pop(0)
            if isinstance(request, entity_service_pb2.ListEntitiesRequest):
                page = int(request.page_token or 0)
                entities = [entity_pb2.Entity(name=f"e{page}")]
                token = str(page + 1) if page < 2 else ""
                return entity_service_pb2.ListEntitiesResponse(entities=entities, next_page_token=token)
            return entity_service_pb2.TransactResponse(revision=7)

        return handle


async def admit(method: Method, request: Message, call: Call) -> None: ...


@pytest.fixture
async def entities() -> AsyncIterator[tuple[Entities, Client]]:
    handlers = Entities()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((generic_handler("strandline.entity.v1.EntityService", handlers, admit),))
    with tempfile.TemporaryDirectory(prefix="sl-") as folder:
        server.add_insecure_port(f"unix:{folder}/s")
        await server.start()
        async with Client(f"unix:{folder}/s", "the-token", patience=5) as client:
            yield handlers, client
        await server.stop(None)


async def test_a_write_keeps_its_request_id_in_every_try(entities: tuple[Entities, Client]) -> None:
    handlers, client = entities
    handlers.failures = [Unavailable("OVERLOADED", "later"), Unavailable("OVERLOADED", "later")]
    assert (await client.transact("n", [MUTATION])).revision == 7
    ids = [
        request.request_id for request, _ in handlers.seen if isinstance(request, entity_service_pb2.TransactRequest)
    ]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert ids[0]
    _, call = handlers.seen[0]
    assert call.metadata["authorization"] == "Bearer the-token"
    assert call.metadata["x-goog-request-params"] == "namespace=n"


async def test_two_writes_have_two_request_ids(entities: tuple[Entities, Client]) -> None:
    handlers, client = entities
    for _ in range(2):
        await client.transact("n", [MUTATION])
    first, second = (request for request, _ in handlers.seen)
    assert first != second


async def test_a_refusal_is_told_at_once_with_its_reason(entities: tuple[Entities, Client]) -> None:
    handlers, client = entities
    handlers.failures = [FailedPrecondition("INDEX_REQUIRED", "no index", index="data.a")]
    with pytest.raises(ApiError) as raised:
        await client.transact("n", [MUTATION])
    failure = raised.value
    assert (failure.code, failure.reason, failure.metadata) == (
        "FAILED_PRECONDITION",
        "INDEX_REQUIRED",
        {"index": "data.a"},
    )
    assert len(handlers.seen) == 1


async def test_a_list_is_read_page_after_page(entities: tuple[Entities, Client]) -> None:
    _, client = entities
    assert [entity.name async for entity in client.list_entities("namespaces/n/types/t")] == ["e0", "e1", "e2"]
