"""Requests made to confuse the edge: each must end in a problem in our own words."""

from __future__ import annotations

import asyncio
import http.client
import shutil
from typing import Any

import pytest
from strandline.entity.v1 import entity_pb2, entity_service_pb2, type_service_pb2
from strandline.user.v1 import auth_service_pb2

from tests.gateway_stack import Stack, stack

__all__ = ["stack"]

TYPES = "/v1/namespaces/demo/types"
ENTITIES = f"{TYPES}/port/entities"
BATCH = "/v1/namespaces/demo:batchWrite"
MIB = 1024 * 1024
COMPATIBILITIES = (
    "must be one of NONE, BACKWARD, FORWARD, FULL, BACKWARD_TRANSITIVE, FORWARD_TRANSITIVE, FULL_TRANSITIVE"
)
GENERIC = "a value in the body or query does not fit its field, or is not what the path says"


@pytest.fixture(autouse=True)
def answers(stack: Stack) -> None:
    def answering(answer: Any) -> Any:
        async def answer_it(_request: Any, _context: Any) -> Any:
            return answer

        return answer_it

    stack.answers["EntityService.CreateEntity"] = answering(entity_service_pb2.CreateEntityResponse())
    stack.answers["EntityService.GetEntity"] = answering(
        entity_service_pb2.GetEntityResponse(entity=entity_pb2.Entity(name="n"))
    )
    stack.answers["EntityService.ListEntities"] = answering(entity_service_pb2.ListEntitiesResponse())
    stack.answers["EntityService.DeleteEntity"] = answering(entity_service_pb2.DeleteEntityResponse())
    stack.answers["EntityService.BatchWrite"] = answering(entity_service_pb2.BatchWriteResponse())
    stack.answers["TypeService.CreateType"] = answering(type_service_pb2.CreateTypeResponse())
    stack.answers["AuthService.Login"] = answering(auth_service_pb2.LoginResponse())
    stack.seen.clear()


@pytest.mark.parametrize("bad", ["%ff", "%C0%AE", "%ED%A0%80", "%F4%90%80%80", "%C3", "a%C3%28b", "%C3%C3%A9%A9"])
@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", f"{ENTITIES}?filter={{}}", "filter"),
        ("GET", f"{ENTITIES}?page_token={{}}", "page_token"),
        ("GET", f"{ENTITIES}?orderBy={{}}", "orderBy"),
        ("GET", f"{ENTITIES}?read_mask={{}}", "read_mask"),
        ("POST", f"{ENTITIES}?entity_id={{}}", "entity_id"),
        ("POST", f"{ENTITIES}?request_id={{}}", "request_id"),
        ("DELETE", f"{ENTITIES}/kiel?etag={{}}", "etag"),
        ("GET", f"{ENTITIES}/{{}}", "path"),
        ("GET", "/v1/namespaces/{}/types/port/entities", "path"),
    ],
)
async def test_what_is_not_utf8_is_named_and_refused(
    stack: Stack, method: str, path: str, field: str, bad: str
) -> None:
    reply = await stack.call(method, path.format(bad), {"data": {}} if method == "POST" else None)
    assert (reply.status, reply.reason) == (400, "INVALID_FIELD")
    assert reply.json["violations"] == [{"field": field, "pointer": None, "message": "must be UTF-8"}]
    assert not stack.seen


async def test_any_character_of_utf8_passes_in_path_and_query(stack: Stack) -> None:
    text = "%C3%A9%E2%82%AC%F0%9F%98%80%ED%9F%BF%EF%BF%BF"
    assert (await stack.call("GET", f"{ENTITIES}?filter={text}")).status == 200
    request, _ = stack.seen["EntityService.ListEntities"]
    assert request.filter == "é€😀\ud7ff\uffff"
    assert (await stack.call("GET", f"{ENTITIES}/{text}")).status == 200


@pytest.mark.parametrize("raw", [b"\xc0\xae", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3"])
@pytest.mark.parametrize("form", [b'{"data": {"a": "%s"}}', b'{"name": "%s"}', b'{"data": {"%s": 1}}'])
async def test_a_body_that_is_not_utf8_is_refused(stack: Stack, form: bytes, raw: bytes) -> None:
    reply = await stack.call("POST", ENTITIES, form % raw)
    assert (reply.status, reply.reason) == (400, "INVALID_FIELD")
    assert not stack.seen


@pytest.mark.parametrize(
    "headers",
    [
        {"grpc_timeout": "x"},
        {"grpc_timeout": "1m"},
        {"grpc_encoding": "zz"},
        {"foo_bin": "!!!"},
        {"grpc_status_details_bin": "!!!"},
        {"grpc_accept_encoding": "zz"},
        {"te": "gzip"},
    ],
    ids=str,
)
async def test_headers_of_grpc_mean_nothing_to_rest(stack: Stack, headers: dict[str, str]) -> None:
    async def slowly(_request: Any, context: Any) -> Any:
        await asyncio.sleep(0.05)
        return entity_service_pb2.DeleteEntityResponse()

    stack.answers["EntityService.DeleteEntity"] = slowly
    assert (await stack.call("DELETE", f"{ENTITIES}/kiel", **headers)).status == 200
    _, metadata = stack.seen["EntityService.DeleteEntity"]
    assert "foo-bin" not in metadata


async def test_a_rest_path_cannot_be_called_as_if_it_were_grpc(stack: Stack) -> None:
    for method in ("GET", "POST"):
        reply = await stack.call(method, ENTITIES, content_type="application/grpc")
        assert reply.headers.get("grpc-status") != "0"
    assert not stack.seen


async def test_native_grpc_with_broken_headers_shows_nothing_of_the_inside(stack: Stack) -> None:
    for broken in ("grpc-timeout: x", "grpc-encoding: zz", "foo-bin: !!!"):
        answer = await curl(
            stack, "/strandline.entity.v1.EntityService/GetEntity", b"\0\0\0\0\0", "content-type: application/grpc",
            "te: trailers", broken,
        )  # fmt: skip
        assert not any(word in answer.lower() for word in (".py", "python", "traceback", "exception", "envoy"))


@pytest.mark.parametrize("size", [4 * MIB + 1, 6_000_000, 15 * MIB])
async def test_a_client_that_sends_all_before_it_reads_learns_that_it_was_too_much(stack: Stack, size: int) -> None:
    for chunked in (False, True):
        status, text = await asyncio.to_thread(send_all, stack, BATCH, size, chunked)
        assert (status, "urn:strandline:BODY_TOO_LARGE" in text) == (413, True)
    assert not stack.seen


async def test_one_that_signs_in_learns_it_too(stack: Stack) -> None:
    for size in (65_537, 3 * MIB, 6 * MIB):
        status, text = await asyncio.to_thread(send_all, stack, "/v1/auth:login", size, True)
        assert (status, "urn:strandline:BODY_TOO_LARGE" in text) == (413, True)


async def test_the_connection_serves_on_after_a_body_that_was_too_large(stack: Stack) -> None:
    def twice() -> list[int]:
        connection = http.client.HTTPConnection(stack.address, timeout=30)
        headers = {"content-type": "application/json", "authorization": f"Bearer {stack.token()}"}
        statuses = []
        for body in (b" " * 5 * MIB, b'{"writes": []}'):
            connection.request("POST", BATCH, body, headers)
            reply = connection.getresponse()
            reply.read()
            statuses.append(reply.status)
        connection.close()
        return statuses

    assert await asyncio.to_thread(twice) == [413, 200]


async def test_over_http2_a_body_that_is_too_large_gets_its_answer(stack: Stack) -> None:
    for size in (4 * MIB + 1, 6_000_000):
        answer = await curl(stack, BATCH, b" " * size, "content-type: application/json", "expect:")
        assert answer.startswith("HTTP/2 413")
        assert "urn:strandline:BODY_TOO_LARGE" in answer


@pytest.mark.parametrize(
    ("path", "body", "pointer", "message"),
    [
        (ENTITIES, '{"data": {"a": 1e400}}', "/data/a", "a number beyond the range of double"),
        (ENTITIES, '{"data": {"a": -%s}}' % ("9" * 400), "/data/a", "a number beyond the range of double"),
        (ENTITIES, '{"data": {"a": "\\ud800"}}', "/data/a", "half of a surrogate pair"),
        (ENTITIES, '{"data": {"a": "\\ud800\\u0041"}}', "/data/a", "half of a surrogate pair"),
        (ENTITIES, '{"data": {"a": "\\udc00"}}', "/data/a", "half of a surrogate pair"),
        (ENTITIES, '{"revision": "abc"}', "/revision", "must be a 64-bit integer"),
        (ENTITIES, '{"revision": 9223372036854775808}', "/revision", "must be a 64-bit integer"),
        (ENTITIES, '{"revision": "-9223372036854775809"}', "/revision", "must be a 64-bit integer"),
        (ENTITIES, '{"revision": 1.5}', "/revision", "must be a 64-bit integer"),
        (ENTITIES, '{"create_time": "yesterday"}', "/create_time", "must be a time like 2026-01-31T12:00:00Z"),
        (TYPES, '{"compatibility": "SIDEWAYS"}', "/compatibility", COMPATIBILITIES),
        (TYPES, '{"compatibility": 99999999999}', "/compatibility", COMPATIBILITIES),
        *(
            (
                BATCH,
                {"writes": [{"create": {"dataJson": data}}]},
                "/writes/0/create/dataJson",
                "must be base64",
            )
            for data in ("!?", "e", "e30==", "e30e3", "e30e3==", "e30e3e=", "abcd=", "abcd==", "=", "e+_0")
        ),
        (BATCH, '{"writes": [{"create": {}, "delete": {}}]}', "/writes/0/delete", "excludes a field that is also set"),
        (
            BATCH,
            '{"writes": [{"create": {"data": {}, "dataJson": ""}}]}',
            "/writes/0/create/dataJson",
            "excludes a field that is also set",
        ),
    ],
)
async def test_a_value_that_does_not_fit_is_pointed_at(
    stack: Stack, path: str, body: Any, pointer: str, message: str
) -> None:
    reply = await stack.call("POST", path, body)
    assert (reply.status, reply.reason) == (400, "INVALID_FIELD")
    [violation] = reply.json["violations"]
    assert (violation["pointer"], violation["message"]) == (pointer, message)
    assert not stack.seen


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (ENTITIES, '{"revision": "9223372036854775807"}'),
        (ENTITIES, '{"revision": -9223372036854775808}'),
        (ENTITIES, '{"revision": 1e3}'),
        (ENTITIES, '{"createTime": "2026-11-22T00:00:00.123456789+01:00"}'),
        (ENTITIES, '{"data": {"a": 1.7976931348623157e308, "b": 1e-400, "c": "\\ud83d\\ude00"}}'),
        (TYPES, '{"compatibility": "BACKWARD"}'),
        (TYPES, '{"compatibility": 2}'),
        (TYPES, '{"compatibility": null}'),
        (BATCH, '{"writes": [{"create": {"dataJson": "e30="}}, {"create": {"dataJson": "e30"}}]}'),
        (BATCH, '{"writes": [{"create": {"dataJson": "-_-_"}, "delete": null}]}'),
        *(
            (BATCH, {"writes": [{"create": {"dataJson": data}}]})
            for data in ("", "e3", "e30e3g", "e30e3g==", "-_-", "-_-=", "e 30", "\ne30=", " ")
        ),
    ],
)
async def test_a_value_that_fits_in_an_unusual_form_passes(stack: Stack, path: str, body: Any) -> None:
    assert (await stack.call("POST", path, body)).status == 200


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("page_size=99999999999", "must be a 32-bit integer"),
        ("page_size=x", "must be a 32-bit integer"),
        ("min_revision=9223372036854775808", "must be a 64-bit integer"),
        ("show_deleted=talse", "must be true or false"),
    ],
)
async def test_a_parameter_that_does_not_fit_is_named(stack: Stack, query: str, message: str) -> None:
    reply = await stack.call("GET", f"{ENTITIES}?{query}")
    assert (reply.status, reply.reason) == (400, "INVALID_FIELD")
    name = query.partition("=")[0]
    assert reply.json["violations"] == [{"field": name, "pointer": None, "message": message}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (ENTITIES, b'{"data": {"hunter2": "\xff"}}'),
        (BATCH, '{"writes": [{"create": {"dataJson": "hunter2 =="}}]}'),
        ("/v1/auth:login", b'{"email": "a@b.c", "password": "hunter2\xff"}'),
    ],
)
async def test_what_only_the_transcoder_refuses_gets_one_sentence_without_an_echo(
    stack: Stack, path: str, body: Any
) -> None:
    reply = await stack.call("POST", path, body, token=None if "auth" in path else "", source="127.0.0.9")
    assert (reply.status, reply.reason, reply.json["detail"]) == (400, "INVALID_FIELD", GENERIC)
    assert "hunter2" not in reply.text


async def test_a_body_that_names_another_resource_than_the_path_is_refused_and_told_to_look_there(stack: Stack) -> None:
    reply = await stack.call("PATCH", f"{ENTITIES}/kiel", {"name": "namespaces/demo/types/port/entities/bremen"})
    assert (reply.status, reply.reason, reply.json["detail"]) == (400, "INVALID_FIELD", GENERIC)
    assert not stack.seen


async def test_a_body_in_another_coding_is_not_supported(stack: Stack) -> None:
    for headers in (
        {"content_encoding": "gzip"},
        {"content_type": "application/json; charset=utf-16"},
        {"content_type": 'application/json;version=1; Charset="ISO-8859-1"'},
    ):
        reply = await stack.call("POST", ENTITIES, '{"data": {}}', **headers)
        assert (reply.status, reply.reason) == (415, "UNSUPPORTED_MEDIA_TYPE")
    for headers in ({"content_encoding": "identity"}, {"content_type": 'application/json; charset="UTF-8"'}):
        assert (await stack.call("POST", ENTITIES, '{"data": {}}', **headers)).status == 200


async def test_the_scheme_of_a_token_has_no_case(stack: Stack) -> None:
    token = stack.token()
    for scheme in ("bearer", "BEARER", "bEaReR", "bearer "):
        reply = await stack.call("GET", f"{ENTITIES}/kiel", token=None, authorization=f"{scheme} {token}")
        assert reply.status == 200
        assert stack.seen["EntityService.GetEntity"][1]["authorization"] == f"Bearer {token}"
    reply = await stack.call("GET", f"{ENTITIES}/kiel", token=None, authorization="bearer nonsense")
    assert (reply.status, reply.reason) == (401, "TOKEN_INVALID")
    reply = await stack.call("GET", f"{ENTITIES}/kiel", token=None, authorization="Basic abc")
    assert (reply.status, reply.reason) == (401, "TOKEN_MISSING")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("HEAD", ENTITIES, "GET, POST"),
        ("OPTIONS", f"{ENTITIES}/kiel", "DELETE, GET, PATCH"),
        ("PUT", f"{ENTITIES}/kiel", "DELETE, GET, PATCH"),
        ("GET", "/v1/auth:login", "POST"),
        ("POST", "/v1/namespaces/demo:watch", "GET"),
    ],
)
async def test_a_method_that_a_path_does_not_have_is_not_allowed(
    stack: Stack, method: str, path: str, allowed: str
) -> None:
    reply = await stack.call(method, path, token=None, source="127.0.0.9")
    assert (reply.status, reply.headers["allow"]) == (405, allowed)
    assert method == "HEAD" or reply.reason == "METHOD_NOT_ALLOWED"


def send_all(stack: Stack, path: str, size: int, chunked: bool) -> tuple[int, str]:
    """Status and text of the answer to a body of *size* spaces, sent by a client that reads only afterwards."""
    connection = http.client.HTTPConnection(stack.address, timeout=30, source_address=("127.0.0.8", 0))
    headers = {"content-type": "application/json", "authorization": f"Bearer {stack.token()}"}
    pieces = [b" " * min(65_536, size - start) for start in range(0, size, 65_536)]
    try:
        connection.request("POST", path, pieces if chunked else b" " * size, headers, encode_chunked=chunked)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


async def curl(stack: Stack, path: str, body: bytes, *headers: str) -> str:
    """What curl prints, headers and body, for a POST over HTTP/2 without TLS."""
    if shutil.which("curl") is None:
        pytest.skip("curl is the HTTP/2 client of these tests")
    sent = [f"authorization: Bearer {stack.token()}", *headers]
    arguments = [word for header in sent for word in ("-H", header)]
    process = await asyncio.create_subprocess_exec(
        *("curl", "-s", "-i", "--http2-prior-knowledge", "--max-time", "30", "--data-binary", "@-"),
        *(*arguments, stack.url + path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate(body)
    return output.decode("latin-1")
