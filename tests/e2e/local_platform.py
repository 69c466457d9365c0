"""The real platform on this machine, started and asked by its own command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

STRANDLINE = str(Path(sysconfig.get_path("scripts"), "strandline"))
_READY_SECONDS = 60.0
_RECOVERY_SECONDS = 60.0
# The last line of a start that went well.
_UP = "Ctrl-C stops everything"


@dataclass
class Platform:
    """One `strandline up`, and the other commands on its home."""

    home: Path
    process: subprocess.Popen[bytes]
    rest: str = ""
    grpc: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What makes `strandline` mean this platform."""
        return _environment(self.home)

    @property
    def output(self) -> str:
        """What `up` has said so far."""
        return _output_file(self.home).read_text()

    def run(self, *arguments: str, timeout: float = _READY_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run `strandline` with this home, as from another terminal."""
        return run_strandline(self.home, *arguments, timeout=timeout)

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start `strandline` with this home; does not wait."""
        return subprocess.Popen([STRANDLINE, *arguments], env=self.environment, stdout=subprocess.DEVNULL)

    def status(self) -> dict[str, Any]:
        """The answer of `strandline status --json`."""
        answer: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return answer

    def pid(self, part: str) -> int:
        """The process of a part that runs."""
        pid = {entry["name"]: entry["pid"] for entry in self.status()["parts"]}[part]
        assert isinstance(pid, int), f"{part} does not run"
        return pid

    def token(self) -> str:
        """An access token of the administrator, valid for at least 8 minutes."""
        return self.run("token").stdout.strip()

    def kill(self, part: str) -> None:
        """``kill -9`` the part's process, and return when it is no more; it is started again by itself."""
        process = psutil.Process(self.pid(part))
        process.kill()
        process.wait(_RECOVERY_SECONDS)

    def wait_until_ready(self) -> None:
        """Wait until every part answers again."""
        deadline = time.monotonic() + _RECOVERY_SECONDS
        while (answer := self.run("status")).returncode != 0:
            assert time.monotonic() < deadline, f"not ready again:\n{answer.stdout}\n{self.output}"
            time.sleep(0.1)

    def stop(self) -> int:
        """Drain, as Ctrl-C does; the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(_READY_SECONDS)


@contextmanager
def new_home() -> Iterator[Path]:
    """A folder that the database's user may pass through (pytest's own are closed to it), removed afterwards."""
    home = Path(tempfile.mkdtemp(prefix="sl-e2e-"))
    try:
        yield home
    finally:
        shutil.rmtree(home)
        _output_file(home).unlink(missing_ok=True)


@contextmanager
def started(home: Path, *options: str) -> Iterator[Platform]:
    """`strandline up` in *home*, ready; drained at the end unless it has ended by then."""
    running = start(home, *options)
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while _UP not in running.output:
            assert running.process.poll() is None, f"up ended:\n{running.output}"
            assert time.monotonic() < deadline, f"up is not ready:\n{running.output}"
            time.sleep(0.05)
        status = running.status()
        running.rest, running.grpc = status["rest"], status["grpc"]
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


def start(home: Path, *options: str) -> Platform:
    """`strandline up` in *home*, on any free port unless *options* say otherwise; does not wait."""
    with _output_file(home).open("wb") as output:
        process = subprocess.Popen(
            [STRANDLINE, "up", *(options or ("--port", "0"))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(home),
            start_new_session=True,
        )
    return Platform(home, process)


def run_strandline(home: Path, *arguments: str, timeout: float = _READY_SECONDS) -> subprocess.CompletedProcess[str]:
    """One `strandline` command on *home*."""
    return subprocess.run(
        [STRANDLINE, *arguments], env=_environment(home), capture_output=True, text=True, timeout=timeout
    )


def _environment(home: Path) -> dict[str, str]:
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "STRANDLINE_HOME": str(home)}


def _output_file(home: Path) -> Path:
    # Beside the home, not in it: `reset` is tested too.
    return home.with_suffix(".out")
