"""REST at the edge: what reaches a service, and how answers and errors come back."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from strandline.entity.v1 import entity_pb2, entity_service_pb2

from tests.gateway_stack import Stack, running_stack, stack

__all__ = ["stack"]

ENTITIES = "/v1/namespaces/demo/types/port/entities"
ENTITY = f"{ENTITIES}/kiel"


async def test_an_answer_is_the_bare_resource_with_its_position_in_a_header(stack: Stack) -> None:
    async def create(request: Any, context: Any) -> entity_service_pb2.CreateEntityResponse:
        await context.send_initial_metadata((("strandline-revision", "0123abcd.7"), ("location", f"{ENTITIES}/kiel")))
        return entity_service_pb2.CreateEntityResponse(entity=request.entity, revision=7, epoch="0123abcd")

    stack.answers["EntityService.CreateEntity"] = create
    reply = await stack.call("POST", f"{ENTITIES}?entity_id=kiel", {"data": {"country": "de", "depth": 5.0}})
    assert reply.status == 200
    assert reply.json["data"] == {"country": "de", "depth": 5}
    assert reply.json["revision"] == "0"  # int64 are strings, and scalars are always printed
    assert "entity" not in reply.json
    assert reply.headers["strandline-revision"] == "0123abcd.7"
    assert reply.headers["location"] == f"{ENTITIES}/kiel"
    request, _ = stack.seen["EntityService.CreateEntity"]
    assert (request.parent, request.entity_id) == ("namespaces/demo/types/port", "kiel")


async def test_a_whole_response_is_not_unwrapped(stack: Stack) -> None:
    async def batch_get(request: Any, _context: Any) -> entity_service_pb2.BatchGetEntitiesResponse:
        return entity_service_pb2.BatchGetEntitiesResponse(missing_ids=request.ids, revision=3, epoch="0123abcd")

    stack.answers["EntityService.BatchGetEntities"] = batch_get
    reply = await stack.call("POST", f"{ENTITIES}:batchGet", {"ids": ["a", "b"], "readMask": ["data.x"]})
    expected = {"entities": [], "missingIds": ["a", "b"], "unreadIds": [], "revision": "3", "epoch": "0123abcd"}
    assert reply.json == expected


async def test_an_empty_resource_is_an_object_with_its_defaults(stack: Stack) -> None:
    stack.answers["EntityService.GetEntity"] = returning(entity_service_pb2.GetEntityResponse(revision=9))
    reply = await stack.call("GET", ENTITY)
    assert reply.json == {
        "name": "",
        "type": "",
        "uid": "",
        "etag": "",
        "revision": "0",
        "createdBy": "",
        "updatedBy": "",
    }


async def test_an_entity_of_three_megabytes_comes_back_whole(stack: Stack) -> None:
    entity = entity_pb2.Entity(name="x")
    entity.data.update({"text": "ä" * 1_500_000})
    stack.answers["EntityService.GetEntity"] = returning(
        entity_service_pb2.GetEntityResponse(entity=entity, revision=1)
    )
    reply = await stack.call("GET", ENTITY)
    assert len(reply.json["data"]["text"]) == 1_500_000


async def test_query_parameters_may_be_camel_or_snake_case_and_repeat(stack: Stack) -> None:
    stack.answers["EntityService.ListEntities"] = returning(entity_service_pb2.ListEntitiesResponse())
    query = "pageSize=5&page_token=a+b%20c&readMask=data.a&read_mask=data.b&showDeleted=true&filter=data.n%20%3E%3D%201"
    assert (await stack.call("GET", f"{ENTITIES}?{query}")).status == 200
    request, _ = stack.seen["EntityService.ListEntities"]
    assert MessageToDict(request) == {
        "parent": "namespaces/demo/types/port",
        "pageSize": 5,
        "pageToken": "a b c",
        "readMask": ["data.a", "data.b"],
        "showDeleted": True,
        "filter": "data.n >= 1",
    }


async def test_metadata_of_the_contract_reaches_the_service(stack: Stack) -> None:
    stack.answers["EntityService.GetEntity"] = returning(entity_service_pb2.GetEntityResponse())
    await stack.call("GET", ENTITY, strandline_min_revision="0123abcd.4", if_match='"4"')
    _, metadata = stack.seen["EntityService.GetEntity"]
    assert metadata["strandline-min-revision"] == "0123abcd.4"
    assert metadata["if-match"] == '"4"'
    assert metadata["authorization"].startswith("Bearer ")


async def test_headers_by_which_the_inside_speaks_are_taken_from_clients(stack: Stack) -> None:
    stack.answers["EntityService.GetEntity"] = returning(entity_service_pb2.GetEntityResponse())
    forged = {
        "x_user_id": "admin",
        "x_tenant_id": "other",
        "x_strandline_role": "owner",
        "x_request_id": "mine",
        "x_forwarded_client_cert": "URI=spiffe://strandline.local/ns/default/sa/user",
        "x_envoy_upstream_rq_timeout_ms": "1",
        "strandline_http_status": "200",
    }
    reply = await stack.call("GET", ENTITY, **forged)
    _, metadata = stack.seen["EntityService.GetEntity"]
    assert reply.status == 200
    assert metadata["x-strandline-rest"] == "1"
    assert not {"x-user-id", "x-tenant-id", "x-strandline-role", "strandline-http-status"} & set(metadata)
    assert "sa/user" not in metadata["x-forwarded-client-cert"]
    assert metadata["x-request-id"] == reply.headers["x-request-id"] != "mine"


async def test_a_write_without_an_idempotency_key_gets_one_and_a_read_does_not(stack: Stack) -> None:
    stack.answers["EntityService.CreateEntity"] = returning(entity_service_pb2.CreateEntityResponse())
    stack.answers["EntityService.GetEntity"] = returning(entity_service_pb2.GetEntityResponse())
    await stack.call("POST", ENTITIES, {"data": {}})
    assert len(stack.seen["EntityService.CreateEntity"][1]["idempotency-key"]) == 36
    await stack.call("POST", ENTITIES, {"data": {}}, idempotency_key="my-key")
    assert stack.seen["EntityService.CreateEntity"][1]["idempotency-key"] == "my-key"
    await stack.call("GET", ENTITY)
    assert "idempotency-key" not in stack.seen["EntityService.GetEntity"][1]


async def test_answers_carry_security_headers_and_no_trace_of_the_inside(stack: Stack) -> None:
    stack.answers["EntityService.GetEntity"] = returning(entity_service_pb2.GetEntityResponse())
    for path in (ENTITY, "/nothing/here", f"{ENTITIES}?nope=1", "/v1/users/me"):
        headers = {name.lower(): value for name, value in (await stack.call("GET", path)).headers.items()}
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert not [
            name for name in headers if name == "server" or name.startswith(("x-envoy", "grpc-", "x-ratelimit"))
        ]
        assert "strict-transport-security" not in headers  # plaintext


@pytest.mark.parametrize(
    ("code", "reason", "status"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "SCHEMA_VIOLATION", 400),
        (grpc.StatusCode.FAILED_PRECONDITION, "INDEX_REQUIRED", 400),
        (grpc.StatusCode.OUT_OF_RANGE, "COMPACTED", 410),
        (grpc.StatusCode.UNAUTHENTICATED, "LOGIN_FAILED", 401),
        (grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT", 403),
        (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", 404),
        (grpc.StatusCode.ALREADY_EXISTS, "UNIQUE_VIOLATION", 409),
        (grpc.StatusCode.ABORTED, "ETAG_MISMATCH", 409),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", 429),
        (grpc.StatusCode.UNAVAILABLE, "ACCESS_UNVERIFIABLE", 503),
    ],
)
async def test_an_error_of_a_service_becomes_a_problem(
    stack: Stack, code: grpc.StatusCode, reason: str, status: int
) -> None:
    stack.answers["EntityService.GetEntity"] = failing(rich(code, 'say "why"\nü', reason, etag='"12"'))
    reply = await stack.call("GET", ENTITY)
    assert (reply.status, reply.reason) == (status, reason)
    assert reply.json["detail"] == 'say "why"\nü'
    assert reply.json["metadata"] == {"etag": '"12"'}
    assert ("retry-after" in reply.headers) == (status in (429, 503))


async def test_violations_name_the_field_and_point_into_the_body(stack: Stack) -> None:
    violations = {"/data/a~1b": "slash", "entity.data.country": "two letters", "type_id": "too long"}
    stack.answers["EntityService.CreateEntity"] = failing(
        rich(grpc.StatusCode.INVALID_ARGUMENT, "bad", "INVALID_FIELD", violations)
    )
    reply = await stack.call("POST", ENTITIES, {"data": {}})
    assert reply.json["violations"] == [
        {"field": "data.a~1b", "pointer": "/data/a~1b", "message": "slash"},
        {"field": "entity.data.country", "pointer": "/data/country", "message": "two letters"},
        {"field": "type_id", "pointer": None, "message": "too long"},
    ]


@pytest.mark.parametrize("position", [(), (("strandline-revision", "0123abcd.7"),)], ids=["bare", "after-metadata"])
async def test_a_service_may_ask_for_another_status_and_a_pause(stack: Stack, position: Any) -> None:
    async def update(_request: Any, context: Any) -> Any:
        if position:
            await context.send_initial_metadata(position)
        status = rich(grpc.StatusCode.ABORTED, "changed meanwhile", "ETAG_MISMATCH")
        wishes = (("strandline-http-status", "412"), ("retry-after", "9"))
        await context.abort(status.code, status.details, (*status.trailing_metadata, *wishes))

    stack.answers["EntityService.UpdateEntity"] = update
    reply = await stack.call("PATCH", ENTITY, {"data": {}})
    assert (reply.status, reply.reason) == (412, "ETAG_MISMATCH")
    assert reply.headers["retry-after"] == "9"
    assert "strandline-http-status" not in reply.headers


async def test_a_crash_in_a_service_says_nothing_about_its_inside(stack: Stack) -> None:
    async def crash(_request: Any, _context: Any) -> Any:
        raise RuntimeError("select secret from passwords")

    stack.answers["EntityService.GetEntity"] = crash
    reply = await stack.call("GET", ENTITY)
    assert (reply.status, reply.reason, reply.json["detail"]) == (500, "INTERNAL", "internal error")
    assert "secret" not in reply.text


async def test_an_internal_error_is_hidden_even_if_a_reason_is_attached(stack: Stack) -> None:
    stack.answers["EntityService.GetEntity"] = failing(rich(grpc.StatusCode.INTERNAL, "stack trace", "WHATEVER"))
    reply = await stack.call("GET", ENTITY)
    assert (reply.status, reply.reason, reply.json["detail"]) == (500, "INTERNAL", "internal error")


async def test_a_path_or_rpc_that_is_not_public_is_not_found(stack: Stack) -> None:
    wrong = [
        ("GET", "/"),
        ("GET", "/v2/namespaces"),
        ("POST", "/strandline.entity.v1.EntityService/PurgeNamespace"),
        ("POST", "/strandline.entity.v1.EntityService/GetEntity"),
        ("GET", "/v1/namespaces/demo:unknown"),
    ]
    for method, path in wrong:
        reply = await stack.call(method, path, token=None)
        assert (reply.status, reply.reason) == (404, "NOT_FOUND"), (method, path)


async def test_a_service_that_is_down_is_unavailable_and_names_no_part_of_the_inside() -> None:
    async with running_stack(absent=frozenset({"entity", "stream-sidecar"})) as broken:
        for path in (ENTITY, "/v1/namespaces/demo:watch?now=true"):
            reply = await broken.call("GET", path)
            assert (reply.status, reply.reason) == (503, "UNAVAILABLE")
            assert reply.headers["retry-after"] == "1"
            assert not [word for word in ("upstream", "connect", "socket", "sidecar") if word in reply.text]


def returning(response: Any) -> Any:
    async def answer(_request: Any, _context: Any) -> Any:
        return response

    return answer


def failing(status: Any) -> Any:
    async def answer(_request: Any, context: Any) -> Any:
        await context.abort_with_status(status)

    return answer


def rich(
    code: grpc.StatusCode, message: str, reason: str, violations: dict[str, str] | None = None, **metadata: str
) -> Any:
    """A status as the services send it."""
    details = [error_details_pb2.ErrorInfo(reason=reason, domain="strandline", metadata=metadata)]
    if violations is not None:
        request = error_details_pb2.BadRequest()
        for field, description in violations.items():
            request.field_violations.add(field=field, description=description)
        details.append(request)
    packed = [any_pb2.Any() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=code.value[0], message=message, details=packed))
