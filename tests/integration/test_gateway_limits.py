"""Sizes, rates and times that the edge holds clients to."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from strandline.entity.v1 import entity_service_pb2
from strandline.user.v1 import auth_service_pb2

from tests.gateway_stack import Reply, Stack, stack

__all__ = ["stack"]

LOGIN = "/v1/auth:login"
BATCH = "/v1/namespaces/demo:batchWrite"
LIST = "/v1/namespaces/demo/types/port/entities"


@pytest.fixture(autouse=True)
def answers(stack: Stack) -> None:
    async def login(_request: Any, _context: Any) -> Any:
        return auth_service_pb2.LoginResponse()

    async def write(_request: Any, _context: Any) -> Any:
        return entity_service_pb2.BatchWriteResponse()

    async def list_entities(_request: Any, _context: Any) -> Any:
        return entity_service_pb2.ListEntitiesResponse()

    async def refresh(_request: Any, _context: Any) -> Any:
        return auth_service_pb2.RefreshResponse()

    stack.answers["AuthService.Login"] = login
    stack.answers["AuthService.Refresh"] = refresh
    stack.answers["EntityService.BatchWrite"] = write
    stack.answers["EntityService.ListEntities"] = list_entities


def padded(size: int) -> str:
    """A login of exactly *size* bytes."""
    empty = json.dumps({"email": "a@b.c", "password": ""})
    return json.dumps({"email": "a@b.c", "password": "x" * (size - len(empty))})


async def test_signing_in_takes_64_kib_and_not_a_byte_more(stack: Stack) -> None:
    assert (await stack.call("POST", LOGIN, padded(65_536), token=None, source="127.0.0.2")).status == 200
    reply = await stack.call("POST", LOGIN, padded(65_537), token=None, source="127.0.0.2")
    assert (reply.status, reply.reason) == (413, "BODY_TOO_LARGE")


async def test_elsewhere_4_mib_pass_and_not_a_byte_more(stack: Stack) -> None:
    body = '{"writes": []' + " " * (4 * 1024 * 1024 - 14) + "}"
    assert (await stack.call("POST", BATCH, body)).status == 200
    for larger in (body + " ", "x" * 6_000_000):
        reply = await stack.call("POST", BATCH, larger)
        assert (reply.status, reply.reason) == (413, "BODY_TOO_LARGE")


async def test_a_body_of_unknown_length_is_cut_off_as_well(stack: Stack) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield b" " * 100_000

    reply = await stack.call("POST", BATCH, endless())
    assert (reply.status, reply.reason) == (413, "BODY_TOO_LARGE")


async def test_what_grows_too_large_for_the_service_is_too_large_for_the_client(stack: Stack) -> None:
    data = ",".join(['{"k":1}'] * 450_000)
    reply = await stack.call("POST", BATCH, f'{{"writes":[{{"create":{{"name":"n","data":{{"a":[{data}]}}}}}}]}}')
    assert (reply.status, reply.reason) == (413, "BODY_TOO_LARGE")


async def until_limited(stack: Stack, path: str, **options: Any) -> tuple[int, Reply, Reply]:
    """How many requests passed before the first that was refused, the last of them, and the refusal."""
    passed = 0
    while (reply := await stack.call("POST", path, {}, token=None, **options)).status == 200:
        passed, last = passed + 1, reply
    return passed, last if passed else reply, reply


async def test_the_hundred_and_first_sign_in_from_one_address_waits(stack: Stack) -> None:
    began = time.monotonic()
    passed, last, _ = await until_limited(stack, LOGIN, source="127.0.0.3", x_forwarded_for="10.0.0.1")
    assert (last.headers["ratelimit-limit"], last.headers["ratelimit-remaining"]) == ("100", "0")
    # Another path, and another way to write the address, are the same bucket.
    more, _, reply = await until_limited(stack, "/v1/auth:refresh", source="127.0.0.3", x_real_ip="10.1.1.1")
    assert 100 <= passed <= passed + more <= 100 + refilled_since(began)
    assert (reply.status, reply.reason) == (429, "RATE_LIMITED")
    assert 0 < int(reply.headers["retry-after"]) <= 9
    assert (await stack.call("POST", LOGIN, {}, token=None, source="127.0.0.4")).status == 200
    assert (await stack.call("GET", LIST, source="127.0.0.3")).status == 200


async def test_many_other_addresses_do_not_make_the_limiter_forget(stack: Stack) -> None:
    began = time.monotonic()
    passed, *_ = await until_limited(stack, LOGIN, source="127.0.0.5")
    for number in range(60):
        await stack.call("POST", LOGIN, {}, token=None, source=f"127.0.1.{number + 1}")
    more, *_ = await until_limited(stack, LOGIN, source="127.0.0.5")
    assert 100 <= passed <= passed + more <= 100 + refilled_since(began)


def refilled_since(moment: float) -> float:
    """What an address was given since then: a token every nine seconds, which a slow machine may take to ask."""
    return (time.monotonic() - moment) / 9


async def test_headers_beyond_the_limits_are_refused(stack: Stack) -> None:
    many = {f"h{number}": "1" for number in range(80)}
    for path, headers in ((LIST, many), (LIST, {"large": "x" * 20_000}), (f"{LIST}?filter={'x' * 20_000}", {})):
        reply = await stack.call("GET", path, **headers)
        assert (reply.status, reply.reason) == (431, "HEADERS_TOO_LARGE")


@pytest.mark.parametrize("path", [f"{LIST}/a%2Fb", f"{LIST}/a%5Cb", f"{LIST}/a%00b"])
async def test_an_escaped_separator_in_a_path_is_refused(stack: Stack, path: str) -> None:
    assert (await stack.call("GET", path)).status == 400


@pytest.mark.parametrize(
    "request_text",
    [
        pytest.param("GET / HTTP/1.1\r\nhost: a\r\nx_user_id: admin\r\n\r\n", id="underscore"),
        pytest.param(
            "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n", id="two lengths"
        ),
        pytest.param("GET / HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param("GET / HTTP/1.1\r\nhost: a\r\nbad header: 1\r\n\r\n", id="space in a name"),
    ],
)
async def test_malformed_http_is_refused_with_a_problem(stack: Stack, request_text: str) -> None:
    reply = await raw(stack, request_text)
    assert reply.startswith("HTTP/1.1 400 ")
    assert "urn:strandline:INVALID_REQUEST" in reply or "content-length: 0" in reply.lower()
    assert "envoy" not in reply.lower()


@pytest.mark.parametrize("path", [LIST, "/", "/v1/auth:login"])
async def test_http_1_0_is_refused_and_told_what_is_spoken(stack: Stack, path: str) -> None:
    reply = await raw(stack, f"GET {path} HTTP/1.0\r\nhost: a\r\n\r\n")
    assert reply.startswith("HTTP/1.1 505 ")
    problem = json.loads(reply.partition("\r\n\r\n")[2])
    assert (problem["reason"], problem["status"]) == ("HTTP_VERSION_UNSUPPORTED", 505)
    assert "HTTP/1.1" in problem["detail"]


async def test_a_request_head_that_never_ends_is_given_up(stack: Stack) -> None:
    reply = await raw(stack, "GET / HTTP/1.1\r\nhost: a\r\n")
    assert reply.startswith("HTTP/1.1 408 ")
    assert "urn:strandline:REQUEST_TIMEOUT" in reply


async def raw(stack: Stack, text: str) -> str:
    """What the edge answers to bytes as they are."""
    host, _, port = stack.address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(text.encode())
        async with asyncio.timeout(30):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"^content-length: (\d+)", head, re.MULTILINE)
            assert length is not None, head
            return head + (await reader.readexactly(int(length[1]))).decode()
    finally:
        writer.close()
        await writer.wait_closed()
