"""The user service's public keys, for services that verify its tokens."""

from __future__ import annotations

import asyncio
import time

import grpc
from strandline.user.v1 import auth_service_pb2, auth_service_pb2_grpc

from services.runtime.errors import Unavailable
from services.runtime.tokens import KeySet

MAX_AGE_SECONDS = 300.0
# A flood of tokens with made-up key ids must not become a flood of requests for keys, nor wait for each of them.
LOOK_AGAIN_SECONDS = 1.0
CALL_SECONDS = 1.0


class RemoteKeys:
    """A key set about 5 minutes old at most; an old one is better than none while the user service is away."""

    def __init__(self, user_service: grpc.aio.Channel) -> None:
        self._auth = auth_service_pb2_grpc.AuthServiceStub(user_service)
        self._keys: KeySet | None = None
        self._read_at = -1e9  # time.monotonic()
        self._asked_at = -1e9
        self._asking = asyncio.Lock()

    async def get(self, look_again: bool) -> KeySet:
        """The keys; *look_again* when one was missing from them.

        Raises:
            Unavailable: ACCESS_UNVERIFIABLE, there never was an answer.
        """
        if self._keys is None or self._is_due(look_again):
            async with self._asking:  # whoever comes while somebody asks waits for that answer
                if self._is_due(look_again):
                    await self._ask()
        if self._keys is None:
            raise Unavailable("ACCESS_UNVERIFIABLE", "tokens cannot be checked right now; retry")
        return self._keys

    def _is_due(self, look_again: bool) -> bool:
        now = time.monotonic()
        too_old = now - self._read_at > (LOOK_AGAIN_SECONDS if look_again else MAX_AGE_SECONDS)
        return too_old and now - self._asked_at > LOOK_AGAIN_SECONDS

    async def _ask(self) -> None:
        self._asked_at = time.monotonic()
        try:
            answer = await self._auth.GetJwks(auth_service_pb2.GetJwksRequest(), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError:
            return  # the old ones, if any, go on being used
        self._keys = KeySet.from_jwks({"kid": key.kid, "crv": key.crv, "x": key.x} for key in answer.keys)
        self._read_at = time.monotonic()
