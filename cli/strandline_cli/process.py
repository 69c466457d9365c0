"""Processes that die with the supervisor, their logs and their memory."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from strandline_cli.home import Home
from strandline_cli.parts import ProcessPart

_PR_SET_PDEATHSIG = 1
_LOG_LIMIT_BYTES = 20 * 1024 * 1024
_TAIL_BYTES = 64 * 1024
# Longer than every part's own limit together.
_DOWN_SECONDS = 60.0


async def spawn(part: ProcessPart, log: Path) -> Process:
    """Start the part's process, its output appended to *log*.

    Must be called on the main thread: the kernel ties the child's life to the thread that forks it. The child gets a
    session of its own, so that Ctrl-C in the terminal reaches the supervisor alone and the drain keeps its order.
    """
    identity: dict[str, Any] = {}
    if part.run_as is not None:
        identity = {"user": part.run_as, "group": part.run_as, "extra_groups": []}
    with open_log(log) as output:
        return await asyncio.create_subprocess_exec(
            *part.command,
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            env=part.environment,
            cwd="/",
            start_new_session=True,
            preexec_fn=_die_with_parent(part.orphan_signal),
            **identity,
        )


async def run_to_end(*command: str, input: bytes = b"", **options: Any) -> tuple[int, str]:
    """Exit code and all output of a program that ends by itself.

    Cancelled, it leaves nothing behind: neither the process, nor pipes that would still be open when the loop closes.
    """
    process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, **options)
    try:
        output, _ = await process.communicate(input)
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        raise
    return process.returncode or 0, output.decode(errors="replace").strip()


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a part: the user's, without any setting of another Strandline, and its own settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STRANDLINE_")}
    level = os.environ.get("STRANDLINE_LOG_LEVEL")
    return inherited | ({"STRANDLINE_LOG_LEVEL": level} if level else {}) | dict(own)


def open_log(path: Path) -> Any:
    """Open a part's log for appending; a large one is set aside as ``.1`` first."""
    if path.exists() and path.stat().st_size > _LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def last_lines(path: Path, count: int, after: int = 0) -> list[str]:
    """The last *count* lines of a log, read from its end; only what follows its first *after* bytes."""
    try:
        with path.open("rb") as log:
            size = path.stat().st_size
            # A log that is shorter than it was has been set aside, and all of this one is new.
            log.seek(max(after if after <= size else 0, size - _TAIL_BYTES))
            return log.read().decode(errors="replace").splitlines()[-count:]
    except FileNotFoundError:
        return []


def follow_log(path: Path) -> None:
    """Print what is added to a log, for ever; a log that was set aside is followed by its successor."""
    with path.open(errors="replace") as log:
        log.seek(0, os.SEEK_END)
        while path.stat().st_ino == os.fstat(log.fileno()).st_ino:
            for line in log:
                print(line, end="", flush=True)
            time.sleep(0.2)
    follow_log(path)


def stop_supervisor(home: Home, pid: int) -> bool:
    """Ask a supervisor to drain, and wait for it; whether it let go of its home."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_SECONDS
    while home.holder() == pid and time.monotonic() < deadline:
        time.sleep(0.05)
    return home.holder() != pid


def ended_how(code: int) -> str:
    """An exit code in words."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def end_leftovers(pids: Iterable[int], patience: float) -> list[int]:
    """Wait for processes of a dead supervisor to go, kill those that do not.

    Args:
        pids: processes that were its children, as it last wrote them down. A number that meanwhile belongs to a
            process of another name or another session is left alone.
        patience: seconds to wait before the kill.

    Returns:
        Those that had to be killed.
    """
    import psutil

    alive = []
    for pid in pids:
        try:
            # A part leads its own session; a stranger that was given the number hardly does, and has another parent.
            if os.getsid(pid) == pid and psutil.Process(pid).ppid() == 1:
                alive.append(psutil.Process(pid))
        except (ProcessLookupError, PermissionError, psutil.Error):
            continue
    _, stubborn = psutil.wait_procs(alive, timeout=patience)
    for process in stubborn:
        process.kill()
    psutil.wait_procs(stubborn, timeout=patience)
    return [process.pid for process in stubborn]


def memory_of_family(pid: int) -> tuple[int, int]:
    """Memory of a process and all its descendants.

    Returns:
        Bytes (each shared page counted once in total, as PSS; on systems without PSS the unique set size) and the
        number of processes.
    """
    import psutil

    supervisor = psutil.Process(pid)
    total = count = 0
    for process in (supervisor, *supervisor.children(recursive=True)):
        try:
            memory = process.memory_full_info()
        except psutil.Error:
            continue  # it ended between the two looks
        total += getattr(memory, "pss", memory.uss)
        count += 1
    return total, count


def _die_with_parent(signum: signal.Signals) -> Callable[[], None] | None:
    # macOS has no such call: there the next `up` ends what a killed supervisor left (end_leftovers).
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    supervisor = os.getpid()

    def tie() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0)
        if os.getppid() != supervisor:  # it died before the call
            os.kill(os.getpid(), signal.SIGKILL)

    return tie
