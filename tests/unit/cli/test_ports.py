"""Ports: the well-known one, or the next."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from strandline_cli import ports
from strandline_cli.parts import PlatformFailure


def test_a_taken_port_is_replaced_by_the_next_free_one_and_that_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        chosen, remarks = ports.choose(port)
    assert chosen.edge > port
    assert f"port {port} is taken: edge listens on {chosen.edge}" in remarks


def test_port_0_is_any_free_one_and_nothing_is_said_about_it() -> None:
    chosen, remarks = ports.choose(0)
    assert chosen.edge > 0
    assert not [remark for remark in remarks if "edge" in remark]


def test_no_two_parts_are_given_one_port() -> None:
    chosen, _ = ports.choose(ports.DEFAULTS.nats)
    assert len(set(vars(chosen).values())) == len(vars(chosen))


def test_there_is_no_port_above_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda port: False)
    with pytest.raises(PlatformFailure, match="no free port from 65500 to 65535"):
        ports.choose(65500)


def test_a_platform_that_starts_at_the_same_time_is_given_other_ports() -> None:
    script = "from strandline_cli import ports\nwith ports.reserved(0) as (chosen, _): print(*vars(chosen).values())"
    with ports.reserved(0) as (chosen, _):  # nobody listens on them yet
        other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(map(int, other.stdout.split())).isdisjoint(vars(chosen).values())
