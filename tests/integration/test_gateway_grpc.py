"""Native gRPC at the edge: the same port, names, limits and reasons."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from strandline.entity.v1 import entity_pb2, entity_service_pb2, entity_service_pb2_grpc
from strandline.stream.v1 import log_service_pb2, log_service_pb2_grpc
from strandline.user.v1 import auth_service_pb2, auth_service_pb2_grpc
from strandline_gateway import RateLimit

from tests.gateway_stack import Stack, running_stack, stack

__all__ = ["stack"]

GET = entity_service_pb2.GetEntityRequest(name="namespaces/demo/types/port/entities/kiel")


@pytest.fixture
async def channel(stack: Stack) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(stack.address) as opened:
        yield opened


def bearer(stack: Stack) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {stack.token()}"),)


async def failure(call: Any) -> tuple[grpc.StatusCode, str]:
    """The code of a call that must fail, and the reason in its details."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    status = rpc_status.from_call(raised.value)  # type: ignore[arg-type]  # typed for the synchronous API only
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    assert info.domain == "strandline"
    return raised.value.code(), info.reason


async def test_a_call_goes_through_whole(stack: Stack, channel: grpc.aio.Channel) -> None:
    async def get(request: Any, _context: Any) -> Any:
        return entity_service_pb2.GetEntityResponse(entity=entity_pb2.Entity(name=request.name), revision=5)

    stack.answers["EntityService.GetEntity"] = get
    reply = await entity_service_pb2_grpc.EntityServiceStub(channel).GetEntity(GET, metadata=bearer(stack))
    assert (reply.entity.name, reply.revision) == (GET.name, 5)  # nothing is unwrapped


async def test_a_write_gets_an_idempotency_key(stack: Stack, channel: grpc.aio.Channel) -> None:
    async def create(_request: Any, _context: Any) -> Any:
        return entity_service_pb2.CreateEntityResponse()

    stack.answers["EntityService.CreateEntity"] = create
    entities = entity_service_pb2_grpc.EntityServiceStub(channel)
    await entities.CreateEntity(entity_service_pb2.CreateEntityRequest(), metadata=bearer(stack))
    assert len(stack.seen["EntityService.CreateEntity"][1]["idempotency-key"]) == 36


async def test_token_errors_are_unauthenticated_with_a_reason(stack: Stack, channel: grpc.aio.Channel) -> None:
    entities = entity_service_pb2_grpc.EntityServiceStub(channel)
    assert await failure(entities.GetEntity(GET)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING")
    wrong = (("authorization", f"Bearer {stack.token(aud='other')}"),)
    assert await failure(entities.GetEntity(GET, metadata=wrong)) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_an_rpc_between_services_does_not_exist_for_the_outside(stack: Stack, channel: grpc.aio.Channel) -> None:
    unimplemented = (grpc.StatusCode.UNIMPLEMENTED, "NOT_FOUND")
    entities = entity_service_pb2_grpc.EntityServiceStub(channel)
    purge = entities.PurgeNamespace(entity_service_pb2.PurgeNamespaceRequest(), metadata=bearer(stack))
    assert await failure(purge) == unimplemented
    heads = log_service_pb2_grpc.LogServiceStub(channel).GetHeads(
        log_service_pb2.GetHeadsRequest(), metadata=bearer(stack)
    )
    assert await failure(heads) == unimplemented
    for path in ("/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"):
        unknown: Any = channel.unary_unary(path)
        assert await failure(unknown(b"", metadata=bearer(stack))) == unimplemented


async def test_a_message_beyond_the_body_limit_is_refused(stack: Stack, channel: grpc.aio.Channel) -> None:
    large = entity_service_pb2.CreateEntityRequest(entity_id="x" * (5 << 20))
    call = entity_service_pb2_grpc.EntityServiceStub(channel).CreateEntity(large, metadata=bearer(stack))
    assert await failure(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BODY_TOO_LARGE")


async def test_signing_in_by_grpc_counts_like_by_rest() -> None:
    async def login(_request: Any, _context: Any) -> Any:
        return auth_service_pb2.LoginResponse()

    async with running_stack(auth_rate_limit=RateLimit(requests=1, seconds=900)) as strict:
        strict.answers["AuthService.Login"] = login
        await strict.call("POST", "/v1/auth:login", {}, token=None)
        async with grpc.aio.insecure_channel(strict.address) as channel:
            call = auth_service_pb2_grpc.AuthServiceStub(channel).Login(auth_service_pb2.LoginRequest())
            assert await failure(call) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")


async def test_a_service_that_is_down_is_unavailable_with_a_reason_of_ours() -> None:
    async with (
        running_stack(absent=frozenset({"entity"})) as broken,
        grpc.aio.insecure_channel(broken.address) as channel,
    ):
        call = entity_service_pb2_grpc.EntityServiceStub(channel).GetEntity(GET, metadata=bearer(broken))
        assert await failure(call) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")


async def test_the_deadline_of_a_client_ends_the_work_behind(stack: Stack, channel: grpc.aio.Channel) -> None:
    left: list[float] = []

    async def slow(_request: Any, context: Any) -> Any:
        left.append(context.time_remaining())
        return entity_service_pb2.GetEntityResponse()

    stack.answers["EntityService.GetEntity"] = slow
    await entity_service_pb2_grpc.EntityServiceStub(channel).GetEntity(GET, metadata=bearer(stack), timeout=1000)
    assert 500 < left[0] < 1100
