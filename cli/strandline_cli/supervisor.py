"""Keeping processes alive: start, watch, start again, drain."""

from __future__ import annotations

import asyncio
import signal
import time
from asyncio.subprocess import Process
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from strandline_cli.parts import PlatformFailure, ProcessPart
from strandline_cli.process import ended_how, spawn

_ASK_EVERY_SECONDS = 0.03
# Before each new attempt. PostgreSQL needs several after a kill: it refuses while orphans of its last life still run.
_PAUSES_SECONDS = (0.1, 0.3, 1.0, 3.0, 3.0)
_FIRST_PAUSES_SECONDS = (0.1,)


class Teller(Protocol):
    """Who is told what happens."""

    def step(self, name: str, milliseconds: float, detail: str = "") -> None:
        """Something was done."""

    def warn(self, text: str) -> None:
        """Something went wrong and is being dealt with."""


class Supervisor:
    """The processes of one platform.

    Args:
        logs: folder of ``<part>.log``.
        on_change: called whenever a process begins or ends.
    """

    def __init__(self, logs: Path, teller: Teller, on_change: Callable[[dict[str, int | None]], None]) -> None:
        self._logs = logs
        self._teller = teller
        self._on_change = on_change
        self._processes: dict[str, Process] = {}

    async def keep(self, part: ProcessPart, first_ready: asyncio.Event) -> None:
        """Run the part until the task is cancelled, starting it again whenever it ends. Cancelling ends no process.

        Raises:
            PlatformFailure: it ended or stayed silent in every attempt: two at first, six once it has served.
        """
        failures = 0
        while True:
            began = time.monotonic()
            process = await self._start(part)
            if serves := await self._comes_to_serve(part, process):
                self._teller.step(part.name, 1000 * (time.monotonic() - began), "again" if first_ready.is_set() else "")
                first_ready.set()
                failures = 0
            how = ended_how(await process.wait())
            self._changed()
            pauses = _PAUSES_SECONDS if first_ready.is_set() else _FIRST_PAUSES_SECONDS
            if failures == len(pauses):
                raise PlatformFailure(f"{part.name} cannot start: it {how}", part.name)
            if serves:
                self._teller.warn(f"{part.name} {how}: starting it again")
            await asyncio.sleep(pauses[failures])
            failures += 1

    async def stop(self, parts: Sequence[ProcessPart]) -> None:
        """Ask the parts for an orderly end, all at once; kill those that take too long."""
        await asyncio.gather(*(self._stop(part) for part in parts))

    def kill(self, parts: Iterable[ProcessPart]) -> None:
        """End the parts now. They lose nothing that was acknowledged; their next start takes a little longer."""
        for part in parts:
            self._signal(part.name, part.kill_signal)

    async def _start(self, part: ProcessPart) -> Process:
        process = await spawn(part, self._logs / f"{part.name}.log")
        self._processes[part.name] = process
        self._changed()
        return process

    async def _comes_to_serve(self, part: ProcessPart, process: Process) -> bool:
        deadline = time.monotonic() + part.ready_within
        while process.returncode is None:
            if await part.ready():
                return True
            if time.monotonic() > deadline:
                self._teller.warn(f"{part.name} did not answer within {part.ready_within:g} s: killing it")
                process.send_signal(part.kill_signal)
                break
            await asyncio.sleep(_ASK_EVERY_SECONDS)
        return False

    async def _stop(self, part: ProcessPart) -> None:
        began = time.monotonic()
        process = self._processes.get(part.name)
        if process is None or process.returncode is not None:
            return
        self._signal(part.name, part.stop_signal)
        detail = "stopped"
        try:
            await asyncio.wait_for(process.wait(), part.stop_within)
        except TimeoutError:
            self._signal(part.name, part.kill_signal)
            await process.wait()
            detail = f"killed: it did not stop within {part.stop_within:g} s"
        self._changed()
        self._teller.step(part.name, 1000 * (time.monotonic() - began), detail)

    def _signal(self, name: str, signum: signal.Signals) -> None:
        process = self._processes.get(name)
        if process is not None and process.returncode is None:
            process.send_signal(signum)

    def _changed(self) -> None:
        self._on_change(
            {name: process.pid if process.returncode is None else None for name, process in self._processes.items()}
        )
