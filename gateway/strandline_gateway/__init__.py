"""Envoy configurations of the edge and of every sidecar, from the descriptor set and a topology.

Whatever a route, an allow-list or a strictness table needs to know about an RPC is read from its proto, so that REST,
gRPC, the mesh and the services' own checks cannot disagree.
"""

from __future__ import annotations

import json

from strandline_gateway.edge import edge
from strandline_gateway.sidecar import sidecar
from strandline_gateway.topology import Edge, RateLimit, Service, Tls, Topology

__all__ = ["Edge", "RateLimit", "Service", "Tls", "Topology", "generate"]


def generate(topology: Topology) -> dict[str, str]:
    """The configuration files of one installation by name: ``edge.yaml`` and ``<service>-sidecar.yaml``.

    They are JSON, which is YAML too, and hold everything but the certificates.
    """
    files = {"edge.yaml": edge(topology)}
    files.update({f"{service.name}-sidecar.yaml": sidecar(topology, service) for service in topology.services})
    return {name: json.dumps(config, indent=1) + "\n" for name, config in files.items()}
