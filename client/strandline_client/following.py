"""One feed out of as many connections as it takes. The same for every transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from strandline_client.errors import ApiError
from strandline_client.position import Position, Seen, Start
from strandline_client.retry import Backoff

T = TypeVar("T")

# The server sends something every 5 seconds: a longer silence is a broken connection, whatever TCP says.
SILENCE_SECONDS = 15.0


async def follow(
    connect: Callable[[Start], AsyncGenerator[T, None]],
    look: Callable[[T], Seen],
    position: Position,
    patience: float | None,
) -> AsyncGenerator[T, None]:
    """Yield every message once, verified, across breaks of the connection.

    Args:
        connect: one connection from a start; raises ``ApiError`` when it breaks or is refused, returns when it is cut.
        look: what a message says about itself.
        patience: seconds without any message after which the last failure is raised; None: never.

    Raises:
        FeedViolation, FeedEnded: see there.
        ApiError: refused for good, or nothing came for *patience* seconds.
    """
    backoff = Backoff(patience)
    while True:
        try:
            async with aclosing(connect(position.resume())) as connection:
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        message = await anext(connection)
                    position.take(look(message))
                    backoff.succeeded()
                    yield message
        except ApiError as failure:
            await backoff.wait(failure)
        except (StopAsyncIteration, TimeoutError):
            await backoff.wait(ApiError("UNAVAILABLE", "", "the connection was lost"))
