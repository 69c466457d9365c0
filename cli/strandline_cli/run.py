"""One run of the platform: which part waits for which, and in which order they drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager

from strandline_cli import envoys, mail, smoke
from strandline_cli.console import Console
from strandline_cli.credentials import ensure_secrets
from strandline_cli.generate import generate
from strandline_cli.inventory import Inventory
from strandline_cli.parts import Layout, ProcessPart
from strandline_cli.supervisor import Supervisor


class Run:
    """The parts of one layout, alive.

    Args:
        on_change: told the processes (part -> pid, None between two lives) whenever one begins or ends.
    """

    def __init__(self, layout: Layout, console: Console, on_change: Callable[[dict[str, int | None]], None]) -> None:
        self._layout = layout
        self._console = console
        self._parts = Inventory.of(layout)
        self._ready = {part.name: asyncio.Event() for part in self._parts.processes}
        self._supervisor = Supervisor(layout.home.logs, console, on_change)
        self._sink = AsyncExitStack()
        self.draining = False

    async def start(self, group: asyncio.TaskGroup) -> smoke.Proof:
        """Start everything; done when a write has gone through the edge and its change was seen on a feed.

        The services take longest, nearly all of it imports: they are started as early as possible and wait for the
        database by themselves. The edge waits for the user service, which has the keys that let anybody in.

        Args:
            group: keeps the parts alive afterwards; cancelling it ends no process.

        Raises:
            PlatformFailure: something did not work, by itself or inside the exception group of *group*.
        """
        parts = self._parts
        ensure_secrets(self._layout.home.secrets)
        database = group.create_task(self._start_database(group))
        with self._step("configuration"):
            await generate(self._layout)
        self._keep(group, *parts.services, parts.nats, *parts.sidecars)
        with self._step("mail"):
            await self._sink.enter_async_context(mail.sink(self._layout))
        await self._ready["user"].wait()
        self._keep(group, parts.edge)
        await database
        for ready in self._ready.values():
            await ready.wait()
        with self._step("smoke check"):
            return await asyncio.to_thread(smoke.check, self._layout.home, self._layout.rest)

    async def drain(self) -> None:
        """Stop everything, the outermost part first.

        One exception: the stream service goes before the edge, which only closes its door at first. So the last
        message of every feed, which says where to resume, still finds its way out.
        """
        self.draining = True
        parts = self._parts
        if await envoys.close_door(self._layout):
            self._console.line("  edge takes no new connections")
        stream = [service for service in parts.services if service.name == "stream"]
        others = [service for service in parts.services if service.name != "stream"]
        for group in (stream, [parts.edge], parts.sidecars, others, [parts.nats]):
            await self._supervisor.stop(group)
        await self._sink.aclose()
        await self._supervisor.stop([parts.postgres])

    def kill(self) -> None:
        """Stop everything now."""
        self._supervisor.kill(self._parts.processes)

    async def _start_database(self, group: asyncio.TaskGroup) -> None:
        database = self._parts.database
        began = time.monotonic()
        if await database.initialize():
            self._console.step("initdb", 1000 * (time.monotonic() - began), "a new, empty cluster")
        self._keep(group, self._parts.postgres)
        await self._ready["postgres"].wait()
        with self._step("databases"):
            await database.create_databases()

    def _keep(self, group: asyncio.TaskGroup, *parts: ProcessPart) -> None:
        for part in parts:
            group.create_task(self._supervisor.keep(part, self._ready[part.name]))

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._console.step(name, 1000 * (time.monotonic() - began))
