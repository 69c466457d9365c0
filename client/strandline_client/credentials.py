"""Who the caller is: an access token, or where the next one comes from."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from strandline_client.errors import ApiError

TokenProvider: TypeAlias = Callable[[], Awaitable[str]]


class Credentials:
    """An access token that is asked for again whenever one is needed, so that it may be renewed meanwhile."""

    def __init__(self, token: str | TokenProvider) -> None:
        self._token = token
        self._asking: asyncio.Task[str] | None = None

    async def metadata(self, namespace: str) -> list[tuple[str, str]]:
        """The headers of a call about *namespace*.

        Raises:
            ApiError: whatever the provider says; UNAVAILABLE when it cannot reach what it asks.
        """
        # Lets the edge send one namespace to the same replicas, so that batches grow (AIP-4222).
        return [
            ("authorization", f"Bearer {await self._current()}"),
            ("x-goog-request-params", f"namespace={namespace}"),
        ]

    async def judge(self, failure: ApiError, metadata: list[tuple[str, str]]) -> ApiError:
        """*failure* of a call with *metadata*; one that may pass, if there is a newer token than the refused one.

        A token may expire between the moment it was given and the moment it is looked at.
        """
        if failure.code != "UNAUTHENTICATED" or ("authorization", f"Bearer {await self._current()}") in metadata:
            return failure
        return ApiError("UNAVAILABLE", failure.reason, "the token was refused, and has been renewed since")

    async def _current(self) -> str:
        if isinstance(self._token, str):
            return self._token
        if self._asking is None:
            # Whoever needs a token meanwhile gets the same: when one expires, all feeds ask at once.
            self._asking = asyncio.create_task(_ask(self._token))
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    def _asked(self, asking: asyncio.Task[str]) -> None:
        self._asking = None
        if not asking.cancelled():
            asking.exception()  # also when nobody waits for it any more


async def _ask(provider: TokenProvider) -> str:
    try:
        return await provider()
    except OSError as failure:
        raise ApiError("UNAVAILABLE", "", f"no access token: {failure}") from failure
