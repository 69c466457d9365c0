"""One feed out of as many connections as it takes. The same for every transport."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

from strandline_client.errors import LOST, ApiError, FeedEnded, FeedViolation
from strandline_client.position import Position, Seen, Start
from strandline_client.retry import Backoff, is_final

T = TypeVar("T")

# The server sends something every 5 seconds: a longer silence is a broken connection, whatever TCP says.
SILENCE_SECONDS = 15.0
# Ends after which the next connection is there at once.
_ANNOUNCED = frozenset({"DRAINING", "TOKEN_EXPIRED"})


@dataclass
class FeedCounters:
    """What the feeds of a client have been through, for whatever metrics the program has."""

    connections: int = 0
    messages: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    """By the name of the check. Anything here is a fault of the platform, or of something in between."""


async def follow(
    connect: Callable[[Start], AsyncGenerator[T, None]],
    look: Callable[[T], Seen],
    position: Position,
    patience: float | None,
    counters: FeedCounters,
    on_lost: Callable[[], None] | None = None,
) -> AsyncGenerator[T, None]:
    """Yield every message once, verified, across breaks of the connection. Returns when a finite feed is complete.

    Args:
        connect: one connection from a start; raises ``ApiError`` when it breaks or is refused, returns when it is cut.
        look: what a message says about itself.
        patience: seconds without any message after which the last failure is raised; None: never.
        on_lost: called before each new try but those that a server has announced.

    Raises:
        FeedViolation, FeedEnded: see there.
        ApiError: refused for good, or nothing came for *patience* seconds.
    """
    backoff = Backoff(patience)

    async def wait(failure: ApiError) -> None:
        if on_lost is not None and failure.reason not in _ANNOUNCED and not is_final(failure):
            on_lost()
        await backoff.wait(failure)

    while True:
        counters.connections += 1
        try:
            async with aclosing(connect(position.resume())) as connection:
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        message = await anext(connection)
                    position.take(look(message))
                    counters.messages += 1
                    backoff.succeeded()
                    yield message
                    if position.is_complete:
                        return
        except FeedViolation as violation:
            counters.violations[violation.check] += 1
            raise
        except ApiError as failure:
            if failure.reason in LOST:
                raise FeedEnded(failure.reason, failure.message, position.epoch, position.revision) from failure
            await wait(failure)
        except (StopAsyncIteration, TimeoutError):
            await wait(ApiError("UNAVAILABLE", "", "the connection was lost"))
