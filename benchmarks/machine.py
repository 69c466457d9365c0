"""Which core runs what, and how busy each was: a figure from a shared machine says nothing without it.

Convention of all benchmarks here: the part that is measured has core 0 to itself; PostgreSQL, all other parts and the
load share core 1. On a machine with one core, or without ``taskset``, nothing is pinned, and the figures say so.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from asyncio.subprocess import Process
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

SUBJECT_CORE = 0
LOAD_CORE = 1
PINNED = (os.cpu_count() or 1) > 1 and shutil.which("taskset") is not None


def cores(subject: str) -> Mapping[str, int | str]:
    """Cores as a figure states them."""
    return {subject: SUBJECT_CORE, "all else": LOAD_CORE} if PINNED else {"all": "any"}


def pin(core: int) -> tuple[str, ...]:
    """The beginning of a command that shall run on *core*."""
    return ("taskset", "-c", str(core)) if PINNED else ()


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Run this thread, and the processes that it starts, on *core* for a while."""
    if not PINNED:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Meter:
    """CPU of named process families while ``running``, in cores, and of strangers (``foreign``)."""

    def __init__(self, families: Mapping[str, int]) -> None:
        """*families*: name to the pid of its oldest process. This process and what it waits for are ``load``."""
        self._families = families
        self._spent = dict.fromkeys((*families, "load", "busy"), 0.0)
        self._seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        before, began = self._read(), time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began
        for name, seconds in self._read().items():
            self._spent[name] += seconds - before[name]

    def cores(self) -> dict[str, float]:
        """Mean cores used, by family."""
        if not self._seconds:
            return {}
        used = {name: round(seconds / self._seconds, 2) for name, seconds in self._spent.items() if name != "busy"}
        foreign = (self._spent["busy"] - sum(self._spent[name] for name in used)) / self._seconds
        return used | {"foreign": max(0.0, round(foreign, 2))}

    def microseconds(self, operations: int) -> dict[str, int]:
        """CPU time of each family per operation; steadier than a rate on a machine that others use too."""
        return {name: round(1e6 * self._spent[name] / operations) for name in (*self._families, "load")}

    def _read(self) -> dict[str, float]:
        own = os.times()
        load = own.user + own.system + own.children_user + own.children_system
        total = psutil.cpu_times()
        busy = sum(total) - total.idle - getattr(total, "iowait", 0.0) - getattr(total, "guest", 0.0)
        return {name: _family_seconds(pid) for name, pid in self._families.items()} | {"load": load, "busy": busy}


def _family_seconds(pid: int) -> float:
    oldest = psutil.Process(pid)
    return sum(_seconds((oldest, *oldest.children(recursive=True))))


def _seconds(processes: Iterable[psutil.Process]) -> Iterator[float]:
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it ended between the two looks; its parent has waited for it
        yield times.user + times.system + times.children_user + times.children_system


async def wait_for_socket(path: Path, process: Process) -> None:
    """Wait until *process* listens at *path*; RuntimeError when it ended instead, or after 30 s."""
    for _ in range(600):
        if path.exists():
            return
        if process.returncode is not None:
            break
        await asyncio.sleep(0.05)
    raise RuntimeError(f"nobody listens at {path.name}")
