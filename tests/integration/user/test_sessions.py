"""Refresh tokens: one successor each, a lost answer can be repeated, a copied token ends the session."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from strandline.stream.v1 import feed_pb2, log_service_pb2
from strandline.user.v1 import auth_service_pb2 as pb
from strandline.user.v1 import namespace_service_pb2

from services.user.sessions import RefreshTokens
from tests.integration.user.conftest import Person, Running, reason_of, refusal


async def refresh(user: Running, token: str) -> pb.RefreshResponse:
    answer: pb.RefreshResponse = await user.auth.Refresh(pb.RefreshRequest(refresh_token=token))
    return answer


def get_me(user: Running, access_token: str) -> Any:
    return user.users.GetMe(pb.GetMeRequest(), metadata=Person("", access_token=access_token).credentials)


async def session_of(user: Running, person: Person) -> str:
    presented = RefreshTokens(user.keys.refresh).read(person.refresh_token)
    assert presented is not None
    return presented.session_id


async def test_a_refreshed_session_goes_on_with_new_tokens(user: Running) -> None:
    person = await user.person()
    answer = await refresh(user, person.refresh_token)
    assert answer.refresh_token != person.refresh_token
    assert answer.expires_in == 600
    assert (await get_me(user, answer.access_token)).user.user_id == person.user_id
    assert (await refresh(user, answer.refresh_token)).refresh_token != answer.refresh_token


async def test_a_lost_answer_is_repeated_with_the_same_successor(user: Running) -> None:
    person = await user.person()
    first = await refresh(user, person.refresh_token)
    second = await refresh(user, person.refresh_token)
    assert first.refresh_token == second.refresh_token


async def test_of_many_refreshes_at_once_all_get_the_same_successor(user: Running) -> None:
    person = await user.person()
    answers = await asyncio.gather(*(refresh(user, person.refresh_token) for _ in range(20)))
    assert len({answer.refresh_token for answer in answers}) == 1


async def test_a_token_presented_after_its_successor_was_used_ends_the_session(user: Running) -> None:
    person = await user.person()
    successor = await refresh(user, person.refresh_token)
    newest = await refresh(user, successor.refresh_token)
    reused = await refusal(refresh(user, person.refresh_token))
    assert (reused.code(), reason_of(reused)) == (grpc.StatusCode.UNAUTHENTICATED, "REFRESH_TOKEN_REUSED")
    for token in (newest.refresh_token, successor.refresh_token, person.refresh_token):
        assert reason_of(await refusal(refresh(user, token))) == "REFRESH_TOKEN_REUSED"
    assert reason_of(await refusal(get_me(user, newest.access_token))) == "TOKEN_INVALID"
    rows = await user.rows("SELECT action FROM audit WHERE subject = %s ORDER BY id", await session_of(user, person))
    assert [action for (action,) in rows] == ["login", "refresh_reused"]


async def test_a_token_presented_again_after_ten_seconds_ends_the_session(user: Running) -> None:
    person = await user.person()
    successor = await refresh(user, person.refresh_token)
    await age(user, person, "11 seconds")
    assert reason_of(await refusal(refresh(user, person.refresh_token))) == "REFRESH_TOKEN_REUSED"
    assert reason_of(await refusal(refresh(user, successor.refresh_token))) == "REFRESH_TOKEN_REUSED"


async def test_reuse_and_use_at_once_leave_no_living_session(user: Running) -> None:
    person = await user.person()
    successor = await refresh(user, person.refresh_token)
    await age(user, person, "11 seconds")
    await asyncio.gather(
        *(refresh(user, token) for token in (person.refresh_token, successor.refresh_token) * 5),
        return_exceptions=True,
    )
    rows = await user.rows("SELECT end_reason FROM sessions WHERE id = %s::uuid", await session_of(user, person))
    assert rows == [("refresh_reused",)]


async def test_an_idle_session_ends_after_14_days_and_any_after_30(user: Running) -> None:
    idle, old = await user.person(), await user.person()
    await age(user, idle, "14 days")
    assert reason_of(await refusal(refresh(user, idle.refresh_token))) == "TOKEN_INVALID"
    await user.execute(
        "UPDATE sessions SET expire_time = expire_time - interval '30 days' WHERE id = %s::uuid",
        await session_of(user, old),
    )
    assert reason_of(await refusal(refresh(user, old.refresh_token))) == "TOKEN_INVALID"


async def test_refreshing_does_not_postpone_the_end_of_the_session(user: Running) -> None:
    person = await user.person()
    query = "SELECT expire_time FROM sessions WHERE id = %s::uuid"
    before = await user.rows(query, await session_of(user, person))
    await refresh(user, person.refresh_token)
    assert await user.rows(query, await session_of(user, person)) == before


async def test_logout_ends_access_at_once_and_is_told_to_everybody(user: Running) -> None:
    person = await user.person()
    session_id = await session_of(user, person)
    await user.auth.Logout(pb.LogoutRequest(refresh_token=person.refresh_token))
    assert reason_of(await refusal(get_me(user, person.access_token))) == "TOKEN_INVALID"
    assert reason_of(await refusal(refresh(user, person.refresh_token))) == "TOKEN_INVALID"
    answer = await user.access.CheckAccess(
        namespace_service_pb2.CheckAccessRequest(user_id=person.user_id, session_id=session_id)
    )
    assert answer.revoked
    head = await user.head()
    request = log_service_pb2.ReadUnitsRequest(namespace_id="system", after_revision=head.revision - 1)
    unit = feed_pb2.Unit.FromString((await user.log.ReadUnits(request)).units[0])
    (change,) = unit.changes
    assert change.entity.name == f"namespaces/system/types/revocation/entities/{session_id}"
    assert change.entity.data.fields["user"].string_value == person.user_id
    assert 600 <= change.entity.data.fields["expiresAt"].number_value - unit.commit_time.seconds <= 720


async def test_logging_out_twice_or_with_an_unknown_token_is_no_error(user: Running) -> None:
    person = await user.person()
    for _ in range(2):
        await user.auth.Logout(pb.LogoutRequest(refresh_token=person.refresh_token))
    unknown = "slr_unknown"
    await user.auth.Logout(pb.LogoutRequest(refresh_token=unknown))


async def test_a_made_up_refresh_token_is_refused(user: Running) -> None:
    person = await user.person()
    for token in ("slr_", "nonsense", person.refresh_token[:-1] + ("A" if person.refresh_token[-1] != "A" else "B")):
        assert reason_of(await refusal(refresh(user, token))) == "TOKEN_INVALID"


async def age(user: Running, person: Person, how_much: str) -> None:
    """Make the last rotation of the session older."""
    await user.execute(
        "UPDATE sessions SET rotate_time = rotate_time - %s::interval WHERE id = %s::uuid",
        how_much,
        await session_of(user, person),
    )
