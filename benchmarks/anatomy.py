"""Where the CPU time of a call goes: an entity service with clocks in it.

``python -m benchmarks.anatomy FILE RPC WARM_UP`` serves; told to stop, it writes to FILE what the clocks say. A second
replica, so that the clocks slow down nothing that is measured for its speed. Each clock is the CPU time of the
main thread between two points, without what runs inside under a clock of its own; what no clock covers is gRPC and the
event loop. The clocks themselves cost about 10 us of a call, spread over all parts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import types
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final

from strandline_cli import services
from strandline_cli.parts import Layout
from strandline_cli.process import spawn

from benchmarks import h2load
from benchmarks.machine import SUBJECT_CORE, pin, wait_for_socket
from benchmarks.unary import IN_FLIGHT
from services.entity import lists, server
from services.entity.api import EntityHandlers
from services.entity.ledger import EntityLedger
from services.entity.reads import Reader
from services.entity.writes import Writer
from services.runtime import committer, database, pipeline, rpc
from services.runtime.gate import Gate

WARM_UP: Final = 2048
CALLS: Final = 12_000
_HANDLERS: Final = {
    "GetEntity": EntityHandlers.get_entity,
    "ListEntities": EntityHandlers.list_entities,
    "CreateEntity": EntityHandlers.create_entity,
}
THREADS: Final = "grpc: threads"
MAIN: Final = "grpc: main thread, event loop"


class Clocks:
    """CPU seconds of the main thread by part, since the warm-up."""

    def __init__(self, warm_up: int) -> None:
        self.calls = 0
        self._warm_up = warm_up
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._part = MAIN
        self._since = time.thread_time()
        self._process_since = time.process_time()

    def enter(self, part: str) -> str:
        """The clock of *part* runs from now on; returns whose has run, to be given to the next ``enter``."""
        now = time.thread_time()
        before, self._part = self._part, part
        self._spent[before] += now - self._since
        self._since = now
        return before

    def count(self) -> None:
        """A call has ended."""
        self.calls += 1
        if self.calls == self._warm_up:
            self._spent.clear()
            self._process_since = time.process_time()

    def microseconds(self) -> dict[str, float]:
        """Per call, parts in order of their cost."""
        calls = self.calls - self._warm_up
        threads = time.process_time() - self._process_since - sum(self._spent.values())
        parts = sorted({THREADS: threads, **self._spent}.items(), key=lambda part: -part[1])
        return {part: round(1e6 * seconds / calls, 1) for part, seconds in parts}


def install(clocks: Clocks, counted_rpc: str) -> None:
    """Put clocks around the parts of reads, lists and writes; the calls of *counted_rpc* are counted."""

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def plain(*args: Any, **kwargs: Any) -> Any:
            before = clocks.enter(part)
            try:
                return function(*args, **kwargs)
            finally:
                clocks.enter(before)

        @wraps(function)
        async def steps(*args: Any, **kwargs: Any) -> Any:
            return await _steps(part, function(*args, **kwargs))

        return steps if asyncio.iscoroutinefunction(function) else plain

    @types.coroutine
    def _steps(part: str, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        step: Callable[[], Any] = partial(coroutine.send, None)
        while True:
            before = clocks.enter(part)
            try:
                waited_for = step()
            except StopIteration as end:
                return end.value
            finally:
                clocks.enter(before)
            try:
                yield waited_for
                step = partial(coroutine.send, None)
            except BaseException as thrown:
                step = partial(coroutine.throw, thrown)

    def clock(part: str, owner: Any, *names: str) -> None:
        for name in names:
            setattr(owner, name, clocked(part, getattr(owner, name)))

    adapt = rpc.adapt_unary

    def adapt_unary(method: rpc.Method, handler: Any, admit: rpc.Admission) -> Any:
        unary = clocked("adapter", adapt(method, handler, admit))
        if method.name != counted_rpc:
            return unary

        async def counted(raw: bytes, context: Any) -> Any:
            try:
                return await unary(raw, context)
            finally:
                clocks.count()

        return counted

    rpc.adapt_unary = adapt_unary
    clock("parse", rpc.Method, "parse")
    clock("gate", Gate, "admit")
    clock("handler", EntityHandlers, _HANDLERS[counted_rpc].__name__)
    clock("read", Reader, "get", "_work")
    clock("list", lists.Lister, "page")
    clock("filter and plan", lists, "plan_query", "page_statement")
    clock("prepare", Writer, "_prepare")
    clock("commit", committer.Committer, "_work")
    clock("decide", EntityLedger, "reads", "open_round")
    clock("decide", committer._Deciding, "statements")
    clock("database", database.Database, "read", "read_one")
    clock("database", committer, "pipeline")
    clock("database", pipeline._RoundTrip, "on_readable")


async def anatomy(
    layout: Layout, rpc_name: str, load: Callable[[Path], Awaitable[None]], warm_up: int
) -> dict[str, float]:
    """CPU us per call by part, of a replica whose socket *load* calls; the first *warm_up* calls do not count."""
    socket, found = layout.run / "anatomy.sock", layout.run / "anatomy.json"
    (part,) = (part for part in services.parts(layout) if part.name == "entity")
    addresses = {
        "STRANDLINE_LISTEN": f"unix:{socket}",
        "STRANDLINE_METRICS_LISTEN": f"unix:{layout.run / 'anatomy-metrics.sock'}",
    }
    arguments = (str(found), rpc_name, str(warm_up))
    clocked = replace(
        part,
        command=(*pin(SUBJECT_CORE), sys.executable, "-m", "benchmarks.anatomy", *arguments),
        environment={**part.environment, **addresses},
    )
    process = await spawn(clocked, layout.home.logs / "anatomy.log")
    try:
        await wait_for_socket(socket, process)
        await load(socket)
    finally:
        process.terminate()
        await process.wait()
    parts: dict[str, float] = json.loads(found.read_text())
    return parts


async def anatomy_under_load(layout: Layout, method: str, calls: Sequence[bytes], token: str) -> dict[str, float]:
    """The same with *calls* of *method* (its path), as many in flight as when its speed is measured."""

    async def load(socket: Path) -> None:
        bodies = [h2load.write_call(layout.run / f"anatomy-{n}", call) for n, call in enumerate(calls)]
        done = await h2load.run(socket, method, bodies, WARM_UP + CALLS, IN_FLIGHT, token)
        if done.succeeded != done.requests:
            raise RuntimeError(f"not all calls succeeded: {done}")

    return await anatomy(layout, method.rpartition("/")[2], load, WARM_UP)


def main() -> None:
    """Serve with clocks, and write what they say when told to stop."""
    clocks = Clocks(int(sys.argv[3]))
    install(clocks, sys.argv[2])
    try:
        server.main()
    finally:
        Path(sys.argv[1]).write_text(json.dumps(clocks.microseconds()))


if __name__ == "__main__":
    main()
