"""Ports for servers that must be told which one they get, and are told some time before they take it."""

from __future__ import annotations

import socket

# Not the address of everybody: the platform of tests that run at the same time picks its ports there.
HOST = "127.80.0.1"


def free_ports(count: int) -> list[int]:
    """So many TCP ports of ``HOST`` that nobody listens on."""
    sockets = [socket.create_server((HOST, 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
