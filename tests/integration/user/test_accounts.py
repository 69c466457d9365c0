"""Registering, verifying, signing in: what works, and what nobody learns from it."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import threading
from base64 import urlsafe_b64decode
from collections import Counter

import grpc
import pytest
from argon2 import PasswordHasher
from strandline.user.v1 import auth_service_pb2 as pb

from services.runtime.tokens import KeySet, TokenVerifier
from services.user.passwords import _MAX_IN_HAND
from tests.integration.user.conftest import PASSWORD, Mailbox, Person, Running, error_info, reason_of, refusal, token_in


def login(email: str, password: str = PASSWORD) -> pb.LoginRequest:
    return pb.LoginRequest(email=email, password=password)


async def test_a_registered_and_verified_person_signs_in_and_reads_their_own_data(user: Running) -> None:
    await user.register("Grace.Hopper@Example.com", given_name="Grace", family_name="Höpper")
    (mail,) = await user.mailbox.wait_for("Grace.Hopper@Example.com")
    await user.auth.VerifyEmail(pb.VerifyEmailRequest(token=token_in(mail)))
    person = Person("grace.hopper@EXAMPLE.com")
    await user.sign_in(person)
    me = (await user.users.GetMe(pb.GetMeRequest(), metadata=person.credentials)).user
    assert (me.email, me.given_name, me.family_name) == ("Grace.Hopper@Example.com", "Grace", "Höpper")
    assert me.name == f"users/{me.user_id}"
    assert me.email_verified


async def test_a_mailed_token_works_once(user: Running) -> None:
    await user.register("once@example.com")
    token = token_in((await user.mailbox.wait_for("once@example.com"))[0])
    await user.auth.VerifyEmail(pb.VerifyEmailRequest(token=token))
    again = await refusal(user.auth.VerifyEmail(pb.VerifyEmailRequest(token=token)))
    made_up = await refusal(user.auth.VerifyEmail(pb.VerifyEmailRequest(token="slv_" + "x" * 43)))
    assert (again.code(), again.details()) == (made_up.code(), made_up.details())
    assert (again.code(), reason_of(again)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_mailed_token_dies_after_72_hours(user: Running) -> None:
    await user.register("late@example.com")
    token = token_in((await user.mailbox.wait_for("late@example.com"))[0])
    await user.execute("UPDATE verifications SET expire_time = expire_time - interval '72 hours'")
    assert reason_of(await refusal(user.auth.VerifyEmail(pb.VerifyEmailRequest(token=token)))) == "INVALID_FIELD"


async def test_unknown_wrong_and_unverified_look_the_same(user: Running) -> None:
    person = await user.person()
    await user.register("unverified@example.com")
    failures = [
        await refusal(user.auth.Login(login(email, password)))
        for email, password in (
            ("nobody@example.com", PASSWORD),
            (person.email, "not the password"),
            ("unverified@example.com", PASSWORD),
            ("no address at all", PASSWORD),
        )
    ]
    seen = {(failure.code(), failure.details(), str(failure.trailing_metadata())) for failure in failures}
    assert len(seen) == 1
    assert reason_of(failures[0]) == "LOGIN_FAILED"


async def test_unknown_and_known_addresses_are_the_same_work(user: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hash is what takes time; without it an unknown address would answer in a tenth of it."""
    person = await user.person()
    hashed: list[list[str]] = []
    verify = PasswordHasher.verify

    def verify_and_tell(self: PasswordHasher, hash: str, password: str | bytes) -> bool:
        *parameters, _, _ = hash.split("$")
        hashed.append(parameters)
        return verify(self, hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", verify_and_tell)
    for email in (person.email, "nobody-knows@example.com"):
        await refusal(user.auth.Login(login(email, "not the password")))
    of_known, of_unknown = hashed
    assert of_known == of_unknown
    assert of_known[1] == "argon2id"


async def test_registering_a_known_address_answers_the_same_and_tells_its_owner(user: Running) -> None:
    person = await user.person()
    variant = person.email.upper()
    first = await user.auth.Register(pb.RegisterRequest(email="fresh@example.com", password=PASSWORD))
    other = "another long password"
    second = await user.auth.Register(pb.RegisterRequest(email=variant, password=other))
    assert first == second == pb.RegisterResponse()
    mails = await user.mailbox.wait_for(person.email, 2)  # to the address as registered, not as written now
    assert "already have" in mails[1]["Subject"]
    assert reason_of(await refusal(user.auth.Login(login(person.email, other)))) == "LOGIN_FAILED"
    await user.sign_in(person)


async def test_a_second_registrant_cannot_take_over_the_first_ones_registration(user: Running) -> None:
    """The token mailed for a registration verifies that registration's password, whoever registered later."""
    await user.register("mary@example.com", "the password of mary")
    (hers,) = await user.mailbox.wait_for("mary@example.com")
    await user.register("MARY@example.com", "the password of mallory")
    (mallorys,) = await user.mailbox.wait_for("MARY@example.com")
    await user.auth.VerifyEmail(pb.VerifyEmailRequest(token=token_in(hers)))
    await user.auth.Login(login("mary@example.com", "the password of mary"))
    failure = await refusal(user.auth.Login(login("mary@example.com", "the password of mallory")))
    assert reason_of(failure) == "LOGIN_FAILED"
    late = await refusal(user.auth.VerifyEmail(pb.VerifyEmailRequest(token=token_in(mallorys))))
    assert reason_of(late) == "INVALID_FIELD"


async def test_of_two_registrations_verified_at_once_one_gets_the_address(user: Running) -> None:
    await user.register("race@example.com", "the password of one")
    await user.register("race@example.com", "the password of two")
    mails = await user.mailbox.wait_for("race@example.com", 2)
    outcomes = await asyncio.gather(
        *(user.auth.VerifyEmail(pb.VerifyEmailRequest(token=token_in(mail))) for mail in mails), return_exceptions=True
    )
    assert sum(isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes) == 1
    signed_in = await asyncio.gather(
        *(user.auth.Login(login("race@example.com", f"the password of {name}")) for name in ("one", "two")),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, grpc.aio.AioRpcError) for outcome in signed_in) == 1


@pytest.mark.parametrize(
    "email", ["a@x.com\r\nBcc: z@z.com", "a@x.com\n", "no-at-sign.example", "a b@example.com", "a\x00@example.com"]
)
async def test_what_is_no_address_is_refused_and_no_mail_is_sent(user: Running, email: str) -> None:
    failure = await refusal(user.auth.Register(pb.RegisterRequest(email=email, password=PASSWORD)))
    assert (failure.code(), reason_of(failure)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert email not in (failure.details() or "")
    await user.person()  # whose mail has come, although it was sent later
    assert not {email, "a@x.com", "z@z.com"} & set(user.mailbox.recipients)


@pytest.mark.parametrize(
    "password", ["eleven char", "x" * 129, "passwordpassword", "Password1234", "234567890123", "averylonglocalpart"]
)
async def test_a_weak_password_is_refused(user: Running, password: str) -> None:
    request = pb.RegisterRequest(email="averylonglocalpart@example.com", password=password)
    assert reason_of(await refusal(user.auth.Register(request))) == "INVALID_FIELD"


async def test_all_128_characters_of_a_password_count(user: Running) -> None:
    password = "ünïcode and spaces " * 6 + "!" * 14
    assert len(password) == 128
    await user.register("long@example.com", password)
    (mail,) = await user.mailbox.wait_for("long@example.com")
    await user.auth.VerifyEmail(pb.VerifyEmailRequest(token=token_in(mail)))
    await user.auth.Login(login("long@example.com", password))
    failure = await refusal(user.auth.Login(login("long@example.com", password[:-1] + "?")))
    assert reason_of(failure) == "LOGIN_FAILED"


@pytest.mark.parametrize("known", [True, False])
async def test_the_sixth_wrong_password_in_a_row_is_rate_limited(user: Running, known: bool) -> None:
    email = (await user.person()).email if known else "stranger@example.com"
    for _ in range(5):
        assert reason_of(await refusal(user.auth.Login(login(email, "not the password")))) == "LOGIN_FAILED"
    assert await block_for_another_hour(user, attempts=5) == {2}
    limited = await refusal(user.auth.Login(login(email)))  # the right password does not help either
    assert (limited.code(), reason_of(limited)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    trailers = dict(limited.trailing_metadata() or ())
    assert 3000 < int(trailers["retry-after"]) <= 3602
    assert error_info(limited).metadata["retry_after"] == trailers["retry-after"]


async def block_for_another_hour(user: Running, attempts: int) -> set[int]:
    """Make sure that who has made so many attempts still has to wait; for how many seconds it was."""
    rows = await user.rows(
        """UPDATE throttles SET blocked_until = blocked_until + interval '1 hour'
        WHERE purpose = 'login' AND attempts = %s AND blocked_until < now() + interval '1 minute'
        RETURNING round(extract(epoch FROM blocked_until - last_time))::int - 3600""",
        attempts,
    )
    return {seconds for (seconds,) in rows}


async def test_the_delay_doubles_ends_and_is_forgotten_after_success(user: Running) -> None:
    person = await user.person()
    for _ in range(5):
        await refusal(user.auth.Login(login(person.email, "not the password")))
    await user.execute("UPDATE throttles SET blocked_until = now() WHERE purpose = 'login' AND attempts = 5")
    await refusal(user.auth.Login(login(person.email, "not the password")))
    assert await block_for_another_hour(user, attempts=6) == {4}
    assert reason_of(await refusal(user.auth.Login(login(person.email)))) == "RATE_LIMITED"
    await user.execute("UPDATE throttles SET blocked_until = now() WHERE purpose = 'login' AND attempts = 6")
    await user.sign_in(person)
    assert reason_of(await refusal(user.auth.Login(login(person.email, "not the password")))) == "LOGIN_FAILED"


async def test_many_guesses_at_once_do_not_slip_past_the_limit(user: Running) -> None:
    person = await user.person()
    outcomes = await asyncio.gather(
        *(user.auth.Login(login(person.email, f"guess number {n}")) for n in range(20)), return_exceptions=True
    )
    reasons = [reason_of(outcome) for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert len(reasons) == 20
    assert reasons.count("LOGIN_FAILED") <= 5


async def test_a_flood_of_sign_ins_is_answered_with_overloaded_and_nobody_waits_long(user: Running) -> None:
    nothing_is_hashed = threading.Event()
    threads = user.service.registration._passwords._threads
    for _ in range(threads._max_workers):
        threads.submit(nothing_is_hashed.wait)
    logins = [asyncio.create_task(refusal(user.auth.Login(login(f"flood{n}@example.com")))) for n in range(200)]
    try:
        async with asyncio.timeout(30):
            for refused in itertools.islice(asyncio.as_completed(logins), 200 - _MAX_IN_HAND):
                assert reason_of(await refused) == "OVERLOADED"
    finally:
        nothing_is_hashed.set()
    reasons = Counter(map(reason_of, await asyncio.gather(*logins)))
    assert reasons == {"LOGIN_FAILED": _MAX_IN_HAND, "OVERLOADED": 200 - _MAX_IN_HAND}


async def test_mail_to_one_address_is_limited_and_the_answer_does_not_say_so(user: Running) -> None:
    for _ in range(8):
        await user.register("flooded@example.com")
    await user.mailbox.wait_for("flooded@example.com", 5)
    await asyncio.sleep(0.1)
    assert len(user.mailbox.to("flooded@example.com")) == 5


async def test_a_mail_that_is_refused_for_now_is_sent_again(user: Running, mailbox: Mailbox) -> None:
    mailbox.refuse = 2
    await user.register("patience@example.com")
    assert await mailbox.wait_for("patience@example.com")


async def test_access_tokens_carry_what_was_agreed_and_verify_with_the_published_keys(user: Running) -> None:
    person = await user.person()
    header, claims = (json.loads(urlsafe_b64decode(part + "==")) for part in person.access_token.split(".")[:2])
    answer = await user.auth.GetJwks(pb.GetJwksRequest())
    assert header == {"alg": "EdDSA", "typ": "at+jwt", "kid": header["kid"]}
    assert header["kid"] in {key.kid for key in answer.keys}
    assert len(answer.keys) == 2
    assert set(claims) == {"iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp", "scope"}
    assert (claims["aud"], claims["sub"], claims["scope"]) == ("strandline", person.user_id, "")
    assert claims["exp"] - claims["iat"] == 600
    keys = KeySet.from_jwks({"kid": key.kid, "crv": key.crv, "x": key.x} for key in answer.keys)

    async def published(look_again: bool) -> KeySet:
        return keys

    principal = await TokenVerifier("https://strandline.local", published).verify(person.access_token)
    assert (principal.user_id, principal.session_id) == (person.user_id, claims["sid"])


async def test_without_a_token_or_with_a_broken_one_nothing_is_answered(user: Running) -> None:
    assert reason_of(await refusal(user.users.GetMe(pb.GetMeRequest()))) == "TOKEN_MISSING"
    person = await user.person()
    broken = Person("", access_token=person.access_token[:-4] + "AAAA")
    failure = await refusal(user.users.GetMe(pb.GetMeRequest(), metadata=broken.credentials))
    assert reason_of(failure) == "TOKEN_INVALID"


async def test_what_happened_is_in_the_audit_trail_by_id_alone(user: Running) -> None:
    person = await user.person()
    await refusal(user.auth.Login(login(person.email, "not the password")))
    rows = await user.rows("SELECT action FROM audit WHERE actor = %s ORDER BY id", person.user_id)
    assert [action for (action,) in rows] == ["registered", "user_verified", "login", "login_failed"]


async def test_somebody_may_sign_in_from_several_places_at_once(user: Running) -> None:
    person = await user.person()
    for _ in range(5):
        await asyncio.gather(*(user.auth.Login(login(person.email)) for _ in range(4)))


async def test_a_password_hashed_with_weaker_parameters_is_hashed_again_at_the_next_sign_in(user: Running) -> None:
    ann = await user.person()
    query = "SELECT password_hash FROM users WHERE id = %s"
    (made,) = (await user.rows(query, ann.user_id))[0]
    peppered = hmac.digest(user.keys.pepper, PASSWORD.encode(), "sha256")
    weak = "1:" + PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash(peppered)
    await user.execute("UPDATE users SET password_hash = %s WHERE id = %s", weak, ann.user_id)
    with pytest.raises(grpc.aio.AioRpcError):
        await user.sign_in(ann, "not the password")
    assert await user.rows(query, ann.user_id) == [(weak,)]
    await user.sign_in(ann)
    (again,) = (await user.rows(query, ann.user_id))[0]
    assert again.split("$")[:-2] == made.split("$")[:-2] != weak.split("$")[:-2]
    await user.sign_in(ann)
    assert await user.rows(query, ann.user_id) == [(again,)]
