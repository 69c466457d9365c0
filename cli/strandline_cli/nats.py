"""NATS core: the bus. TLS with client certificates, one user per service, on 127.0.0.1 only."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path

from strandline_cli.credentials import SERVICES
from strandline_cli.home import write_private
from strandline_cli.parts import Layout, PlatformFailure, ProcessPart
from strandline_cli.probes import tcp_greets
from strandline_cli.process import environment

# A message carries at most 512 kB of committed bytes (larger commits only announce their range).
_MAX_PAYLOAD_BYTES = 1024 * 1024
_SYSTEM = ("strandline.heartbeat.system", "strandline.commits.system")
_ALL_COMMITS = "strandline.commits.*"
# Who owns a log announces it, and nobody else: hubs take announced units as they come.
_PERMISSIONS: dict[str, dict[str, dict[str, list[str]]]] = {
    "user": {"publish": {"allow": [*_SYSTEM]}, "subscribe": {"deny": [">"]}},
    "entity": {
        "publish": {"allow": [_ALL_COMMITS], "deny": [*_SYSTEM]},
        "subscribe": {"allow": [*_SYSTEM]},
    },
    "stream": {"publish": {"deny": [">"]}, "subscribe": {"allow": [*_SYSTEM, _ALL_COMMITS]}},
}


def part(layout: Layout) -> ProcessPart:
    """The server process."""
    port = layout.ports.nats
    return ProcessPart(
        name="nats",
        address=f"tls://127.0.0.1:{port}",
        ready=lambda: tcp_greets(port, b"INFO "),
        command=(str(_server()), "-c", str(_configuration(layout))),
        environment=environment({}),
    )


def write_configuration(layout: Layout) -> None:
    """Write the server's configuration; it holds passwords, so only its owner may read it."""
    certificates = layout.home.certificates / "nats"
    configuration = {
        "listen": f"127.0.0.1:{layout.ports.nats}",
        "max_payload": _MAX_PAYLOAD_BYTES,
        "tls": {
            "cert_file": str(certificates / "cert.pem"),
            "key_file": str(certificates / "key.pem"),
            "ca_file": str(certificates / "ca.pem"),
            "verify": True,
        },
        "authorization": {"users": [_user(layout.home.secrets / "nats" / service) for service in SERVICES]},
    }
    write_private(_configuration(layout), json.dumps(configuration, indent=2).encode())


def _configuration(layout: Layout) -> Path:
    return layout.home.root / "nats" / "nats.json"


def _user(credentials: Path) -> dict[str, object]:
    user, _, password = credentials.read_text().partition(":")
    return {"user": user, "password": password, "permissions": _PERMISSIONS[user]}


def _server() -> Path:
    # The wheel holds nothing but the program, beside the environment's scripts.
    program = Path(sysconfig.get_path("scripts"), "nats-server")
    if not program.exists():
        raise PlatformFailure("NATS is missing: pip install 'strandline[local]'")
    return program
