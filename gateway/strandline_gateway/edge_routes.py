"""The edge's routes: for each public RPC its gRPC path and its REST form, and nothing else."""

from __future__ import annotations

from typing import Any

from strandline_gateway.access import hosts
from strandline_gateway.arrival import signs_in
from strandline_gateway.building_blocks import Json, by_namespace, only_unsent, typed
from strandline_gateway.descriptor import HttpRule, Rpc, rpcs
from strandline_gateway.edge_filters import (
    AUTH_BODY_LIMIT,
    BODY_LIMIT,
    HEADER_MUTATION,
    JWT,
    RATE_LIMIT,
    READ_LIMIT,
    WATCH_COOKIE,
    without_grpc_headers,
)
from strandline_gateway.topology import Topology
from strandline_gateway.transcoding import TRANSCODER

# The HTTP port of a service behind its sidecar: HTTP/1.1, so that a WebSocket upgrade passes both proxies.
HTTP_CLUSTER = "{}-http"
REST_TIMEOUT = "30s"
JWT_PER_ROUTE = "filters.http.jwt_authn.v3.PerRouteConfig"
# Feeds, and calls with a deadline of their own, last as long as anything moves. Where nothing does, the idle timeout of
# the listener ends them: a feed says at least every 5 s that it lives, and one whose reader takes nothing keeps what
# both proxies hold for it.
NO_TIMEOUT: Json = {"timeout": "0s"}


def routes(topology: Topology) -> list[Json]:
    """All routes; what none of them matches is 404 without looking at any token."""
    found: list[Json] = []
    for rpc in rpcs():
        if rpc.is_public:
            found.append(grpc_route(topology, rpc))
            if rpc.http is not None:
                rest = rest_route(topology, rpc, rpc.http)
                if rpc.access.watch_cookie:
                    found.append(with_cookie(rest))
                found.append(rest)
    return [*found, *wrong_methods(), refusal("nothing", {"prefix": "/"}, 404)]


def wrong_methods() -> list[Json]:
    """For each path of REST: 405 with the methods it has, for all others."""
    methods: dict[str, set[str]] = {}
    for rpc in rpcs():
        if rpc.is_public and rpc.http is not None:
            methods.setdefault(rpc.http.regex, set()).add(rpc.http.method)
    found = []
    for regex, allowed in methods.items():
        allow = {"header": {"key": "allow", "value": ", ".join(sorted(allowed))}}
        found.append(refusal("wrong-method", {"safe_regex": {"regex": regex}}, 405, response_headers_to_add=[allow]))
    return found


def refusal(name: str, match: Json, status: int, **fields: Any) -> Json:
    """A route that leads nowhere, whoever asks."""
    return {
        "name": name,
        "match": match,
        "direct_response": {"status": status},
        "typed_per_filter_config": {JWT: jwt_requirement(None), TRANSCODER: filter_config(disabled=True)},
        **fields,
    }


def grpc_route(topology: Topology, rpc: Rpc) -> Json:
    action = {
        "cluster": hosts(rpc.service)[0],
        **NO_TIMEOUT,
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},
    }
    filters = {TRANSCODER: filter_config(disabled=True)}
    if signs_in(rpc):
        filters[AUTH_BODY_LIMIT] = filter_config(config={})
    return route(topology, rpc, rpc.path, {"path": rpc.path, "grpc": {}}, action, filters)


def rest_route(topology: Topology, rpc: Rpc, rule: HttpRule) -> Json:
    match = {
        "safe_regex": {"regex": rule.regex},
        "headers": [{"name": ":method", "string_match": {"exact": rule.method}}],
    }
    service = hosts(rpc.service)[0]
    if rpc.access.served_over_http:
        action: Json = {"cluster": HTTP_CLUSTER.format(service), **NO_TIMEOUT}
        return route(topology, rpc, rpc.name, match, action, {TRANSCODER: filter_config(disabled=True)})
    # The scripts keep the limit: they answer when the client has sent all, while the filter cuts it off.
    filters = {HEADER_MUTATION: without_grpc_headers(), BODY_LIMIT: filter_config(disabled=True)}
    found = route(topology, rpc, rpc.name, match, {"cluster": service, "timeout": REST_TIMEOUT}, filters)
    # Services send a position twice, as a header too, only to those who cannot see their messages.
    # And the host is what pages are compared with.
    for key, value in (("x-strandline-rest", "1"), ("x-strandline-host", "%REQ(:AUTHORITY)%")):
        header = {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        found.setdefault("request_headers_to_add", []).append(header)
    return found


def with_cookie(rest: Json) -> Json:
    """*rest* for a browser that sends the cookie instead of a token."""
    cookie = {"name": "cookie", "string_match": {"contains": WATCH_COOKIE}}
    match = rest["match"] | {"headers": [*rest["match"]["headers"], cookie]}
    requirement = typed(JWT_PER_ROUTE, requirement_name="token_or_cookie")
    filters = rest["typed_per_filter_config"] | {JWT: requirement}
    return rest | {"name": f"{rest['name']} by cookie", "match": match, "typed_per_filter_config": filters}


def route(topology: Topology, rpc: Rpc, name: str, match: Json, action: Json, filters: Json) -> Json:
    """What the gRPC and the REST route of an RPC have in common: who may come in, and how much they may send."""
    found: Json = {
        "name": name,
        "match": match,
        "route": {**action, "hash_policy": by_namespace(), "retry_policy": only_unsent()},
        # The scripts see whole bodies, and the transcoder whole answers; a limit of its own ends a body that is larger.
        "request_body_buffer_limit": topology.edge.body_limit,
        "typed_per_filter_config": {JWT: jwt_requirement(rpc), **filters},
    }
    if rpc.takes_stream:
        # A connection's requests are as many as it likes: each is limited by its service, and their sum by nobody.
        found["typed_per_filter_config"] |= {name: filter_config(disabled=True) for name in (READ_LIMIT, BODY_LIMIT)}
    if signs_in(rpc) and topology.edge.auth_rate_limit is not None:
        found["typed_per_filter_config"][RATE_LIMIT] = filter_config(config={})
    if rpc.is_write:
        # Retries on the way must be the same write. A client that wants to retry by itself sends its own.
        key = {"key": "idempotency-key", "value": "%STREAM_ID%"}
        found["request_headers_to_add"] = [{"header": key, "append_action": "ADD_IF_ABSENT"}]
    return found


def jwt_requirement(rpc: Rpc | None) -> Json:
    """The token that a route asks for: none when it leads nowhere or is open to anyone."""
    if rpc and rpc.needs_token:
        return typed(JWT_PER_ROUTE, requirement_name="token")
    return typed(JWT_PER_ROUTE, disabled=True)


def filter_config(**fields: Any) -> Json:
    """Switches a filter off (``disabled=True``) or, with an empty ``config``, on for one route."""
    return {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", **fields}
