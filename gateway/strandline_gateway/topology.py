"""What the generator is told about one installation: addresses, sockets, certificates, limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class RateLimit:
    """A token bucket: *requests* per *seconds*, refilled continuously."""

    requests: int = 100
    seconds: int = 900


@dataclass(frozen=True, kw_only=True)
class Tls:
    """The certificate that the edge shows to the outside: paths of PEM files."""

    certificate: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Service:
    """One service and its sidecar.

    Attributes:
        name: the workload: ``user``, ``entity`` or ``stream``; the ``sa`` of its SPIFFE id.
        address: ``host:port`` at which other sidecars reach the inbound listener.
        listen: ``host:port`` that the inbound listener binds; empty: the same as *address*.
        app_socket: unix socket of the service's gRPC port.
        http_socket: unix socket of the service's HTTP port, if it has one.
        outbound: unix socket that the sidecar opens for each service that this one calls.
        admin_socket: unix socket of the sidecar's admin endpoint.
        certificates: folder with ``cert.pem``, ``key.pem`` and ``ca.pem``.
    """

    name: str
    address: str
    app_socket: str
    admin_socket: str
    certificates: str
    http_socket: str | None = None
    outbound: Mapping[str, str] = field(default_factory=dict)
    listen: str = ""


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The door to the outside.

    Attributes:
        listen: ``host:port``; HTTP/1.1 and HTTP/2 share it.
        tls: the public certificate; None: plaintext.
        jwks_socket: unix socket over which the edge asks the user service, through itself, for signing keys.
        auth_rate_limit: per source address on ``/v1/auth:*``; None: off.
        auth_body_limit, body_limit: bytes of a request body on ``/v1/auth:*`` and elsewhere.
    """

    listen: str
    admin_socket: str
    jwks_socket: str
    certificates: str
    tls: Tls | None = None
    auth_rate_limit: RateLimit | None = field(default_factory=RateLimit)
    auth_body_limit: int = 64 * 1024
    body_limit: int = 4 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Topology:
    """One installation."""

    edge: Edge
    services: tuple[Service, ...]
    trust_domain: str = "strandline.local"
    issuer: str = "https://strandline.local"

    def service(self, name: str) -> Service:
        """The service called *name*; ``KeyError`` when the topology has none."""
        return {service.name: service for service in self.services}[name]

    def spiffe_id(self, workload: str) -> str:
        """The identity of *workload* in the mesh."""
        return spiffe_id(self.trust_domain, workload)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the form that ``dataclasses.asdict`` writes; an unknown or missing key is a ``TypeError``."""
        raw: dict[str, Any] = json.loads(text)
        edge: dict[str, Any] = raw.pop("edge")
        services = tuple(Service(**service) for service in raw.pop("services"))
        for key, kind in (("tls", Tls), ("auth_rate_limit", RateLimit)):
            if edge.get(key) is not None:
                edge[key] = kind(**edge[key])
        return cls(edge=Edge(**edge), services=services, **raw)


def spiffe_id(trust_domain: str, workload: str) -> str:
    """The SPIFFE id of a workload."""
    return f"spiffe://{trust_domain}/ns/default/sa/{workload}"


def certificate_files(folder: str) -> tuple[str, str, str]:
    """Paths of the certificate, its key and the authority in a workload's folder."""
    return f"{folder}/cert.pem", f"{folder}/key.pem", f"{folder}/ca.pem"
