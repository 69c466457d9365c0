"""The Envoy that the outside talks to: REST, gRPC and feeds on one port."""

from __future__ import annotations

from strandline_gateway.access import hosts
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
    typed,
)
from strandline_gateway.descriptor import Rpc, rpcs
from strandline_gateway.topology import Topology
from strandline_gateway.transcoding import TRANSCODER, transcoded_rpcs, transcoder, unwrap_filter

JWT = "envoy.filters.http.jwt_authn"
JWKS_CLUSTER = "jwks"
# The HTTP port of a service behind its sidecar: HTTP/1.1, so that a WebSocket upgrade passes both proxies.
HTTP_CLUSTER = "{}-http"
REST_TIMEOUT = "30s"


def edge(topology: Topology) -> Json:
    """The configuration of the edge."""
    listeners = [public_listener(topology), jwks_listener(topology)]
    return bootstrap("edge", topology.edge.admin_socket, listeners, clusters(topology))


def public_rpcs() -> list[Rpc]:
    return [rpc for rpc in rpcs() if rpc.is_public]


def clusters(topology: Topology) -> list[Json]:
    found = [cluster(JWKS_CLUSTER, pipe_address(topology.edge.jwks_socket), "http/1.1")]
    for service in topology.services:
        address = tcp_address(service.address)
        tls = mesh_client(topology, topology.edge.certificates, service.name, "h2")
        found.append(cluster(service.name, address, "h2", tls))
        if service.http_socket is not None:
            tls = mesh_client(topology, topology.edge.certificates, service.name, "http/1.1")
            found.append(cluster(HTTP_CLUSTER.format(service.name), address, "http/1.1", tls))
    return found


def public_listener(topology: Topology) -> Json:
    manager = connection_manager(
        "edge",
        [{"name": "edge", "domains": ["*"], "routes": routes()}],
        [
            jwt_filter(topology),
            transcoder(frozenset(rpc.service for rpc in transcoded_rpcs())),
            unwrap_filter(),
            router(),
        ],
        access_log=access_log(),
        upgrade_configs=[{"upgrade_type": "websocket"}],
        use_remote_address=True,
        stream_idle_timeout="0s",
    )
    return listener("edge", tcp_address(topology.edge.listen), manager)


def routes() -> list[Json]:
    found: list[Json] = []
    for rpc in public_rpcs():
        found.append(grpc_route(rpc))
        if rpc.http is not None:
            found.append(rest_route(rpc))
    found.append(
        {
            "match": {"prefix": "/"},
            "direct_response": {"status": 404},
            "typed_per_filter_config": {JWT: typed("filters.http.jwt_authn.v3.PerRouteConfig", disabled=True)},
        }
    )
    return found


def grpc_route(rpc: Rpc) -> Json:
    return {
        "name": rpc.path,
        "match": {"path": rpc.path, "grpc": {}},
        "route": {
            "cluster": hosts(rpc.service)[0],
            "timeout": "0s",
            "idle_timeout": "0s",
            "max_stream_duration": {"grpc_timeout_header_max": "0s"},
        },
        "typed_per_filter_config": {JWT: jwt_of(rpc)},
    }


def rest_route(rpc: Rpc) -> Json:
    assert rpc.http is not None
    service = hosts(rpc.service)[0]
    filters = {JWT: jwt_of(rpc)}
    if rpc.access.served_over_http:
        filters[TRANSCODER] = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "disabled": True}
        action: Json = {"cluster": HTTP_CLUSTER.format(service), "timeout": "0s", "idle_timeout": "0s"}
    else:
        action = {"cluster": service, "timeout": REST_TIMEOUT}
    return {
        "name": rpc.name,
        "match": {
            "safe_regex": {"regex": rpc.http.regex},
            "headers": [{"name": ":method", "string_match": {"exact": rpc.http.method}}],
        },
        "route": action,
        "typed_per_filter_config": filters,
    }


def jwt_of(rpc: Rpc) -> Json:
    kind = "filters.http.jwt_authn.v3.PerRouteConfig"
    return typed(kind, requirement_name="token") if rpc.needs_token else typed(kind, disabled=True)


def jwt_filter(topology: Topology) -> Json:
    provider = {
        "issuer": topology.issuer,
        "audiences": ["strandline"],
        "require_expiration": True,
        "max_lifetime": "900s",
        "clock_skew_seconds": 5,
        "forward": True,
        "remote_jwks": {
            "http_uri": {
                "uri": "http://edge/.well-known/jwks.json",
                "cluster": JWKS_CLUSTER,
                "timeout": "2s",
            },
            "cache_duration": "300s",
            "async_fetch": {"fast_listener": True, "failed_refetch_duration": "0.25s"},
        },
    }
    return extension(
        JWT,
        "filters.http.jwt_authn.v3.JwtAuthentication",
        providers={"strandline": provider},
        requirement_map={"token": {"provider_name": "strandline"}},
        rules=[{"match": {"prefix": "/"}, "requires": {"provider_name": "strandline"}}],
    )


def jwks_listener(topology: Topology) -> Json:
    route = {
        "match": {"path": "/.well-known/jwks.json"},
        "route": {"cluster": "user", "timeout": "2s"},
    }
    manager = connection_manager(
        "jwks",
        [{"name": "jwks", "domains": ["*"], "routes": [route]}],
        [transcoder(frozenset(["strandline.user.v1.AuthService"])), router()],
    )
    return listener("jwks", pipe_address(topology.edge.jwks_socket), manager)
