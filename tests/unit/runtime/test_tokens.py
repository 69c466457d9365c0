"""Access tokens are accepted for one reason and refused for many, always in the same words."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from joserfc.jwk import OKPKey

from services.runtime.errors import Unauthenticated, Unavailable
from services.runtime.tokens import KeySet, TokenVerifier

ISSUER = "https://strandline.local"
KEY = OKPKey.generate_key("Ed25519")
FOREIGN = OKPKey.generate_key("Ed25519")
KEYS = KeySet({"k1": KEY})


async def keys(look_again: bool) -> KeySet:
    return KEYS


def token(key: OKPKey = KEY, header: dict[str, Any] | None = None, **claims: Any) -> str:
    body = {
        "iss": ISSUER,
        "aud": "strandline",
        "sub": "0192f0a0-0000-7000-8000-000000000001",
        "sid": "0192f0a0-0000-7000-8000-000000000002",
        "iat": now(),
        "nbf": now(),
        "exp": now() + 600,
        "scope": "admin",
    } | claims
    body = {name: value for name, value in body.items() if value is not None}
    protected = {"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"} | (header or {})
    protected = {name: value for name, value in protected.items() if value is not None}
    signed = f"{encode(json.dumps(protected).encode())}.{encode(json.dumps(body).encode())}"
    # By hand: the library refuses to make most of the tokens that are to be refused.
    private_key = key.private_key
    assert isinstance(private_key, Ed25519PrivateKey)
    return f"{signed}.{encode(private_key.sign(signed.encode()))}"


def forged(header: dict[str, Any], signature: bytes = b"") -> str:
    _, payload, _ = token().split(".")
    return ".".join((encode(json.dumps(header).encode()), payload, encode(signature)))


def now() -> int:
    return int(time.time())


def encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def hmac_with_the_public_key() -> str:
    _, payload, _ = token().split(".")
    signed = f"{encode(json.dumps({'alg': 'HS256', 'typ': 'at+jwt', 'kid': 'k1'}).encode())}.{payload}"
    return f"{signed}.{encode(hmac.digest(KEY.as_pem(private=False), signed.encode(), 'sha256'))}"


async def test_a_good_token_says_who_and_with_which_scopes() -> None:
    principal = await TokenVerifier(ISSUER, keys).verify(token())
    assert principal.user_id.endswith("1")
    assert principal.session_id.endswith("2")
    assert principal.is_administrator


# Made when the test runs: the times in them are relative to now.
BAD: dict[str, Callable[[], str]] = {
    "empty": lambda: "",
    "garbage": lambda: "a.b.c",
    "not ascii": lambda: "ü.b.c",
    "20 KB": lambda: "a" * 20_000,
    "alg none": lambda: forged({"alg": "none", "typ": "at+jwt", "kid": "k1"}),
    "empty signature": lambda: forged({"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"}),
    "HMAC with the public key": hmac_with_the_public_key,
    "foreign key": lambda: token(FOREIGN),
    "foreign key with an embedded one": lambda: token(FOREIGN, {"jwk": FOREIGN.as_dict(private=False)}),
    "unknown kid": lambda: token(header={"kid": "k2"}),
    "kid that is a path": lambda: token(header={"kid": "../../../../dev/null"}),
    "no kid": lambda: token(header={"kid": None}),
    "ID token": lambda: token(header={"typ": "JWT"}),
    "unknown crit": lambda: token(header={"crit": ["x"], "x": 1}),
    "other issuer": lambda: token(iss="https://elsewhere"),
    "other audience": lambda: token(aud="other"),
    "audience list": lambda: token(aud=["strandline"]),
    "expired": lambda: token(iat=now() - 700, nbf=now() - 700, exp=now() - 120),
    "not yet": lambda: token(nbf=now() + 120),
    "no exp": lambda: token(exp=None),
    "exp as a string": lambda: token(exp=str(now() + 600)),
    "valid for 30 days": lambda: token(exp=now() + 30 * 86400),
    "subject with a line break": lambda: token(sub="a\r\nb"),
    "subject that is a number": lambda: token(sub=7),
    "no session": lambda: token(sid=None),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
async def test_a_bad_token_is_refused_without_saying_why(bad: Callable[[], str]) -> None:
    with pytest.raises(Unauthenticated) as refused:
        await TokenVerifier(ISSUER, keys).verify(bad())
    assert (refused.value.reason, refused.value.message) == ("TOKEN_INVALID", "the access token is not valid")


async def test_a_remembered_token_still_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = TokenVerifier(ISSUER, keys)
    good = token()
    await verifier.verify(good)
    later = time.time() + 606
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(Unauthenticated):
        await verifier.verify(good)


async def test_a_token_that_cannot_be_checked_now_is_not_called_invalid() -> None:
    async def no_keys(look_again: bool) -> KeySet:
        raise Unavailable("ACCESS_UNVERIFIABLE", "not now")

    with pytest.raises(Unavailable):
        await TokenVerifier(ISSUER, no_keys).verify(token())
