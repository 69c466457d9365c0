"""Errors on the HTTP port, as ``application/problem+json`` (RFC 9457) of the same shape as the edge's."""

from __future__ import annotations

from http import HTTPStatus

import orjson

from services.runtime import errors

CONTENT_TYPE = "application/problem+json"
STATUS: dict[type[errors.Error], HTTPStatus] = {
    errors.InvalidArgument: HTTPStatus.BAD_REQUEST,
    errors.FailedPrecondition: HTTPStatus.BAD_REQUEST,
    errors.OutOfRange: HTTPStatus.GONE,
    errors.Unauthenticated: HTTPStatus.UNAUTHORIZED,
    errors.PermissionDenied: HTTPStatus.FORBIDDEN,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.AlreadyExists: HTTPStatus.CONFLICT,
    errors.Aborted: HTTPStatus.CONFLICT,
    errors.ResourceExhausted: HTTPStatus.TOO_MANY_REQUESTS,
    errors.Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
_RETRIABLE = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


def problem(status: int, reason: str, detail: str, *, instance: str, error: errors.Error | None = None) -> bytes:
    """The body. *instance* is the request's id; metadata and violations are those of *error*."""
    violations = error.violations if error else ()
    body = {
        "type": f"urn:strandline:{reason}",
        "title": reason.replace("_", " ").capitalize(),
        "status": status,
        "detail": detail,
        "instance": instance,
        "reason": reason,
        "metadata": error.metadata if error else {},
        "violations": [{"field": v.field, "pointer": v.pointer or None, "message": v.message} for v in violations],
    }
    return orjson.dumps(body) + b"\n"


def status_of(error: errors.Error) -> HTTPStatus:
    """The HTTP status of *error*."""
    return HTTPStatus(error.http_status) if error.http_status else STATUS[type(error)]


def headers_of(status: HTTPStatus, error: errors.Error | None = None) -> dict[str, str]:
    """The headers of a problem, ``Retry-After`` included where a retry may help."""
    headers = {"content-type": CONTENT_TYPE, "cache-control": "no-store"}
    if status in _RETRIABLE:
        headers["retry-after"] = error.metadata.get("retry_after", "1") if error else "1"
    if status == HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return headers
