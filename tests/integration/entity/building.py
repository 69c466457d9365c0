"""Who builds indexes in a test, and when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.entity.index_builds import IndexBuilder
from tests.integration.entity.conftest import Replica


@asynccontextmanager
async def only_builder(replica: Replica, *others: Replica) -> AsyncIterator[IndexBuilder]:
    """The builder of *replica*, stopped: while the block runs, no index is built but by it, when it is started."""
    builder, *builders = [each.service.builder for each in (replica, *others)]
    for each in (builder, *builders):
        await each.stop()
    try:
        yield builder
    finally:
        await builder.stop()
        for each in (builder, *builders):
            each.start()
