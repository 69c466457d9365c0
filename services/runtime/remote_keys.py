"""The user service's public keys, for services that verify its tokens."""

from __future__ import annotations

import time

import grpc
from strandline.user.v1 import auth_service_pb2, auth_service_pb2_grpc

from services.runtime.errors import Unavailable
from services.runtime.tokens import KeySet

MAX_AGE_SECONDS = 300.0
# A flood of tokens with made-up key ids must not become a flood of requests for keys.
LOOK_AGAIN_SECONDS = 1.0
CALL_SECONDS = 1.0


class RemoteKeys:
    """A key set at most 5 minutes old; an old one is better than none while the user service is away."""

    def __init__(self, user_service: grpc.aio.Channel) -> None:
        self._auth = auth_service_pb2_grpc.AuthServiceStub(user_service)
        self._keys: KeySet | None = None
        self._read_at = 0.0  # time.monotonic()

    async def get(self, look_again: bool) -> KeySet:
        """The keys; *look_again* when one was missing from them.

        Raises:
            Unavailable: ACCESS_UNVERIFIABLE, there never was an answer.
        """
        age = time.monotonic() - self._read_at
        if self._keys is not None and age < (LOOK_AGAIN_SECONDS if look_again else MAX_AGE_SECONDS):
            return self._keys
        try:
            answer = await self._auth.GetJwks(auth_service_pb2.GetJwksRequest(), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as failure:
            if self._keys is None:
                raise Unavailable("ACCESS_UNVERIFIABLE", "tokens cannot be checked right now; retry") from failure
        else:
            self._keys = KeySet.from_jwks({"kid": key.kid, "crv": key.crv, "x": key.x} for key in answer.keys)
            self._read_at = time.monotonic()
        return self._keys
