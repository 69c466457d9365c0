"""Errors as problems: the ones Envoy makes itself, and the ones services send as gRPC status.

REST clients get ``application/problem+json``; gRPC clients get a status with the same reason in an ``ErrorInfo``.
Nothing that Envoy says about itself (hosts, flags, reasons of the JWT library) leaves.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from strandline_gateway.building_blocks import Json, typed
from strandline_gateway.transcoding import lua_filter, script, transcoded_rpcs

PROBLEM = "strandline.problem"
CONTENT_TYPE = "application/problem+json"
GRPC = "request.headers['content-type'].startsWith('application/grpc')"
# The transcoder makes a gRPC request of a REST request, and leaves the original path as a trace.
NOT_TRANSCODED = "!('x-envoy-original-path' in request.headers)"


@dataclass(frozen=True)
class Problem:
    """One kind of error: its reason, its status in both worlds and what people read."""

    reason: str
    http: int
    grpc: int
    detail: str

    @property
    def retry_after(self) -> int | None:
        """Seconds for the header of that name, on what passes by itself."""
        return 1 if self.http in (429, 503) else None


JWT_REFUSED = "response.code_details.startsWith('jwt_authn_access_denied')"
TOO_LARGE = Problem("BODY_TOO_LARGE", 413, code_pb2.RESOURCE_EXHAUSTED, "the body is too large")
MISFIT = "a value in the body or query does not fit its field, or is not what the path says"
UNREACHABLE = "the service cannot be reached at the moment"

# Envoy's own replies: condition (CEL) and problem; the first that holds counts.
LOCAL_REPLIES: tuple[tuple[str, Problem], ...] = (
    (
        "response.code_details == 'jwt_authn_access_denied{Jwks_remote_fetch_is_failed}'",
        Problem("UNAVAILABLE", 503, code_pb2.UNAVAILABLE, "the signing keys are not loaded yet"),
    ),
    (
        "response.code_details == 'jwt_authn_access_denied{Jwt_is_missing}'",
        Problem("TOKEN_MISSING", 401, code_pb2.UNAUTHENTICATED, "an access token is required"),
    ),
    (JWT_REFUSED, Problem("TOKEN_INVALID", 401, code_pb2.UNAUTHENTICATED, "the access token is not valid")),
    ("response.code == 429", Problem("RATE_LIMITED", 429, code_pb2.RESOURCE_EXHAUSTED, "too many requests")),
    ("response.code == 413", TOO_LARGE),
    (
        "response.code == 405",
        Problem("METHOD_NOT_ALLOWED", 405, code_pb2.UNIMPLEMENTED, "this path does not have this method"),
    ),
    ("response.code == 404", Problem("NOT_FOUND", 404, code_pb2.UNIMPLEMENTED, "there is nothing at this path")),
    (
        "response.code == 408",
        Problem("REQUEST_TIMEOUT", 408, code_pb2.CANCELLED, "the request took too long to arrive"),
    ),
    ("response.code == 431", Problem("HEADERS_TOO_LARGE", 431, code_pb2.INVALID_ARGUMENT, "the headers are too large")),
    (
        "response.code_details == 'low_version'",
        Problem("HTTP_VERSION_UNSUPPORTED", 505, code_pb2.UNIMPLEMENTED, "HTTP/1.1 or HTTP/2 is needed"),
    ),
    (
        "response.code == 504",
        Problem("DEADLINE_EXCEEDED", 504, code_pb2.DEADLINE_EXCEEDED, "the service did not answer in time"),
    ),
    (
        "response.code == 503 && response.code_details.matches('over(flow|load)')",
        Problem("OVERLOADED", 503, code_pb2.UNAVAILABLE, "too much is going on at the moment"),
    ),
    ("response.code in [502, 503]", Problem("UNAVAILABLE", 503, code_pb2.UNAVAILABLE, UNREACHABLE)),
    ("response.code == 403", Problem("CALLER_REFUSED", 403, code_pb2.PERMISSION_DENIED, "not open to this caller")),
    ("response.code == 500", Problem("INTERNAL", 500, code_pb2.INTERNAL, "internal error")),
    ("response.code >= 400", Problem("INVALID_REQUEST", 400, code_pb2.INVALID_ARGUMENT, "the request is malformed")),
)

# Errors of services that carry no reason of ours (made by the gRPC library, or by a proxy), by gRPC code.
FALLBACKS = {
    problem.grpc: problem
    for problem in (
        Problem("CANCELLED", 499, code_pb2.CANCELLED, "the call was cancelled"),
        Problem("INTERNAL", 500, code_pb2.UNKNOWN, "internal error"),
        Problem("INVALID_FIELD", 400, code_pb2.INVALID_ARGUMENT, "the request is not valid"),
        Problem("DEADLINE_EXCEEDED", 504, code_pb2.DEADLINE_EXCEEDED, "the service did not answer in time"),
        Problem("NOT_FOUND", 404, code_pb2.NOT_FOUND, "not found"),
        Problem("ALREADY_EXISTS", 409, code_pb2.ALREADY_EXISTS, "already exists"),
        Problem("ROLE_INSUFFICIENT", 403, code_pb2.PERMISSION_DENIED, "not allowed"),
        # A limit of the caller's. Without a reason of ours it is the gRPC server's own: problem.lua makes that a 503.
        Problem("OVERLOADED", 429, code_pb2.RESOURCE_EXHAUSTED, "too many calls are in flight"),
        Problem("FAILED_PRECONDITION", 400, code_pb2.FAILED_PRECONDITION, "not possible in the present state"),
        Problem("ABORTED", 409, code_pb2.ABORTED, "a race was lost: try again"),
        Problem("OUT_OF_RANGE", 410, code_pb2.OUT_OF_RANGE, "out of range"),
        Problem("UNIMPLEMENTED", 501, code_pb2.UNIMPLEMENTED, "not implemented"),
        Problem("INTERNAL", 500, code_pb2.INTERNAL, "internal error"),
        Problem("UNAVAILABLE", 503, code_pb2.UNAVAILABLE, UNREACHABLE),
        Problem("INTERNAL", 500, code_pb2.DATA_LOSS, "internal error"),
        Problem("TOKEN_INVALID", 401, code_pb2.UNAUTHENTICATED, "the access token is not valid"),
    )
}


def problem_filter() -> Json:
    """The Lua filter that renders the errors of services on REST routes."""
    fallbacks = ", ".join(f"[{code}] = {lua_table(problem)}" for code, problem in FALLBACKS.items())
    bodies = ", ".join(f'["{rpc.name}"] = "{rpc.http.body}"' for rpc in transcoded_rpcs() if rpc.http and rpc.http.body)
    tables = f"local FALLBACKS = {{ {fallbacks} }}\nlocal TOO_LARGE = {lua_table(TOO_LARGE)}\n"
    tables += f"local BODIES = {{ {bodies} }}\n"
    return lua_filter(PROBLEM, tables + script("problem_json.lua") + script("problem.lua"))


def lua_table(problem: Problem) -> str:
    return f'{{ status = {problem.http}, reason = "{problem.reason}", detail = "{problem.detail}" }}'


def local_reply_config(*, transcodes: bool = False) -> Json:
    """How a connection manager words its own replies, for REST and for gRPC; the edge's also *transcodes*."""
    mappers = [passed_on("response.code_details == 'lua_response'"), transcoder_refusal()] if transcodes else []
    is_grpc = f"{GRPC} && {NOT_TRANSCODED}" if transcodes else GRPC
    for condition, problem in LOCAL_REPLIES:
        mappers += [grpc_reply(f"{is_grpc} && {condition}", problem), rest_reply(condition, problem)]
    return {"mappers": mappers}


def passed_on(condition: str) -> Json:
    """Our own scripts answer with a finished problem."""
    text = {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}, "content_type": CONTENT_TYPE}
    return {"filter": when(condition), "body_format_override": text}


def transcoder_refusal() -> Json:
    """The transcoder's own words quote the body, a password too, and name types of the inside: never passed on."""
    condition = "response.code == 400 && response.code_details.contains('grpc_json_transcode_failure')"
    return rest_reply(condition, Problem("INVALID_FIELD", 400, code_pb2.INVALID_ARGUMENT, MISFIT))


def rest_reply(condition: str, problem: Problem) -> Json:
    json_format = {
        "type": f"urn:strandline:{problem.reason}",
        "title": problem.reason.replace("_", " ").capitalize(),
        "status": problem.http,
        "detail": problem.detail,
        "instance": "%REQ(X-REQUEST-ID)%",
        "reason": problem.reason,
        "metadata": {},
        "violations": [],
    }
    return {
        "filter": when(condition),
        "status_code": problem.http,
        "headers_to_add": retry_after(problem),
        "body_format_override": {"json_format": json_format, "content_type": CONTENT_TYPE},
    }


def grpc_reply(condition: str, problem: Problem) -> Json:
    """The message must equal the one inside the details, or gRPC libraries refuse to read these."""
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=problem.reason, domain="strandline"))
    status = status_pb2.Status(code=problem.grpc, message=problem.detail, details=[info])
    details = base64.b64encode(status.SerializeToString()).decode().rstrip("=")
    return {
        "filter": when(condition),
        "status_code": problem.http,
        "headers_to_add": [
            header("grpc-status", str(problem.grpc)),
            header("grpc-status-details-bin", details),
            *retry_after(problem),
        ],
        "body_format_override": {"text_format_source": {"inline_string": problem.detail}},
    }


def retry_after(problem: Problem) -> list[Json]:
    return [header("retry-after", str(problem.retry_after), "ADD_IF_ABSENT")] if problem.retry_after else []


def header(name: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Json:
    """A header to add, as Envoy's options take it."""
    return {"header": {"key": name, "value": value}, "append_action": action}


def when(condition: str) -> Json:
    expression = typed("access_loggers.filters.cel.v3.ExpressionFilter", expression=condition)
    return {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": expression}}
