"""Which tokens the edge lets through."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from strandline.user.v1 import auth_service_pb2

from tests.gateway_stack import SigningKey, Stack, base64url, running_stack, stack

__all__ = ["stack"]

ME = "/v1/users/me"
NOW = time.time


@pytest.fixture(autouse=True)
def answers(stack: Stack) -> None:
    async def get_me(_request: Any, _context: Any) -> Any:
        return auth_service_pb2.GetMeResponse()

    stack.answers["UserService.GetMe"] = get_me
    stack.seen.clear()


async def test_a_good_token_passes_and_goes_on_to_the_service(stack: Stack) -> None:
    token = stack.token()
    assert (await stack.call("GET", ME, token=token)).status == 200
    assert stack.seen["UserService.GetMe"][1]["authorization"] == f"Bearer {token}"


async def test_a_token_that_expired_seconds_ago_passes_because_clocks_differ(stack: Stack) -> None:
    assert (await stack.call("GET", ME, token=stack.token(exp=int(NOW()) - 2))).status == 200


async def test_no_token_is_another_error_than_a_wrong_one(stack: Stack) -> None:
    reply = await stack.call("GET", ME, token=None)
    assert (reply.status, reply.reason) == (401, "TOKEN_MISSING")
    assert reply.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", [ME, "/v1/namespaces/demo:watch"])
async def test_a_token_in_the_query_counts_for_nothing(stack: Stack, path: str) -> None:
    reply = await stack.call("GET", f"{path}?access_token={stack.token()}", token=None)
    assert (reply.status, reply.reason) == (401, "TOKEN_MISSING")


WRONG: dict[str, Callable[[Stack], str]] = {
    "no token at all": lambda _: "abc",
    "expired": lambda stack: stack.token(exp=int(NOW()) - 120),
    "without end": lambda stack: stack.token(exp=None),
    "valid for 30 days": lambda stack: stack.token(exp=int(NOW()) + 30 * 86400),
    "not yet valid": lambda stack: stack.token(nbf=int(NOW()) + 120),
    "of another issuer": lambda stack: stack.token(iss="https://elsewhere"),
    "for another audience": lambda stack: stack.token(aud="other-product"),
    "for no audience": lambda stack: stack.token(aud=None),
    "end as text": lambda stack: stack.token(exp="tomorrow"),
    "signed by another key": lambda stack: stack.token(key=SigningKey()),
    "of an unknown key": lambda stack: stack.token(header={"kid": "../../../../dev/null"}),
    "of a key it brings along": lambda stack: foreign_with_own_key(stack),
    "unsigned": lambda stack: unsigned(stack),
    "changed after signing": lambda stack: changed(stack),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
async def test_a_wrong_token_is_refused_without_saying_why(stack: Stack, make: Callable[[Stack], str]) -> None:
    reply = await stack.call("GET", ME, token=make(stack))
    assert (reply.status, reply.reason) == (401, "TOKEN_INVALID")
    assert reply.json["detail"] == "the access token is not valid"
    assert "UserService.GetMe" not in stack.seen


async def test_signing_in_and_public_keys_need_no_token(stack: Stack) -> None:
    async def login(_request: Any, _context: Any) -> Any:
        return auth_service_pb2.LoginResponse(expires_in=600)

    stack.answers["AuthService.Login"] = login
    reply = await stack.call("POST", "/v1/auth:login", {"email": "a@b.c", "password": "p"}, token=None)
    assert reply.json == {"accessToken": "", "refreshToken": "", "expiresIn": 600}
    keys = (await stack.call("GET", "/.well-known/jwks.json", token=None)).json["keys"]
    assert [key["kid"] for key in keys] == ["001"]


async def test_until_there_are_keys_a_token_is_not_called_invalid() -> None:
    async with running_stack(absent=frozenset({"user"})) as keyless:
        reply = await keyless.call("GET", ME)
        assert (reply.status, reply.reason) == (503, "UNAVAILABLE")
        assert reply.headers["retry-after"] == "1"


def foreign_with_own_key(stack: Stack) -> str:
    other = SigningKey()
    x = base64url(other.private.public_key().public_bytes_raw())
    return stack.token(key=other, header={"jwk": {"kty": "OKP", "crv": "Ed25519", "x": x}})


def unsigned(stack: Stack) -> str:
    _, payload, _ = stack.token().split(".")
    return f"{base64url(json.dumps({'alg': 'none'}).encode())}.{payload}."


def changed(stack: Stack) -> str:
    header, payload, signature = stack.token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return f"{header}.{base64url(json.dumps(claims | {'sub': 'users/2'}).encode())}.{signature}"
