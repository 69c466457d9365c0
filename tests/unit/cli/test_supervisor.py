"""The supervisor with real processes: small ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from strandline_cli.parts import PlatformFailure, ProcessPart
from strandline_cli.process import environment, last_lines
from strandline_cli.supervisor import Supervisor


class Teller:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, str]] = []
        self.warnings: list[str] = []

    def step(self, name: str, milliseconds: float, detail: str = "") -> None:
        self.steps.append((name, detail))

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Stage:
    """A supervisor and what it reports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.teller = Teller()
        self.pids: dict[str, int | None] = {}
        self.supervisor = Supervisor(folder, self.teller, self.pids.update)

    def part(self, name: str, script: str, **fields: object) -> ProcessPart:
        """A shell script that serves once it has made the file that is its name."""
        return ProcessPart(
            name=name,
            address="",
            ready=lambda: self._exists(name),
            command=("/bin/sh", "-c", f"cd {self.folder}; {script}"),
            environment=environment({}),
            **fields,  # type: ignore[arg-type]  # the test's own keywords
        )

    async def _exists(self, name: str) -> bool:
        return (self.folder / name).exists()


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


async def test_a_part_that_dies_is_started_again_and_that_is_said(stage: Stage) -> None:
    part = stage.part("sleeper", "touch sleeper; exec sleep 60")
    ready = asyncio.Event()
    keeping = asyncio.create_task(stage.supervisor.keep(part, ready))
    await asyncio.wait_for(ready.wait(), 30)
    first = stage.pids["sleeper"]
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: ("sleeper", "again") in stage.teller.steps)
    assert stage.teller.warnings == ["sleeper was ended by SIGKILL: starting it again"]
    assert stage.pids["sleeper"] not in (None, first)
    await end(stage, keeping, part)


async def test_a_part_that_cannot_start_is_a_failure_that_names_it_and_its_log_tells_why(stage: Stage) -> None:
    part = stage.part("broken", "echo no such luck; exit 3")
    with pytest.raises(PlatformFailure, match="broken cannot start: it ended with exit code 3") as raised:
        await stage.supervisor.keep(part, asyncio.Event())
    assert raised.value.part == "broken"
    assert last_lines(stage.folder / "broken.log", 1) == ["no such luck"]


def test_the_end_of_a_log_is_that_of_this_start_also_after_it_was_set_aside(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    log.write_text("an earlier start\n")
    earlier = log.stat().st_size
    assert last_lines(log, 20, earlier) == []
    with log.open("a") as more:
        more.write("no such luck\n")
    assert last_lines(log, 20, earlier) == ["no such luck"]
    log.write_text("short\n")
    assert last_lines(log, 20, earlier) == ["short"]


async def test_a_part_that_stays_silent_is_killed_and_counts_as_one_that_cannot_start(stage: Stage) -> None:
    part = stage.part("mute", "exec sleep 60", ready_within=0.2)
    with pytest.raises(PlatformFailure, match="mute cannot start: it was ended by SIGKILL"):
        await stage.supervisor.keep(part, asyncio.Event())
    assert stage.teller.warnings[0] == "mute did not answer within 0.2 s: killing it"


async def test_stop_lets_a_part_finish_and_kills_one_that_does_not(stage: Stage) -> None:
    polite = stage.part("polite", "trap 'echo bye; exit 0' TERM; touch polite; while :; do sleep 0.05; done")
    stubborn = stage.part("stubborn", "trap '' TERM; touch stubborn; while :; do sleep 0.05; done", stop_within=0.3)
    tasks = []
    for part in (polite, stubborn):
        ready = asyncio.Event()
        tasks.append(asyncio.create_task(stage.supervisor.keep(part, ready)))
        await asyncio.wait_for(ready.wait(), 30)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await stage.supervisor.stop([polite, stubborn])
    assert stage.teller.steps[-2:] == [
        ("polite", "stopped"),
        ("stubborn", "killed: it did not stop within 0.3 s"),
    ]
    assert last_lines(stage.folder / "polite.log", 1) == ["bye"]
    assert stage.pids == {"polite": None, "stubborn": None}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel call that ends orphans is Linux's")
def test_after_kill_9_of_the_supervisor_its_parts_are_gone_even_one_that_ignores_every_signal(tmp_path: Path) -> None:
    supervisor = subprocess.Popen([sys.executable, "-c", _SUPERVISE_A_DEAF_PART, str(tmp_path)])
    try:
        deadline = time.monotonic() + 30
        while not (tmp_path / "deaf").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        (part,) = psutil.Process(supervisor.pid).children()
    finally:
        supervisor.kill()
        supervisor.wait()
    psutil.wait_procs([part], timeout=30)
    assert not is_alive(part.pid)


_SUPERVISE_A_DEAF_PART = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from strandline_cli.console import Console
    from strandline_cli.parts import ProcessPart
    from strandline_cli.supervisor import Supervisor

    async def never(): return False
    script = f"cd {sys.argv[1]}; trap '' TERM INT HUP; touch deaf; while :; do sleep 0.1; done"
    part = ProcessPart(name="deaf", address="", ready=never, command=("/bin/sh", "-c", script))
    asyncio.run(Supervisor(Path(sys.argv[1]), Console(), lambda pids: None).keep(part, asyncio.Event()))
    """
)


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that nobody has waited for yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def eventually(holds: object) -> None:
    assert callable(holds)
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        await asyncio.sleep(0.02)


async def end(stage: Stage, keeping: asyncio.Task[None], part: ProcessPart) -> None:
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    await stage.supervisor.stop([part])
