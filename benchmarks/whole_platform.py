"""The whole platform, proxies included, as ``strandline up`` runs it, in a temporary folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from strandline_cli.home import Home, Ports
from strandline_cli.parts import Layout

READY_SECONDS = 60.0


@dataclass(frozen=True)
class Platform:
    """A running platform."""

    home: Home
    rest: str
    run: Path
    pids: dict[str, int]
    ports: Ports

    @property
    def layout(self) -> Layout:
        return Layout(self.home, self.run, self.ports)

    def database(self, service: str) -> str:
        """Conninfo of the superuser in a service's database."""
        password = (self.home.secrets / "postgres" / "superuser").read_text()
        return f"host={self.run / 'postgres'} user=postgres password={password} dbname={service}"

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run ``strandline`` with *arguments*; its exit code and what it printed."""
        return await _strandline(self.home, *arguments)


@asynccontextmanager
async def platform() -> AsyncIterator[Platform]:
    """Bring a platform up on free ports; take it down again.

    Raises:
        RuntimeError: it did not come up; carries what it said.
    """
    folder = Path(tempfile.mkdtemp(prefix="sl-bench-"))
    folder.chmod(0o711)
    home = Home(folder / "home")
    log = (folder / "up.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        _PROGRAM, "up", "--port", "0", env=_environment(home), stdout=log, stderr=log
    )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while (await _strandline(home, "status"))[0] != 0:
            if process.returncode is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the platform does not come up:\n{(folder / 'up.log').read_text()[-2000:]}")
            await asyncio.sleep(0.2)
        state = home.load_state()
        assert state is not None
        pids = {name: pid for name, pid in state.pids.items() if pid is not None}
        yield Platform(home, f"http://127.0.0.1:{state.ports.edge}", state.path, pids, state.ports)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


_PROGRAM = str(Path(sys.executable).with_name("strandline"))


def _environment(home: Home) -> dict[str, str]:
    return {**os.environ, "STRANDLINE_HOME": str(home.root)}


async def _strandline(home: Home, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(_PROGRAM, *arguments),
        env=_environment(home),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode(errors="replace").strip()
