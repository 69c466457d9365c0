"""Who may do what, from registration to revocation, through the edge."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import pytest

from .rest import Answer, Rest

PASSWORD = "correct horse battery staple"
# How long to wait for what a change of access does; the contract gives it two seconds on a machine that has them.
PATIENCE_SECONDS = 30.0


@dataclass
class Person:
    """Somebody who registered, verified an address and signed in."""

    rest: Rest
    user_id: str
    refresh_token: str
    access_token: str


async def mailed_token(platform: Any, address: str) -> str:
    """The verification token that was mailed to *address*."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        listed = await asyncio.to_thread(platform.run, "mail", "--json")
        for line in listed.stdout.splitlines():
            mail = json.loads(line)
            if address in mail["to"] and (found := re.search(r"[A-Za-z0-9_-]{40,}", mail["text"])):
                return found[0]
        await asyncio.sleep(0.2)
    raise AssertionError(f"no mail to {address}")


async def person(platform: Any) -> Person:
    anonymous = Rest(platform.rest)
    address = f"{uuid.uuid4().hex}@example.com"
    body = {"email": address, "password": PASSWORD, "givenName": "Ann", "familyName": "Bee"}
    registered = await anonymous("POST", "/v1/auth:register", body)
    assert (registered.status, registered.json) == (202, {})
    early = await anonymous("POST", "/v1/auth:login", {"email": address, "password": PASSWORD})
    assert early.problem == (401, "LOGIN_FAILED")
    await anonymous.ok("POST", "/v1/auth:verifyEmail", {"token": await mailed_token(platform, address)})
    session = await anonymous.ok("POST", "/v1/auth:login", {"email": address, "password": PASSWORD})
    await anonymous.close()
    rest = Rest(platform.rest, session["accessToken"])
    me = await rest.ok("GET", "/v1/users/me")
    assert (me["email"], me["givenName"], me["emailVerified"]) == (address, "Ann", True)
    return Person(rest, me["userId"], session["refreshToken"], session["accessToken"])


@pytest.fixture(scope="module")
async def people(platform: Any) -> AsyncIterator[tuple[Person, Person]]:
    """An owner and somebody else."""
    owner, other = await person(platform), await person(platform)
    yield owner, other
    await owner.rest.close()
    await other.rest.close()


@pytest.fixture
async def harbour(people: tuple[Person, Person]) -> str:
    """Path of a new namespace of the owner's, with one type."""
    namespace = f"harbour-{uuid.uuid4().hex[:8]}"
    owner, _ = people
    await owner.rest.ok("POST", "/v1/namespaces", {"displayName": "Harbour"}, params={"namespace_id": namespace})
    body = {"schema": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    await owner.rest.ok("POST", f"/v1/namespaces/{namespace}/types", body, params={"type_id": "ship"})
    return f"/v1/namespaces/{namespace}"


async def until(ask: Callable[[], Awaitable[Answer]], wanted: Callable[[Answer], bool]) -> Answer:
    """The first answer that is as *wanted*."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        answer = await ask()
        if wanted(answer):
            return answer
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.05)


async def test_a_stranger_sees_nothing_and_a_viewer_may_not_write(people: tuple[Person, Person], harbour: str) -> None:
    owner, other = people
    ships = f"{harbour}/types/ship/entities"

    async def write() -> Answer:
        return await other.rest("POST", ships, {"data": {"n": 1}})

    await owner.rest.ok("POST", ships, {"data": {"n": 1}}, params={"entity_id": "one"})
    for path in (ships, f"{ships}/one", harbour, f"{harbour}:watch?now=true"):
        assert (await other.rest("GET", path)).problem == (404, "NOT_FOUND")
    assert (await write()).problem == (404, "NOT_FOUND")
    assert (await other.rest("DELETE", f"{ships}/one")).problem == (404, "NOT_FOUND")

    member = {"userId": other.user_id, "role": "VIEWER"}
    await owner.rest.ok("POST", f"{harbour}/members", member)
    await until(lambda: other.rest("GET", f"{ships}/one"), lambda answer: answer.status == 200)
    assert (await write()).problem == (403, "ROLE_INSUFFICIENT")
    assert (await other.rest("POST", f"{harbour}/members", member)).problem == (403, "ROLE_INSUFFICIENT")

    of_other = f"{harbour}/members/{other.user_id}"
    await owner.rest.ok("PATCH", of_other, {"role": "EDITOR"})
    await until(write, lambda answer: answer.status == 200)
    await owner.rest.ok("PATCH", of_other, {"role": "VIEWER"})
    await until(write, lambda answer: answer.status == 403)
    await owner.rest.ok("DELETE", of_other)
    await until(write, lambda answer: answer.status == 404)
    await until(lambda: other.rest("GET", f"{ships}/one"), lambda answer: answer.status == 404)


async def test_a_removed_members_stream_ends(platform: Any, people: tuple[Person, Person], harbour: str) -> None:
    owner, other = people
    await owner.rest.ok("POST", f"{harbour}/members", {"userId": other.user_id, "role": "VIEWER"})
    headers = {"authorization": f"Bearer {other.access_token}"}
    async with (
        aiohttp.ClientSession(platform.rest, headers=headers) as session,
        session.get(f"{harbour}:watch", params={"now": "true"}) as feed,
    ):
        assert feed.status == 200, await feed.text()
        assert "progress" in json.loads(await feed.content.readline())
        await owner.rest.ok("DELETE", f"{harbour}/members/{other.user_id}")
        lines = (await asyncio.wait_for(feed.content.read(), PATIENCE_SECONDS)).splitlines()
    assert json.loads(lines[-1])["end"]["reason"] == "ACCESS_REVOKED"


async def test_the_last_owner_stays(people: tuple[Person, Person], harbour: str) -> None:
    owner, _ = people
    of_owner = f"{harbour}/members/{owner.user_id}"
    assert (await owner.rest("DELETE", of_owner)).problem == (400, "LAST_OWNER")
    assert (await owner.rest("PATCH", of_owner, {"role": "VIEWER"})).problem == (400, "LAST_OWNER")


async def test_a_deleted_namespace_is_gone_ends_its_feeds_and_comes_back_with_another_epoch(
    platform: Any, people: tuple[Person, Person], harbour: str
) -> None:
    owner, _ = people
    ships = f"{harbour}/types/ship/entities"
    await owner.rest.ok("POST", ships, {"data": {"n": 1}}, params={"entity_id": "one"})
    epoch, revision = (await owner.rest("GET", f"{ships}/one")).position
    headers = {"authorization": f"Bearer {owner.access_token}"}
    async with (
        aiohttp.ClientSession(platform.rest, headers=headers) as session,
        session.get(f"{harbour}:watch", params={"now": "true"}) as feed,
    ):
        await feed.content.readline()
        await owner.rest.ok("DELETE", harbour)
        lines = (await asyncio.wait_for(feed.content.read(), PATIENCE_SECONDS)).splitlines()
    assert json.loads(lines[-1])["end"]["reason"] == "NAMESPACE_DELETED"
    await until(lambda: owner.rest("GET", f"{ships}/one"), lambda answer: answer.status == 404)

    deadline = time.monotonic() + 60
    namespace = {"namespace_id": harbour.rsplit("/", 1)[1]}
    while (made := await owner.rest("POST", "/v1/namespaces", {}, params=namespace)).status == 409:
        assert time.monotonic() < deadline, made
        await asyncio.sleep(0.1)
    assert made.status == 200, made
    assert made.json["epoch"] != epoch
    answer = await owner.rest("GET", f"{harbour}:watch", params={"after_revision": str(revision), "epoch": epoch})
    assert answer.problem == (400, "EPOCH_CHANGED")
    assert (await owner.rest.ok("GET", f"{harbour}/types"))["types"] == []


async def test_logout_ends_the_session_everywhere(platform: Any) -> None:
    someone = await person(platform)
    anonymous = Rest(platform.rest)
    await anonymous.ok("POST", "/v1/auth:logout", {"refreshToken": someone.refresh_token})
    for path in ("/v1/users/me", "/v1/namespaces/demo/types", "/v1/namespaces/demo:watch?now=true"):
        answer = await until(partial(someone.rest, "GET", path), lambda answer: answer.status == 401)
        assert answer.problem == (401, "TOKEN_INVALID")
    dead = await anonymous("POST", "/v1/auth:refresh", {"refreshToken": someone.refresh_token})
    assert dead.problem[0] == 401
    await anonymous.close()
    await someone.rest.close()


async def test_a_refresh_token_used_twice_ends_the_session(platform: Any) -> None:
    someone = await person(platform)
    anonymous = Rest(platform.rest)
    first = await anonymous.ok("POST", "/v1/auth:refresh", {"refreshToken": someone.refresh_token})
    second = await anonymous.ok("POST", "/v1/auth:refresh", {"refreshToken": first["refreshToken"]})
    reused = await anonymous("POST", "/v1/auth:refresh", {"refreshToken": someone.refresh_token})
    assert reused.problem == (401, "REFRESH_TOKEN_REUSED")
    assert (await anonymous("POST", "/v1/auth:refresh", {"refreshToken": second["refreshToken"]})).problem[0] == 401
    await until(lambda: someone.rest("GET", "/v1/users/me"), lambda answer: answer.status == 401)
    await anonymous.close()
    await someone.rest.close()


async def test_registration_and_login_do_not_tell_who_is_known(platform: Any) -> None:
    anonymous = Rest(platform.rest)
    someone = f"{uuid.uuid4().hex}@example.com"
    body = {"email": someone, "password": PASSWORD, "givenName": "", "familyName": ""}
    answers = [await anonymous("POST", "/v1/auth:register", body) for _ in range(2)]
    assert {(answer.status, answer.text) for answer in answers} == {(202, "{}")}
    known = await anonymous("POST", "/v1/auth:login", {"email": someone, "password": "wrong" * 4})
    unknown = await anonymous("POST", "/v1/auth:login", {"email": f"x{someone}", "password": "wrong" * 4})
    assert known.problem == unknown.problem == (401, "LOGIN_FAILED")
    assert known.json | {"instance": ""} == unknown.json | {"instance": ""}
    await anonymous.close()


async def test_sign_in_is_limited_to_100_requests_in_15_minutes_for_one_address(platform: Any) -> None:
    anonymous = Rest(platform.rest)
    began = time.monotonic()
    passed = 0
    while (answer := await anonymous("POST", "/v1/auth:logout", {"refreshToken": "slr_x"})).status == 200:
        passed += 1
    assert 100 <= passed <= 100 + (time.monotonic() - began) / 9  # one more every nine seconds
    assert answer.problem == (429, "RATE_LIMITED")
    assert int(answer.headers["retry-after"]) > 0
    await anonymous.close()


async def test_a_page_reads_by_a_cookie_until_its_session_ends(platform: Any, harbour: str) -> None:
    """The whole way of a browser, through the edge: ticket, cookie, feed, and the end of the session."""
    reader = await person(platform)
    page = {"origin": platform.rest}
    create = {"create": {"watchId": "a", "watch": {"parent": harbour.removeprefix("/v1/"), "now": True}}}
    ticket = (await reader.rest.ok("POST", "/v1/namespaces:issueTicket", {}, headers=page))["ticket"]
    anonymous = Rest(platform.rest)
    try:
        foreign = await anonymous(
            "POST", "/v1/namespaces:redeemTicket", {"ticket": ticket}, headers={"origin": "http://x"}
        )
        assert foreign.problem == (403, "ORIGIN_NOT_ALLOWED")
        redeemed = await anonymous("POST", "/v1/namespaces:redeemTicket", {"ticket": ticket}, headers=page)
        assert (redeemed.status, redeemed.json["path"]) == (200, "/v1/namespaces:watch")
        again = await anonymous("POST", "/v1/namespaces:redeemTicket", {"ticket": ticket}, headers=page)
        assert again.problem == (401, "TICKET_INVALID")
        cookie = {"cookie": redeemed.headers["set-cookie"].partition(";")[0]}
        async with (
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.ws_connect(f"{platform.rest}/v1/namespaces:watch", headers=page | cookie) as socket,
        ):
            await socket.send_json(create)
            assert (await socket.receive_json(timeout=30))["canceled"]["status"]["code"] == 5  # a stranger here
            await reader.rest.ok("POST", "/v1/auth:logout", {"refreshToken": reader.refresh_token})
            async with asyncio.timeout(30):
                while True:
                    await socket.send_json(create)
                    if (await socket.receive_json())["canceled"]["status"]["code"] == 16:
                        break
    finally:
        await anonymous.close()
        await reader.rest.close()
