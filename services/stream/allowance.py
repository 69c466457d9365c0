"""How many streams of one kind a user may have open at this replica."""

from __future__ import annotations

import asyncio
from collections import Counter

from services.runtime.call import Call
from services.runtime.errors import ResourceExhausted


class Allowance:
    """*limit* streams for each user; who asks for more is refused with *reason* and *message*."""

    def __init__(self, limit: int, reason: str, message: str) -> None:
        self._limit = limit
        self._reason = reason
        self._message = message
        self._open: Counter[str] = Counter()  # by user

    def take(self, call: Call) -> None:
        """One more stream of the caller's, until it is given back.

        Raises:
            ResourceExhausted: there are as many as one may have.
        """
        user = call.actor
        if self._open[user] >= self._limit:
            raise ResourceExhausted(self._reason, self._message, limit=str(self._limit))
        self._open[user] += 1

    def give_back_with_task(self, call: Call) -> None:
        """The stream is over as soon as the running task is, which is that of its request.

        One that is hung up on holds what was sent until its client reads on or goes, and counts for as long.
        """
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: self.give_back(call))

    def give_back(self, call: Call) -> None:
        """One stream less."""
        user = call.actor
        self._open[user] -= 1
        if not self._open[user]:
            del self._open[user]
