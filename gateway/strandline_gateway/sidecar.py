"""The Envoy beside each service: its only door, inwards and outwards."""

from __future__ import annotations

from collections import defaultdict

from strandline_gateway.access import access_matrix, hosted_by
from strandline_gateway.building_blocks import (
    Json,
    access_log,
    bootstrap,
    by_namespace,
    cluster,
    connection_manager,
    extension,
    listener,
    mesh_client,
    mesh_server,
    only_unsent,
    pipe_address,
    router,
    tcp_address,
)
from strandline_gateway.problems import local_reply_config
from strandline_gateway.topology import Service, Topology

# Calls end by their own deadline (grpc-timeout), feeds by either side: never by a fixed time of the proxy.
NO_TIMEOUT: Json = {"timeout": "0s", "idle_timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "0s"}}


def sidecar(topology: Topology, service: Service) -> Json:
    """The configuration of the sidecar of *service*."""
    listeners = [inbound(topology, service)]
    clusters = [cluster("app", pipe_address(service.app_socket), "h2")]
    if service.http_socket is not None:
        clusters.append(cluster("app-http", pipe_address(service.http_socket), "http/1.1"))
    for target, socket in service.outbound.items():
        listeners.append(outbound(target, socket))
        tls = mesh_client(topology, service.certificates, target, "h2")
        clusters.append(cluster(target, tcp_address(topology.service(target).address), "h2", tls))
    return bootstrap(f"{service.name}-sidecar", service.admin_socket, listeners, clusters)


def inbound(topology: Topology, service: Service) -> Json:
    """mTLS from the mesh to the service; a caller gets exactly the RPCs that declare it."""
    routes: list[Json] = [
        {"match": {"prefix": f"/{name}/", "grpc": {}}, "route": {"cluster": "app", **NO_TIMEOUT}}
        for name in sorted({rpc.service for rpc in hosted_by(service.name)})
    ]
    if service.http_socket is not None:
        routes += [
            {"match": {"safe_regex": {"regex": rpc.http.regex}}, "route": {"cluster": "app-http", **NO_TIMEOUT}}
            for rpc in hosted_by(service.name)
            if rpc.access.served_over_http and rpc.http is not None
        ]
    manager = connection_manager(
        "inbound",
        [{"name": "app", "domains": ["*"], "routes": routes}],
        [allow_list(topology, service), router()],
        shared=True,
        upgrade_configs=[{"upgrade_type": "websocket"}],
        # The edge has made one; another replaces nothing that a caller inside the mesh could fake.
        preserve_external_request_id=True,
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"uri": True},
        stream_idle_timeout="0s",
        # How long a connection stays after the last byte. Callers are proxies, which read at once; the client of a
        # WebSocket waits for it after every goodbye.
        delayed_close_timeout="0.05s",
        local_reply_config=local_reply_config(),
        access_log=access_log(caller="%DOWNSTREAM_PEER_URI_SAN%"),
    )
    tls = mesh_server(topology, service.certificates)
    return listener("inbound", tcp_address(service.listen or service.address), manager, tls)


def allow_list(topology: Topology, service: Service) -> Json:
    """RBAC with one policy per set of callers; what no policy names is refused."""
    paths: dict[frozenset[str], list[Json]] = defaultdict(list)
    for path, callers in access_matrix(service.name).items():
        paths[callers].append({"url_path": {"path": {"exact": path}}})
    for rpc in hosted_by(service.name):
        if rpc.access.served_over_http and rpc.http is not None:
            path_rule = {"url_path": {"path": {"safe_regex": {"regex": rpc.http.regex}}}}
            method_rule = {"header": {"name": ":method", "string_match": {"exact": rpc.http.method}}}
            paths[rpc.callers].append({"and_rules": {"rules": [path_rule, method_rule]}})
    policies = {
        ",".join(sorted(callers)): {
            "permissions": permissions,
            "principals": [
                {"authenticated": {"principal_name": {"exact": topology.spiffe_id(caller)}}}
                for caller in sorted(callers)
            ],
        }
        for callers, permissions in paths.items()
        if callers
    }
    return extension(
        "envoy.filters.http.rbac", "filters.http.rbac.v3.RBAC", rules={"action": "ALLOW", "policies": policies}
    )


def outbound(target: str, socket: str) -> Json:
    """Plaintext from the service itself, over a socket only it can open, to the sidecar of *target*."""
    route = {"cluster": target, **NO_TIMEOUT, "hash_policy": by_namespace(), "retry_policy": only_unsent()}
    manager = connection_manager(
        f"to-{target}",
        [{"name": target, "domains": ["*"], "routes": [{"match": {"prefix": "/", "grpc": {}}, "route": route}]}],
        [router()],
        shared=True,
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        local_reply_config=local_reply_config(),
        access_log=access_log(),
    )
    return listener(f"to-{target}", pipe_address(socket), manager)
