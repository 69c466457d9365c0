"""Pulling: workers that wait for deliveries over a connection, and whose rights are looked at while they wait."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

from prometheus_client import Gauge
from strandline.stream.v1 import subscription_pb2

from services.runtime import gate
from services.runtime.call import Call, Namespace
from services.runtime.errors import Error, NotFound, Unauthenticated, Unavailable
from services.runtime.gate import EDITOR
from services.runtime.tokens import LEEWAY
from services.stream.allowance import Allowance
from services.stream.deliveries import Deliveries
from services.stream.hub import Hub
from services.stream.hubs import Hubs
from services.stream.permit import UNVERIFIABLE_SECONDS
from services.stream.stalls import Stalls
from services.stream.worker import Worker

OPEN = Gauge("strandline_stream_pulls_open", "Streams of deliveries that are open.")
SIGN_OF_LIFE_SECONDS: Final = 5.0
# Of one user at this replica: each looks into the database at least every five seconds.
MAX_PULLS: Final = 100


class Access(gate.Access, Protocol):
    """What is known of everybody's access (``access.AccessCopy``)."""

    @property
    def unverifiable_for(self) -> float: ...


@dataclass(eq=False)
class _Stream:
    """One that is open, for who looks after it (``stalls.Stream``)."""

    check_now: Callable[[], Awaitable[None]]
    access: Access
    waits_since: float | None = None

    async def check(self) -> None:
        try:
            await self.check_now()
        except Unavailable:
            # Who takes deliveries is refused them at once. Who takes none can wait for the answer.
            if self.access.unverifiable_for > UNVERIFIABLE_SECONDS:
                raise


class Pulls:
    """The pulls of this process. All raise as ``Deliveries`` does, and when their caller may consume no longer."""

    def __init__(self, deliveries: Deliveries, hubs: Hubs, access: Access, stalls: Stalls) -> None:
        self._deliveries = deliveries
        self._hubs = hubs
        self._access = access
        self._stalls = stalls
        message = "the caller has as many pulls that wait, or streams of deliveries, as one may have at a server"
        self._allowance = Allowance(MAX_PULLS, "TOO_MANY_PULLS", message)

    async def pull(
        self, call: Call, namespace: Namespace, id: str, limit: int, seconds: float
    ) -> Sequence[subscription_pb2.Delivery]:
        """At most *limit* deliveries; empty when there was none for so many *seconds*.

        Raises:
            ResourceExhausted: TOO_MANY_PULLS, of those that may wait.
        """
        if not seconds:
            return await self._pull(call, namespace, id, limit, seconds)
        self._allowance.take(call)
        try:
            return await self._pull(call, namespace, id, limit, seconds)
        finally:
            self._allowance.give_back(call)  # before the answer is sent, after which the caller may ask again at once

    async def _pull(
        self, call: Call, namespace: Namespace, id: str, limit: int, seconds: float
    ) -> Sequence[subscription_pb2.Delivery]:
        until = time.monotonic() + seconds
        async with self._deliveries.worker(namespace, id) as worker:
            while not (taken := await worker.take(limit)):
                if not await self._wait(call, namespace, worker, until):
                    break
            return taken

    async def stream(
        self, call: Call, namespace: Namespace, id: str, share: int, hang_up: Callable[[Error], object]
    ) -> AsyncGenerator[Sequence[subscription_pb2.Delivery], None]:
        """Deliveries as they come, *share* of them at a time; none at first and now and then, as a sign of life.

        *hang_up*: called if its reader takes nothing, and may not have more (``stalls.Stalls``).

        Raises:
            ResourceExhausted: TOO_MANY_PULLS.
            Unavailable: this process goes away.
        """
        sent_at = -math.inf  # who waits for the first can tell at once that the stream is open
        async with self._one_more(call), self._deliveries.worker(namespace, id, share=share) as worker:
            stream = _Stream(partial(self._check, call, namespace, worker.hub), self._access)
            with OPEN.track_inprogress(), self._stalls.looking_after(stream, call, hang_up):
                while True:
                    taken = await worker.take(share)
                    if taken or time.monotonic() - sent_at > SIGN_OF_LIFE_SECONDS:
                        stream.waits_since = time.monotonic()
                        yield taken
                        sent_at, stream.waits_since = time.monotonic(), None
                    if taken:
                        await self._check(call, namespace, worker.hub)
                    else:
                        await self._wait(call, namespace, worker, time.monotonic() + SIGN_OF_LIFE_SECONDS)
                    if self._hubs.draining:
                        raise Unavailable("OVERLOADED", "this server is going away; open the stream again")

    @asynccontextmanager
    async def _one_more(self, call: Call) -> AsyncIterator[None]:
        """A stream of the caller's, who may have ``MAX_PULLS``, those that wait included."""
        self._allowance.take(call)
        try:
            yield
        finally:
            self._allowance.give_back_with_task(call)

    async def _wait(self, call: Call, namespace: Namespace, worker: Worker, until: float) -> bool:
        """Whether there may be something to take before *until*. Returns early when this process goes away."""
        while (left := until - time.monotonic()) > 0 and not self._hubs.draining:
            await worker.wait(left)
            await self._check(call, namespace, worker.hub)
            if worker.should_look:
                return True
        return False

    async def _check(self, call: Call, namespace: Namespace, hub: Hub) -> None:
        """Look again whether the caller may take deliveries: somebody who waits must not outlive his rights."""
        principal = call.identified()
        if time.time() > principal.expires_at + LEEWAY:
            raise Unauthenticated("TOKEN_INVALID", "the access token is not valid")
        await self._access.check_session(principal)
        now = await self._access.authorize(principal, namespace.id, EDITOR, write=True)
        if now.epoch != namespace.epoch or hub.ended:
            raise NotFound("NOT_FOUND", "the namespace was deleted, and its subscriptions with it")
