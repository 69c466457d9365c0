"""Choosing the ports: the well-known one when it is free, the next free one when it is not."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from strandline_cli.credentials import SERVICES
from strandline_cli.home import Ports
from strandline_cli.parts import PlatformFailure

DEFAULTS = Ports(edge=8080, nats=4222, mail=1025, user=15001, entity=15002, stream=15003)
_SEARCH = 200
_LAST = 65535


@contextmanager
def reserved(edge: int) -> Iterator[tuple[Ports, list[str]]]:
    """``choose``, and let no other platform of this user have the same until the block ends.

    The parts listen only seconds later: two platforms that start together would both find their ports free.
    """
    path = Path(tempfile.gettempdir(), f"strandline-ports-{os.getuid()}")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:  # somebody else has made a file of that name: then it is left to chance
        yield choose(edge)
        return
    try:
        yield choose(edge, lambda port: _claim(descriptor, port))
    finally:
        os.close(descriptor)


def _claim(descriptor: int, port: int) -> bool:
    """Whether the byte that stands for *port* is this process's now; it is let go with the process at the latest."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


def choose(edge: int = DEFAULTS.edge, claim: Callable[[int], bool] = lambda port: True) -> tuple[Ports, list[str]]:
    """Pick a free port for every listener.

    Args:
        edge: the port wanted for the edge; 0: any.
        claim: asked last; a port that it refuses is taken.

    Returns:
        The ports, and a sentence for each wish that was not met.

    Raises:
        PlatformFailure: nothing is free near the wanted port.
    """
    wanted = {field.name: getattr(DEFAULTS, field.name) for field in fields(Ports)} | {"edge": edge}
    chosen: dict[str, int] = {}
    remarks = []
    for name, port in wanted.items():
        chosen[name] = next(
            free for free in _candidates(port) if free not in chosen.values() and is_free(free) and claim(free)
        )
        if port and chosen[name] != port:
            listener = f"{name}-sidecar" if name in SERVICES else name
            remarks.append(f"port {port} is taken: {listener} listens on {chosen[name]}")
    return Ports(**chosen), remarks


def is_free(port: int) -> bool:
    """Whether nobody listens on the port on 127.0.0.1 (a connection in TIME_WAIT does not count)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            # Two sockets may be bound with SO_REUSEADDR while none listens: only listening tells.
            probe.listen()
        except OSError:
            return False
        return True


def _candidates(wanted: int) -> Iterator[int]:
    if wanted:
        last = min(wanted + _SEARCH - 1, _LAST)
        yield from range(wanted, last + 1)
        raise PlatformFailure(f"no free port from {wanted} to {last}")
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        yield port
