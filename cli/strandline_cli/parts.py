"""What the supervisor needs to know of a part, whatever the part is."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from strandline_cli.home import Home, Ports


class PlatformFailure(Exception):
    """The platform cannot go on: why, and the part whose log tells more (empty: none's)."""

    def __init__(self, text: str, part: str = "") -> None:
        super().__init__(text)
        self.part = part


@dataclass(frozen=True)
class Layout:
    """Where one run of the platform has its files, sockets and ports."""

    home: Home
    run: Path
    """Folder of the unix sockets."""
    ports: Ports
    webhook_receivers: str = ""
    """Addresses on loopback that webhooks may reach, ``host:port=<file of its authority>[,...]``; empty: none."""

    @property
    def rest(self) -> str:
        return f"http://{self.grpc}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports.edge}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something that runs and can be asked whether it serves."""

    name: str
    address: str
    """Where the part is reached: ``unix:/path``, a URL or ``127.0.0.1:port``."""
    ready: Callable[[], Awaitable[bool]]
    """Asks the part a real question."""


@dataclass(frozen=True, kw_only=True)
class ProcessPart(Part):
    """A part that is a process of its own. Times are in seconds."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """The whole environment of the process."""
    run_as: int | None = None
    """User id; None: that of the supervisor."""
    ready_within: float = 30.0
    stop_signal: signal.Signals = signal.SIGTERM
    """Asks for an orderly end."""
    stop_within: float = 5.0
    """How long the orderly end may take before the part is killed."""
    kill_signal: signal.Signals = signal.SIGKILL
    """Ends the part now, and all that it started."""
    orphan_signal: signal.Signals = signal.SIGKILL
    """What the kernel sends when the supervisor dies. There is nobody left to drain to, and a signal that cannot be
    ignored is the only one that surely leaves nothing behind."""
