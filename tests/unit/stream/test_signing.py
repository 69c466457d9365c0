"""Signatures are those of Standard Webhooks: other people's libraries verify them."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64decode

from hypothesis import given
from hypothesis import strategies as st

from services.stream import signing


def test_a_signature_is_the_one_that_the_specification_publishes() -> None:
    secret = b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signing.signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_new_secret_is_shown_with_its_prefix_and_has_256_random_bits() -> None:
    shown = {signing.show(signing.new_secret()) for _ in range(100)}
    assert len(shown) == 100
    for text in shown:
        assert text.startswith("whsec_")
        assert len(b64decode(text.removeprefix("whsec_"), validate=True)) == 32


@given(st.binary(max_size=200), st.integers(0, 2**40), st.lists(st.binary(min_size=24, max_size=64), min_size=1))
def test_a_receiver_that_knows_any_one_of_the_secrets_can_verify(body: bytes, now: int, secrets: list[bytes]) -> None:
    carried = signing.headers(secrets, "msg_1", now, body)
    assert carried["webhook-id"] == "msg_1"
    assert carried["webhook-timestamp"] == str(now)
    signatures = carried["webhook-signature"].split(" ")
    for secret, signature in zip(secrets, signatures, strict=True):
        version, _, digest = signature.partition(",")
        assert version == "v1"
        content = f"msg_1.{now}.".encode() + body
        assert hmac.compare_digest(b64decode(digest), hmac.new(secret, content, hashlib.sha256).digest())
