"""Choosing the ports: the well-known one when it is free, the next free one when it is not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import fields

from strandline_cli.credentials import SERVICES
from strandline_cli.home import Ports

DEFAULTS = Ports(edge=8080, nats=4222, mail=1025, user=15001, entity=15002, stream=15003)
_SEARCH = 200
_LAST = 65535


def choose(edge: int = DEFAULTS.edge) -> tuple[Ports, list[str]]:
    """Pick a free port for every listener.

    Args:
        edge: the port wanted for the edge; 0: any.

    Returns:
        The ports, and a sentence for each wish that was not met.

    Raises:
        OSError: nothing is free near the wanted port.
    """
    wanted = {field.name: getattr(DEFAULTS, field.name) for field in fields(Ports)} | {"edge": edge}
    chosen: dict[str, int] = {}
    remarks = []
    for name, port in wanted.items():
        chosen[name] = next(free for free in _candidates(port) if free not in chosen.values() and is_free(free))
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
        raise OSError(f"no free port from {wanted} to {last}")
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        yield port
