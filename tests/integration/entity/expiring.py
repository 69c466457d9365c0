"""Entities that are to expire in a test, on a machine of any speed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import grpc
import pytest

from services.entity import expiry
from services.runtime.database import Statement
from tests.integration.entity.conftest import error_info

T = TypeVar("T")


async def soon(write: Callable[[float], Awaitable[T]]) -> T:
    """Call *write* with how many seconds what it writes is to live: more if they were over before its turn came."""
    seconds = 0.3
    while True:
        try:
            return await write(seconds)
        except grpc.aio.AioRpcError as failure:
            if error_info(failure).reason != "INVALID_FIELD":
                raise
            seconds *= 2


@contextmanager
def nobody_looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the block runs, no replica finds what is due."""
    with monkeypatch.context() as patch:
        patch.setattr(expiry, "_SELECT_DUE", Statement(expiry._SELECT_DUE.sql, (0,)))
        yield
