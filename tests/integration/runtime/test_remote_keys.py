"""Keys are asked for once, however many wait for them, and a source that is away is not besieged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from strandline.user.v1 import auth_service_pb2 as pb

from services.runtime.errors import Unavailable
from services.runtime.remote_keys import RemoteKeys

KEY = pb.Jwk(kty="OKP", crv="Ed25519", x="11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", kid="k1")


class Keys:
    """The one RPC, and how often it was called."""

    def __init__(self) -> None:
        self.calls = 0
        self.away = False

    async def get_jwks(
        self, request: pb.GetJwksRequest, context: grpc.aio.ServicerContext[pb.GetJwksRequest, pb.GetJwksResponse]
    ) -> pb.GetJwksResponse:
        self.calls += 1
        await asyncio.sleep(0.05)
        if self.away:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "away")
        return pb.GetJwksResponse(keys=[KEY])


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[tuple[Keys, RemoteKeys]]:
    server = grpc.aio.server()
    keys = Keys()
    serialize = pb.GetJwksResponse.SerializeToString
    handler = grpc.unary_unary_rpc_method_handler(keys.get_jwks, pb.GetJwksRequest.FromString, serialize)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("strandline.user.v1.AuthService", {"GetJwks": handler}),)
    )
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield keys, RemoteKeys(channel)
    await server.stop(None)


async def test_a_hundred_first_calls_share_one_question(source: tuple[Keys, RemoteKeys]) -> None:
    keys, remote = source
    found = await asyncio.gather(*(remote.get(False) for _ in range(100)))
    assert all(each.get("k1") for each in found)
    assert keys.calls == 1


async def test_unknown_keys_do_not_become_a_flood_of_questions(source: tuple[Keys, RemoteKeys]) -> None:
    keys, remote = source
    await remote.get(False)
    await asyncio.gather(*(remote.get(True) for _ in range(100)))
    assert keys.calls <= 2


async def test_a_source_that_is_away_is_asked_once_a_second(source: tuple[Keys, RemoteKeys]) -> None:
    keys, remote = source
    keys.away = True
    outcomes = await asyncio.gather(*(remote.get(False) for _ in range(100)), return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert keys.calls == 1
    keys.away = False
    await asyncio.sleep(1.05)
    assert (await remote.get(False)).get("k1")
