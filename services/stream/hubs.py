"""All hubs of this process, and what feeds them: the bus when it is quick, the owners' logs always.

A commit notice in order goes straight into the ring. After a gap the log is read, but only 20 ms later: batches of
several replicas may arrive out of order. And because a lost *last* notice leaves no visible hole, the heads of all hubs
are asked for every second, in one call per owner.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from services.runtime.bus import Bus, commit_subject
from services.runtime.call import Namespace
from services.runtime.changelog import Head
from services.runtime.errors import Error, OutOfRange, Unavailable
from services.stream.hub import MAX_RING_BYTES, Hub
from services.stream.segments import Segments, Units
from services.stream.upstream import SYSTEM, Notice, read_notice

logger = logging.getLogger(__name__)

POLL_SECONDS = 1.0
REORDER_SECONDS = 0.02
# A reader that reconnects finds its ring warm.
IDLE_SECONDS = 30.0
# Notices that may wait for the ones before them.
MAX_EARLY = 64


class Positions(Units, Protocol):
    """Where logs are, and their units (``upstream.Logs``)."""

    async def heads(self, namespaces: Sequence[str]) -> dict[str, Head]: ...


class Hubs:
    """Hubs by namespace: made for the first subscriber, dropped half a minute after the last.

    ``segments`` is what their logs hold below their rings.
    """

    def __init__(self, logs: Positions, bus: Bus, *, ring_bytes: int = MAX_RING_BYTES) -> None:
        self.draining = False
        self.segments = Segments(logs)
        self._ring_bytes = ring_bytes
        self._logs = logs
        self._bus = bus
        self._hubs: dict[str, Hub] = {}
        self._early: dict[Hub, dict[int, Notice]] = {}
        self._catching_up: set[Hub] = set()
        self._idle_since: dict[Hub, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begin to follow the bus and the owners."""
        await self._bus.subscribe(commit_subject("*"), self._on_notice)
        self._spawn(self._every(POLL_SECONDS, self._tick))
        self._spawn(self._every(POLL_SECONDS, self._poll))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drain(self) -> None:
        """Make every feed say goodbye."""
        self.draining = True
        for hub in self._hubs.values():
            hub.wake()

    def access_changed(self, namespace: str) -> None:
        """Let the feeds of *namespace* ("": of all) check again who may read them."""
        for hub in self._hubs.values():
            # On `system` are also those who watch the members of a namespace.
            if namespace in ("", hub.namespace) or hub.namespace == SYSTEM:
                hub.access_changes += 1
                hub.wake()

    async def attach(self, namespace: Namespace) -> tuple[Hub, Head]:
        """The hub of *namespace* for one more subscriber, who must ``detach``, and the head as its owner has it now.

        The hub listens before the head is read, so that nothing committed in between is lost.

        Raises:
            Unavailable: the owner does not answer, or the log has a life that the caller's access was not checked for.
        """
        while True:
            hub = self._hubs.setdefault(namespace.id, Hub(namespace.id, self._ring_bytes))
            hub.subscribers += 1
            try:
                head = await self._head_of(namespace)
                if await self._agree(hub, head, namespace):
                    return hub, head
            except BaseException:
                self.detach(hub)
                raise
            self.detach(hub)

    def detach(self, hub: Hub) -> None:
        """One subscriber less."""
        hub.subscribers -= 1
        if not hub.subscribers:
            self._idle_since[hub] = time.monotonic()

    async def _head_of(self, namespace: Namespace) -> Head:
        heads = await self._logs.heads([namespace.id])
        # A log that nothing was written to has no head yet.
        head = heads.get(namespace.id) or Head(namespace.id, namespace.epoch, 0)
        if namespace.epoch not in ("", head.epoch):
            raise Unavailable("ACCESS_UNVERIFIABLE", "the namespace is being made anew; retry")
        return head

    async def _agree(self, hub: Hub, head: Head, namespace: Namespace) -> bool:
        """Whether *hub* follows the life of the log that *head* is of; if not, it is ended and forgotten."""
        if not hub.started:
            hub.start(head)
            self._take_early(hub)
        if hub.epoch != head.epoch:
            # Answers may overtake each other: only one asked for after the doubt arose decides.
            head = await self._head_of(namespace)
            if hub.epoch != head.epoch:
                self._forget(hub)
                return False
        if hub.ended:
            return False
        self._learn(hub, head)
        return True

    def _forget(self, hub: Hub) -> None:
        hub.end()
        if self._hubs.get(hub.namespace) is hub:
            del self._hubs[hub.namespace]
        self._early.pop(hub, None)
        self._idle_since.pop(hub, None)

    def _learn(self, hub: Hub, head: Head) -> None:
        hub.learn(head)
        if hub.position < hub.head:
            self._catch_up(hub, REORDER_SECONDS)

    # The bus

    async def _on_notice(self, payload: bytes) -> None:
        notice = read_notice(payload)
        hub = self._hubs.get(notice.head.namespace) if notice else None
        if notice is None or hub is None:
            return
        if hub.started and notice.head.epoch != hub.epoch:
            self._spawn(self._look_again(hub))
            return
        if hub.started and notice.after <= hub.position and not notice.units:
            hub.learn(notice.head)
            self._catch_up(hub, 0)
        elif not (hub.started and hub.append(notice.after, notice.units)):
            early = self._early.setdefault(hub, {})
            if len(early) < MAX_EARLY:
                early[notice.after] = notice
            if hub.started:
                self._learn(hub, notice.head)
        if hub.started:
            self._take_early(hub)

    def _take_early(self, hub: Hub) -> None:
        """Append what came before its time, as far as it joins up now."""
        early = self._early.pop(hub, {})
        for after in sorted(early):
            notice = early[after]
            if notice.head.epoch != hub.epoch or notice.head.revision <= hub.position:
                continue
            hub.learn(notice.head)
            if not (notice.units and hub.append(after, notice.units)):
                self._early.setdefault(hub, {})[after] = notice
        if hub.position < hub.head:
            self._catch_up(hub, REORDER_SECONDS)

    # The log

    def _catch_up(self, hub: Hub, delay: float) -> None:
        """Read the log up to the head, unless that happens already."""
        if hub not in self._catching_up:
            self._catching_up.add(hub)
            self._spawn(self._read_log(hub, delay))

    async def _read_log(self, hub: Hub, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
            while hub.position < hub.head and not hub.ended:
                after = hub.position
                head, units = await self._logs.units(hub.namespace, after)
                if head.epoch != hub.epoch:
                    self._forget(hub)
                elif units:
                    hub.append(after, units)
                    hub.learn(head)
                elif hub.position == after:
                    break
        except OutOfRange:
            # So long out of touch that the log was cut meanwhile. Whoever needs that part will be told so by the log.
            await self._start_again(hub)
        except Error as failure:
            logger.warning("the log of %s is read again later: %s", hub.namespace, failure)
        finally:
            self._catching_up.discard(hub)

    async def _start_again(self, hub: Hub) -> None:
        head = (await self._logs.heads([hub.namespace])).get(hub.namespace)
        if head is not None and head.epoch == hub.epoch:
            hub.start(head)
            hub.wake()

    # The clock

    async def _every(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Error as failure:
                logger.warning("the heads are not known right now: %s", failure)
            except Exception:
                logger.exception("a hub could not be looked after")

    async def _tick(self) -> None:
        """Let every feed look at its clock and its access; drop hubs that nobody needs."""
        now = time.monotonic()
        for hub, since in list(self._idle_since.items()):
            if hub.subscribers:
                del self._idle_since[hub]
            elif now - since > IDLE_SECONDS or hub.ended:
                self._forget(hub)
        self.segments.sweep()
        self.access_changed("")

    async def _poll(self) -> None:
        hubs = [hub for hub in self._hubs.values() if hub.started]
        heads = await self._logs.heads([hub.namespace for hub in hubs])
        for hub in hubs:
            head = heads.get(hub.namespace)
            if head is None or hub.ended:
                continue
            if head.epoch == hub.epoch:
                self._learn(hub, head)
            else:
                self._spawn(self._look_again(hub))

    async def _look_again(self, hub: Hub) -> None:
        """End *hub* if its log has another life by now."""
        with suppress(Error):
            head = (await self._logs.heads([hub.namespace])).get(hub.namespace)
            if head is not None and head.epoch != hub.epoch:
                self._forget(hub)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
