"""Who may call what, from the access option of the RPCs: what the sidecars enforce."""

from __future__ import annotations

from strandline_gateway.descriptor import Rpc, rpcs

# The one package whose services are hosted elsewhere: every owner of a log serves it.
LOG_SERVICE = "strandline.stream.v1.LogService"
LOG_OWNERS = ("user", "entity")


def hosts(service: str) -> tuple[str, ...]:
    """The workloads that serve a gRPC service: the one its package names, or every owner of a log."""
    return LOG_OWNERS if service == LOG_SERVICE else (service.split(".")[1],)


def hosted_by(workload: str) -> tuple[Rpc, ...]:
    """The RPCs that *workload* serves."""
    return tuple(rpc for rpc in rpcs() if workload in hosts(rpc.service))


def access_matrix(workload: str) -> dict[str, frozenset[str]]:
    """For each gRPC path that *workload* serves, its allowed callers. What is not in it is refused."""
    return {rpc.path: rpc.callers for rpc in hosted_by(workload)}
