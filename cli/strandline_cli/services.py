"""The three services: how each is started and what it is told. They wait for what they need by themselves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from strandline_cli.credentials import ADMIN_EMAIL, SERVICES
from strandline_cli.parts import Layout, ProcessPart
from strandline_cli.probes import grpc_serves
from strandline_cli.process import environment

# Whom each service calls, always through its own sidecar.
UPSTREAMS: Mapping[str, tuple[str, ...]] = {"user": ("entity",), "entity": ("user",), "stream": ("user", "entity")}
_DRAIN_SECONDS = 2


def parts(layout: Layout) -> tuple[ProcessPart, ...]:
    """One process per service."""
    return tuple(_part(service, layout) for service in SERVICES)


def app_socket(layout: Layout, service: str) -> Path:
    """Where the service's gRPC port is, for its sidecar only."""
    return layout.run / f"{service}.sock"


def http_socket(layout: Layout) -> Path:
    """Where the stream service's HTTP port is: the feeds."""
    return layout.run / "stream-http.sock"


def outbound_socket(layout: Layout, service: str, target: str) -> Path:
    """Where the service's sidecar takes its calls to another service."""
    return layout.run / f"{service}-to-{target}.sock"


def _part(service: str, layout: Layout) -> ProcessPart:
    socket = app_socket(layout, service)
    return ProcessPart(
        name=service,
        address=f"unix:{socket}",
        ready=lambda: grpc_serves(socket),
        command=(sys.executable, "-m", f"services.{service}.server"),
        environment=environment(_common(service, layout) | _own(service, layout)),
        stop_within=_DRAIN_SECONDS + 3.0,
    )


def _common(service: str, layout: Layout) -> dict[str, str]:
    home = layout.home
    database = f"@/{service}?host={layout.run / 'postgres'}"
    upstreams = {
        f"STRANDLINE_{target.upper()}_ADDRESS": f"unix:{outbound_socket(layout, service, target)}"
        for target in UPSTREAMS[service]
    }
    return upstreams | {
        "STRANDLINE_LISTEN": f"unix:{app_socket(layout, service)}",
        "STRANDLINE_METRICS_LISTEN": f"unix:{layout.run / f'{service}-metrics.sock'}",
        "STRANDLINE_DATABASE_URL": f"postgresql://{service}_app{database}",
        "STRANDLINE_DATABASE_PASSWORD_FILE": str(home.secrets / "postgres" / f"{service}_app"),
        "STRANDLINE_MIGRATE_URL": f"postgresql://{service}_migrate{database}",
        "STRANDLINE_MIGRATE_PASSWORD_FILE": str(home.secrets / "postgres" / f"{service}_migrate"),
        "STRANDLINE_NATS_URL": f"tls://127.0.0.1:{layout.ports.nats}",
        "STRANDLINE_NATS_CREDENTIALS_FILE": str(home.secrets / "nats" / service),
        "STRANDLINE_TLS_DIR": str(home.certificates / service),
        "STRANDLINE_SECRETS_DIR": str(home.secrets / service),
        "STRANDLINE_DRAIN_SECONDS": str(_DRAIN_SECONDS),
    }


def _own(service: str, layout: Layout) -> dict[str, str]:
    if service == "user":
        return {
            "STRANDLINE_SMTP_URL": f"smtp://127.0.0.1:{layout.ports.mail}",
            "STRANDLINE_BOOTSTRAP_ADMIN_EMAIL": ADMIN_EMAIL,
            "STRANDLINE_BOOTSTRAP_ADMIN_PASSWORD_FILE": str(layout.home.secrets / "admin" / "password"),
        }
    if service == "stream":
        return {
            "STRANDLINE_HTTP_LISTEN": f"unix:{http_socket(layout)}",
            "STRANDLINE_TOPOLOGY": "local",
            "STRANDLINE_WEBHOOK_RECEIVERS": layout.webhook_receivers,
        }
    return {}
