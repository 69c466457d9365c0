"""Pieces that edge and sidecars share: listeners, clusters, TLS, access logs."""

from __future__ import annotations

import ipaddress
from typing import Any, TypeAlias

from strandline_gateway.topology import Topology, certificate_files

Json: TypeAlias = dict[str, Any]

EXTENSIONS = "type.googleapis.com/envoy.extensions"
# The routing header (AIP-4222): the namespace that a call is about, `namespace={namespace}`.
ROUTING_HEADER = "x-goog-request-params"
# In percent: a replica takes twice its share of what is open before a namespace spreads to the next ones, so that a
# large one is not bound to what one process can do.
MAX_SHARE = 200
# Beyond this many open connections new ones are closed at once: memory stays bounded.
MAX_CONNECTIONS = 20_000
# Between processes all callers' requests share a connection, and what somebody does not read fills its window. So no
# number of such requests may fill that of the connection: as many as there can be, 20,000, take 1.3 of its 2.1 GB.
_SHARED_WINDOWS = {"initial_stream_window_size": 64 * 1024, "initial_connection_window_size": 2**31 - 1}
# A caller's own connection.
_CALLERS_WINDOWS = {"initial_stream_window_size": 256 * 1024, "initial_connection_window_size": 1024 * 1024}


def typed(kind: str, **fields: Any) -> Json:
    """An ``Any`` of the extension message *kind*, named below ``envoy.extensions``."""
    return {"@type": f"{EXTENSIONS}.{kind}", **fields}


def extension(name: str, kind: str, **fields: Any) -> Json:
    """A named extension and its configuration."""
    return {"name": name, "typed_config": typed(kind, **fields)}


def router(**fields: Any) -> Json:
    """The last HTTP filter. Envoy's own headers stay inside."""
    return extension(
        "envoy.filters.http.router", "filters.http.router.v3.Router", suppress_envoy_headers=True, **fields
    )


def tcp_address(host_and_port: str) -> Json:
    host, _, port = host_and_port.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def pipe_address(path: str) -> Json:
    """A unix socket that only the owner may open."""
    return {"pipe": {"path": path, "mode": 0o600}}


def bootstrap(name: str, admin_socket: str, listeners: list[Json], clusters: list[Json]) -> Json:
    """The whole configuration of one Envoy."""
    return {
        "node": {"id": name, "cluster": name},
        "admin": {"address": pipe_address(admin_socket)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "overload_manager": {
            "resource_monitors": [
                extension(
                    "envoy.resource_monitors.global_downstream_max_connections",
                    "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=MAX_CONNECTIONS,
                )
            ]
        },
    }


def listener(name: str, address: Json, manager: Json, transport_socket: Json | None = None) -> Json:
    """A listener with one HTTP connection manager."""
    chain: Json = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    if transport_socket is not None:
        chain["transport_socket"] = transport_socket
    found: Json = {
        "name": name,
        "address": address,
        "filter_chains": [chain],
        "per_connection_buffer_limit_bytes": 64 * 1024,
    }
    if "socket_address" in address:
        # Any other process of the user could take a share of the connections by listening on the same port.
        found["enable_reuse_port"] = False
    return found


def connection_manager(
    name: str, virtual_hosts: list[Json], filters: list[Json], *, shared: bool, **fields: Any
) -> Json:
    """An HTTP connection manager whose routes are fixed; *shared*: many callers' requests come on one connection."""
    return typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        route_config={"name": name, "virtual_hosts": virtual_hosts},
        http_filters=filters,
        server_header_transformation="PASS_THROUGH",
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        http2_protocol_options={
            "max_concurrent_streams": 1000,
            **(_SHARED_WINDOWS if shared else _CALLERS_WINDOWS),
        },
        **fields,
    )


def mesh_server(topology: Topology, certificates: str) -> Json:
    """TLS of an inbound listener: 1.3 only, and only for workloads of the trust domain."""
    certificate, key, authority = certificate_files(certificates)
    return extension(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        require_client_certificate=True,
        common_tls_context={
            **tls_files(certificate, key),
            "validation_context": {
                "trusted_ca": {"filename": authority},
                "match_typed_subject_alt_names": [san({"prefix": topology.spiffe_id("")})],
            },
            "alpn_protocols": ["h2", "http/1.1"],
        },
    )


def mesh_client(topology: Topology, certificates: str, target: str, protocol: str) -> Json:
    """TLS towards the sidecar of *target*, whose identity is checked; *protocol* is ``h2`` or ``http/1.1``."""
    certificate, key, authority = certificate_files(certificates)
    return extension(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context={
            **tls_files(certificate, key),
            "validation_context": {
                "trusted_ca": {"filename": authority},
                "match_typed_subject_alt_names": [san({"exact": topology.spiffe_id(target)})],
            },
            "alpn_protocols": [protocol],
        },
    )


def tls_files(certificate: str, key: str) -> Json:
    return {
        "tls_certificates": [{"certificate_chain": {"filename": certificate}, "private_key": {"filename": key}}],
        # Both bounds: with the lower one alone Envoy's client finds no version in common.
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
    }


def san(matcher: Json) -> Json:
    return {"san_type": "URI", "matcher": matcher}


def cluster(name: str, address: Json, protocol: str, transport_socket: Json | None = None) -> Json:
    """One upstream, reached by *protocol* ``h2`` or ``http/1.1``."""
    host = address.get("socket_address", {}).get("address", "")
    options: Json = {"http2_protocol_options": _SHARED_WINDOWS} if protocol == "h2" else {"http_protocol_options": {}}
    fields: Json = {
        "name": name,
        "type": "STATIC" if not host or is_ip(host) else "STRICT_DNS",
        # A part that was just started is tried at once: the platform starts in any order.
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
                "upstreams.http.v3.HttpProtocolOptions", explicit_http_config=options
            )
        },
        # Feeds hold a request (and over HTTP/1.1 a connection) for hours.
        "circuit_breakers": {
            "thresholds": [
                {"max_connections": MAX_CONNECTIONS, "max_requests": MAX_CONNECTIONS, "max_pending_requests": 4096}
            ]
        },
    }
    if host:  # there may be several of it
        fields["lb_policy"] = "RING_HASH"
        fields["common_lb_config"] = {"consistent_hashing_lb_config": {"hash_balance_factor": MAX_SHARE}}
    if transport_socket is not None:
        fields["transport_socket"] = transport_socket
    return fields


def by_namespace() -> list[Json]:
    """Sends a namespace to the same replicas, so that batches grow and rings are shared; any answers rightly."""
    return [{"header": {"header_name": ROUTING_HEADER}}]


def only_unsent() -> Json:
    """Retry only what cannot have reached the service: anything else might be applied twice."""
    return {"retry_on": "connect-failure,refused-stream", "num_retries": 2}


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def access_log(**fields: str) -> list[Json]:
    """One JSON line per request on standard output. Never the query: filters hold users' data."""
    log_format = {
        "time": "%START_TIME%",
        "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
        "path": "%PATH(NQ:ORIG_OR_PATH)%",
        "route": "%ROUTE_NAME%",
        "status": "%RESPONSE_CODE%",
        "grpc_status": "%GRPC_STATUS%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "milliseconds": "%DURATION%",
        "received": "%BYTES_RECEIVED%",
        "sent": "%BYTES_SENT%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        **fields,
    }
    return [
        extension(
            "envoy.access_loggers.stdout",
            "access_loggers.stream.v3.StdoutAccessLog",
            log_format={"json_format": log_format},
        )
    ]
