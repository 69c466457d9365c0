"""How long to wait, and what is worth another try."""

from __future__ import annotations

import asyncio
import random
import time
import uuid

from strandline_client.errors import ApiError

# Another try of the same request cannot change these. Everything else may be the network, or a server that restarts.
FINAL_CODES = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
    }
)


def new_request_id() -> str:
    """An idempotency key: made once for a write, and the same in all its tries."""
    return uuid.uuid4().hex


def is_final(failure: ApiError) -> bool:
    """Whether another try of the same request can change nothing."""
    if failure.reason == "QUOTA_EXCEEDED":
        return failure.metadata.get("quota") != "writes_per_second"  # only that one passes by waiting
    return failure.code in FINAL_CODES


class Backoff:
    """Growing pauses with jitter, until nothing has worked for *patience* seconds (None: for ever)."""

    def __init__(self, patience: float | None, *, first: float = 0.05, longest: float = 2.0) -> None:
        self._patience = patience
        self._first = first
        self._longest = longest
        self.succeeded()

    def succeeded(self) -> None:
        """Something worked: begin anew with short pauses."""
        self._pause = self._first
        self._began = time.monotonic()

    async def wait(self, failure: ApiError) -> None:
        """Pause before the next try; raise *failure* when it is final or the patience is at its end."""
        spent = time.monotonic() - self._began
        if is_final(failure) or (self._patience is not None and spent > self._patience):
            raise failure
        await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))
        self._pause = min(self._pause * 2, self._longest)
