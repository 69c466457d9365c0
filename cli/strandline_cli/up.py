"""`strandline up`: from the first check to the last drain, and what is said meanwhile."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from strandline_cli import ports, preflight, report
from strandline_cli.console import Console
from strandline_cli.home import AlreadyRunning, Home, State
from strandline_cli.parts import Layout, PlatformFailure
from strandline_cli.process import end_leftovers, last_lines
from strandline_cli.run import Run

# A unix socket's path is at most 103 bytes on macOS and 107 on Linux; the longest name in the folder has 25.
_LONGEST_RUN_FOLDER = 103 - 26
_LEFTOVER_PATIENCE_SECONDS = 5.0
_LOG_LINES = 20
_RESET = "strandline reset   (removes all data)"


def up(home: Home, port: int, console: Console, webhook_receivers: str = "") -> int:
    """Run the platform until a signal stops it.

    Args:
        port: wanted for the edge; 0: any free one.
        webhook_receivers: as in ``Layout``.

    Returns:
        The exit code: 0 after an orderly stop, 1 when it could not start or lost a part for good.
    """
    began = time.monotonic()
    console.line(f"[bold]Strandline {version('strandline')}[/bold] on this machine: development only")
    try:
        preflight.check(home)
        with home.hold():
            home.prepare()
            _end_previous(home, console)
            with ports.reserved(port) as (chosen, remarks), _run_folder(home) as run:
                console.step("preflight", 1000 * (time.monotonic() - began))
                for remark in remarks:
                    console.warn(remark)
                return asyncio.run(_supervise(Layout(home, run, chosen, webhook_receivers), console, began))
    except preflight.Unfit as unfit:
        console.failure(str(unfit))
    except AlreadyRunning as other:
        console.failure(f"Strandline runs in {home.root} already, as pid {other.pid}", advice=["strandline down"])
    except PlatformFailure as failure:
        console.failure(str(failure))
    return 1


async def _supervise(layout: Layout, console: Console, began: float) -> int:
    home = layout.home

    def save(pids: dict[str, int | None]) -> None:
        home.save_state(State(pid=os.getpid(), run=str(layout.run), ports=layout.ports, pids=pids))

    run = Run(layout, console, save)
    signals = _catch_signals(run, console)
    earlier = {log.stem: log.stat().st_size for log in home.logs.glob("*.log")}
    code = 0
    try:
        async with asyncio.TaskGroup() as group:
            proof = await run.start(group)
            report.tell(layout, console, proof, time.monotonic() - began)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        pass  # by a signal
    except BaseExceptionGroup as group_of_failures:
        known, unknown = group_of_failures.split(PlatformFailure)
        if unknown is not None or known is None:
            raise
        code = 1
        for failure in _leaves(known):
            if failure.part:
                log = last_lines(home.logs / f"{failure.part}.log", _LOG_LINES, earlier.get(failure.part, 0))
                console.failure(str(failure), log, [f"strandline logs {failure.part}", _RESET])
            else:
                console.failure(str(failure))
    finally:
        asked = signals[0] if signals else time.monotonic()
        await run.drain()
        console.line(f"Stopped in {time.monotonic() - asked:.1f} s. Data is kept in {home.root}")
    return code


def _catch_signals(run: Run, console: Console) -> list[float]:
    """Stop at a signal. What is returned comes to hold when each of them came."""
    main = asyncio.current_task()
    assert main is not None
    moments: list[float] = []

    def stop() -> None:
        moments.append(time.monotonic())
        if run.draining:
            console.line("Killing what is left")
            run.kill()
        else:
            console.line("\nDraining; once more to kill")
            main.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(signum, stop)
    return moments


def _leaves(group: BaseExceptionGroup[PlatformFailure]) -> Iterator[PlatformFailure]:
    for failure in group.exceptions:
        if isinstance(failure, BaseExceptionGroup):
            yield from _leaves(failure)
        else:
            yield failure


def _end_previous(home: Home, console: Console) -> None:
    # A killed supervisor's parts are ended by the kernel; PostgreSQL may still be writing its last checkpoint.
    if (previous := home.load_state()) is None:
        return
    alive = [pid for pid in previous.pids.values() if pid]
    if killed := end_leftovers(alive, _LEFTOVER_PATIENCE_SECONDS):
        console.warn(f"killed {len(killed)} processes that an earlier run had left behind")
    shutil.rmtree(previous.path, ignore_errors=True)


@contextmanager
def _run_folder(home: Home) -> Iterator[Path]:
    """An empty folder for unix sockets: in the home, unless its path is too long for a socket's address."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    if len(os.fsencode(home.run)) > _LONGEST_RUN_FOLDER:
        folder = Path(tempfile.mkdtemp(prefix="strandline-", dir="/tmp"))
    else:
        folder = home.run
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    folder.chmod(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
