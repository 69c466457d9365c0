"""The Envoy that the outside talks to: REST, gRPC and feeds on one port."""

from __future__ import annotations

from strandline_gateway.arrival import arrival_filter
from strandline_gateway.building_blocks import (
    Json,
    access_log,
    bootstrap,
    cluster,
    connection_manager,
    extension,
    listener,
    mesh_client,
    pipe_address,
    router,
    tcp_address,
)
from strandline_gateway.edge_filters import (
    AUTH_BODY_LIMIT,
    BODY_LIMIT,
    JWKS_CLUSTER,
    MAX_READ,
    READ_LIMIT,
    body_limit,
    jwt_filter,
    rate_limit_filter,
    response_headers,
    strip_internal_headers,
)
from strandline_gateway.edge_routes import HTTP_CLUSTER, routes
from strandline_gateway.problems import local_reply_config, problem_filter
from strandline_gateway.strictness import strict_filter
from strandline_gateway.topology import Topology
from strandline_gateway.transcoding import transcoded_rpcs, transcoder, unwrap_filter

KEYS_SERVICE = "strandline.user.v1.AuthService"


def edge(topology: Topology) -> Json:
    """The configuration of the edge."""
    listeners = [public_listener(topology), keys_listener(topology)]
    return bootstrap("edge", topology.edge.admin_socket, listeners, clusters(topology))


def public_listener(topology: Topology) -> Json:
    door = topology.edge
    filters = [
        problem_filter(),
        response_headers(tls=door.tls is not None),
        *([rate_limit_filter(door.auth_rate_limit)] if door.auth_rate_limit else []),
        body_limit(READ_LIMIT, max(MAX_READ, door.body_limit)),
        arrival_filter(door),
        jwt_filter(topology),
        body_limit(BODY_LIMIT, door.body_limit),
        body_limit(AUTH_BODY_LIMIT, door.auth_body_limit, disabled=True),
        strict_filter(),
        transcoder(frozenset(rpc.service for rpc in transcoded_rpcs())),
        unwrap_filter(),
        router(),
    ]
    manager = connection_manager(
        "edge",
        [{"name": "edge", "domains": ["*"], "routes": routes(topology)}],
        filters,
        shared=False,
        access_log=access_log(address="%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
        local_reply_config=local_reply_config(transcodes=True),
        early_header_mutation_extensions=[strip_internal_headers()],
        upgrade_configs=[{"upgrade_type": "websocket"}],
        use_remote_address=True,
        # Nobody is trusted for being near: a request id, for one, is always made here.
        internal_address_config={},
        max_request_headers_kb=16,
        common_http_protocol_options={"max_headers_count": 60, "headers_with_underscores_action": "REJECT_REQUEST"},
        request_headers_timeout="5s",
        request_timeout="15s",
        stream_idle_timeout="300s",
        # Who is answered early, while still sending, has this long to read the answer; the client of a WebSocket waits
        # for it after every goodbye.
        delayed_close_timeout="0.5s",
    )
    return listener("edge", tcp_address(door.listen), manager, public_tls(topology))


def public_tls(topology: Topology) -> Json | None:
    """TLS towards the outside, if the topology has a certificate."""
    if topology.edge.tls is None:
        return None
    certificate = {
        "certificate_chain": {"filename": topology.edge.tls.certificate},
        "private_key": {"filename": topology.edge.tls.key},
    }
    return extension(
        "envoy.transport_sockets.tls",
        "transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context={
            "tls_certificates": [certificate],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
            "alpn_protocols": ["h2", "http/1.1"],
        },
    )


def keys_listener(topology: Topology) -> Json:
    """Where the token filter asks for keys over HTTP: a transcoder in front of the user service, over mTLS."""
    keys = {"match": {"path": "/.well-known/jwks.json"}, "route": {"cluster": "user", "timeout": "2s"}}
    manager = connection_manager(
        "keys",
        [{"name": "keys", "domains": ["*"], "routes": [keys]}],
        [transcoder(frozenset([KEYS_SERVICE])), router()],
        shared=True,
    )
    return listener("keys", pipe_address(topology.edge.jwks_socket), manager)


def clusters(topology: Topology) -> list[Json]:
    """Each sidecar by gRPC, by HTTP where it has an HTTP port, and the edge itself for keys."""
    found = [cluster(JWKS_CLUSTER, pipe_address(topology.edge.jwks_socket), "http/1.1")]
    for service in topology.services:
        protocols = {service.name: "h2"}
        if service.http_socket is not None:
            protocols[HTTP_CLUSTER.format(service.name)] = "http/1.1"
        for name, protocol in protocols.items():
            tls = mesh_client(topology, topology.edge.certificates, service.name, protocol)
            found.append(cluster(name, tcp_address(service.address), protocol, tls))
    return found
