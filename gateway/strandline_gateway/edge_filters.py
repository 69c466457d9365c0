"""The edge's filters for what comes in and goes out: headers, tokens, limits."""

from __future__ import annotations

from strandline_gateway.building_blocks import Json, extension, typed
from strandline_gateway.topology import RateLimit, Topology

JWT = "envoy.filters.http.jwt_authn"
JWKS_CLUSTER = "jwks"
RATE_LIMIT = "strandline.auth_rate_limit"
BODY_LIMIT = "strandline.body_limit"
AUTH_BODY_LIMIT = "strandline.auth_body_limit"
READ_LIMIT = "strandline.read_limit"
# Beyond this a body is not even read to its end before it is refused.
MAX_READ = 16 * 1024 * 1024
# In the name of the cookie, with or without a prefix, that the stream service gives for a ticket.
WATCH_COOKIE = "strandline-watch="
HEADER_MUTATION = "envoy.filters.http.header_mutation"
# Addresses that the limiter remembers. When a bucket is pushed out, its address starts anew: make that expensive.
MAX_ADDRESSES = 100_000

# Headers by which parts of Strandline, or proxies like ours, speak to each other.
INTERNAL_PREFIXES = ("x-strandline-", "x-user-", "x-tenant-", "x-envoy-")
INTERNAL_HEADERS = ("x-forwarded-client-cert", "x-request-id", "strandline-http-status")

SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "origin-agent-cluster": "?1",
    "x-dns-prefetch-control": "off",
    "x-permitted-cross-domain-policies": "none",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
HSTS = {"strict-transport-security": "max-age=63072000; includeSubDomains"}


def strip_internal_headers() -> Json:
    """An early mutation: internal headers from outside are gone before any filter or route sees them."""
    mutations: list[Json] = [{"remove": name} for name in INTERNAL_HEADERS]
    mutations += [{"remove_on_match": {"key_matcher": {"prefix": prefix}}} for prefix in INTERNAL_PREFIXES]
    return extension(
        "envoy.http.early_header_mutation.header_mutation",
        "http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=mutations,
    )


def response_headers(*, tls: bool) -> Json:
    """A filter for every answer: security headers on, signs of what is inside off."""
    headers = SECURITY_HEADERS | (HSTS if tls else {}) | {"x-request-id": "%REQ(X-REQUEST-ID)%"}
    headers |= {f"ratelimit-{name}": f"%RESP(X-RATELIMIT-{name.upper()})%" for name in ("limit", "remaining", "reset")}
    mutations: list[Json] = [{"remove": "server"}, {"remove_on_match": {"key_matcher": {"prefix": "x-envoy-"}}}]
    # A service may say better what may be kept, and by whom.
    actions = dict.fromkeys(headers, "OVERWRITE_IF_EXISTS_OR_ADD") | {"cache-control": "ADD_IF_ABSENT"}
    mutations += [
        {"append": {"header": {"key": key, "value": value}, "append_action": actions[key]}}
        for key, value in headers.items()
    ]
    mutations.append({"remove_on_match": {"key_matcher": {"prefix": "x-ratelimit-"}}})
    return extension(
        HEADER_MUTATION,
        "filters.http.header_mutation.v3.HeaderMutation",
        mutations={"response_mutations": mutations},
    )


def without_grpc_headers() -> Json:
    """For REST routes: what a client sends there must not steer, or break, the gRPC call that the edge makes of it."""
    matchers = [{"prefix": "grpc-"}, {"suffix": "-bin"}]
    mutations = [{"remove_on_match": {"key_matcher": matcher}} for matcher in matchers]
    kind = "filters.http.header_mutation.v3.HeaderMutationPerRoute"
    return typed(kind, mutations={"request_mutations": mutations})


def jwt_filter(topology: Topology) -> Json:
    """Tokens of the user service; every service verifies them again, so this keeps noise out and nothing more."""
    provider = {
        "issuer": topology.issuer,
        "audiences": ["strandline"],
        "require_expiration": True,
        "max_lifetime": "900s",
        "clock_skew_seconds": 5,
        "forward": True,
        # Said, because the default also takes a token from the query, where every log would see it.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "remote_jwks": {
            "http_uri": {"uri": "http://edge/.well-known/jwks.json", "cluster": JWKS_CLUSTER, "timeout": "2s"},
            "cache_duration": "300s",
            # The edge starts without keys and asks until the user service is there: any start order works.
            "async_fetch": {"fast_listener": True, "failed_refetch_duration": "0.25s"},
        },
    }
    return extension(
        JWT,
        "filters.http.jwt_authn.v3.JwtAuthentication",
        providers={"strandline": provider},
        # With the cookie the token may be missing, but not wrong: the service knows what the cookie is worth.
        requirement_map={"token": {"provider_name": "strandline"}, "token_or_cookie": {"allow_missing": {}}},
        # A route that says nothing needs a token.
        rules=[{"match": {"prefix": "/"}, "requires": {"provider_name": "strandline"}}],
    )


def rate_limit_filter(limit: RateLimit) -> Json:
    """One bucket for each source address, shared by all routes that switch the filter on."""
    bucket = {
        "max_tokens": limit.requests,
        "tokens_per_fill": limit.requests,
        "fill_interval": f"{limit.seconds}s",
    }
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    limiter = extension(
        RATE_LIMIT,
        "filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="auth",
        filter_enabled=always,
        filter_enforced=always,
        rate_limits=[{"actions": [{"remote_address": {}}]}],
        descriptors=[{"entries": [{"key": "remote_address"}], "token_bucket": bucket}],
        max_dynamic_descriptors=MAX_ADDRESSES,
        enable_retry_after_header=True,
        enable_x_ratelimit_headers="DRAFT_VERSION_03",
        rate_limited_as_resource_exhausted=True,
    )
    return limiter | {"disabled": True}


def body_limit(name: str, size: int, *, disabled: bool = False) -> Json:
    """Refuses a request body of more than *size* bytes, by its announced length or as it comes.

    Routes cannot configure this filter, only switch on one that is *disabled*.
    """
    limit = extension(name, "filters.http.body_size_limit.v3.BodySizeLimit", max_request_bytes=size)
    return limit | {"disabled": disabled}
