"""A NATS server for tests."""

from __future__ import annotations

import signal
import socket
import subprocess
import sysconfig
import time
from pathlib import Path

from tests.loopback import HOST, free_ports


class Nats:
    """A NATS server that can be taken away."""

    def __init__(self) -> None:
        (self._port,) = free_ports(1)
        self.url = f"nats://{HOST}:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        program = Path(sysconfig.get_path("scripts"), "nats-server")
        self._process = subprocess.Popen(
            [program, "-a", HOST, "-p", str(self._port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, self._port)) == 0:
                    return
            time.sleep(0.01)
        raise RuntimeError("NATS did not start")

    def pause(self) -> None:
        """Let it take nothing more from its sockets, and not close them either."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
