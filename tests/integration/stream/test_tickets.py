"""A page gets in: a ticket for its access token, a cookie for the ticket, feeds for the cookie, and nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any

import aiohttp
import grpc
import psycopg
import pytest
from multidict import CIMultiDict
from strandline.stream.v1 import ticket_service_pb2 as pb
from strandline.stream.v1 import ticket_service_pb2_grpc

from services.runtime.database import INDEX_WALKS_ONLY
from services.runtime.tokens import LEEWAY, REVOCATION_SECONDS
from services.stream import passes
from services.stream.passes import Passes
from services.stream.ticket_store import forget

from .conftest import TIDES, MakeStream, found
from .owner import SYSTEM, Owner
from .service import ANN, SESSION, StreamService, access_token, reason
from .test_multiplex import REEFS

HOST = "feeds.example:8080"
PAGE = {"origin": f"http://{HOST}"}
# What a browser says of an EventSource of a page of the same origin: it sends no Origin then.
EVENTS = {"accept": "text/event-stream", "sec-fetch-site": "same-origin"}
WATCH = "/v1/namespaces/tides:watch?now=true"
MANY = "/v1/namespaces:watch"
MEMBERS = "/v1/namespaces/tides/members:watch?now=true"
FEED = "namespaces/tides"


@dataclass(frozen=True)
class Browser:
    """A page at the edge, as the edge shows it to one replica."""

    stream: StreamService
    host: str = HOST

    async def issue(self, parent: str = FEED, token: str = "", **headers: str) -> str:
        metadata = {"authorization": f"Bearer {token or access_token()}"} | PAGE | headers
        async with self._stub() as stub:
            answer = await stub.IssueTicket(pb.IssueTicketRequest(parent=parent), metadata=self._metadata(metadata))
        return str(answer.ticket)

    async def redeem(self, ticket: str, headers: Mapping[str, str] = PAGE) -> str:
        """The cookie's header as it was set."""
        async with self._stub() as stub:
            call = stub.RedeemTicket(pb.RedeemTicketRequest(ticket=ticket), metadata=self._metadata(headers))
            await call
            return str(dict(await call.initial_metadata())["set-cookie"])

    async def refused(self, ticket: str, headers: Mapping[str, str] = PAGE) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await self.redeem(ticket, headers)
        return reason(raised.value)[0]

    async def cookie(self, parent: str = FEED, token: str = "") -> str:
        """A cookie as a browser sends it."""
        return (await self.redeem(await self.issue(parent, token))).partition(";")[0]

    @asynccontextmanager
    async def get(self, path: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        sent = CIMultiDict(host=self.host)
        sent.extend(headers)
        async with (
            self.stream.session(token="") as session,
            session.get(f"http://stream{path}", headers=sent) as response,
        ):
            yield response

    async def outcome(self, path: str, headers: Mapping[str, str]) -> tuple[int, str]:
        """Status and reason of a refusal; the reason is empty when it is none."""
        async with self.get(path, headers) as response:
            if response.status in (101, 200):
                return response.status, ""
            return response.status, (await response.json(content_type=None))["reason"]

    @asynccontextmanager
    async def _stub(self) -> AsyncIterator[ticket_service_pb2_grpc.TicketServiceAsyncStub]:
        async with grpc.aio.insecure_channel(self.stream.grpc_address) as channel:
            yield ticket_service_pb2_grpc.TicketServiceStub(channel)

    def _metadata(self, headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        rest = {"x-strandline-rest": "1", "x-strandline-host": self.host}
        return tuple((rest | dict(headers)).items())


@pytest.fixture
async def stream(make_stream: MakeStream, own_url: str) -> StreamService:
    return await make_stream(own_url=own_url)


@pytest.fixture
def browser(stream: StreamService) -> Browser:
    return Browser(stream)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """SSE events: id and data."""
    while True:
        raw = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 15)
        fields = dict(line.split(": ", 1) for line in raw.decode().rstrip("\n").split("\n"))
        yield fields["id"], json.loads(fields["data"])


async def test_a_page_reads_by_event_source_and_goes_on_where_it_stopped(owner: Owner, browser: Browser) -> None:
    cookie = {"cookie": await browser.cookie()}
    async with browser.get(WATCH, EVENTS | cookie) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        feed = events(response)
        last, _ = await anext(feed)
    await owner.put(TIDES, "a", n=1)
    async with browser.get(WATCH, EVENTS | cookie | {"last-event-id": last}) as response:
        _, message = await anext(events(response))
    assert [unit["revision"] for unit in message["units"]["units"]] == ["1"]


async def test_a_page_reads_by_websocket_one_feed_or_many(owner: Owner, browser: Browser) -> None:
    async with browser.stream.session(token="") as session:
        headers = {"cookie": await browser.cookie(), "host": HOST} | PAGE
        async with session.ws_connect(f"http://stream{WATCH}", headers=headers) as socket:
            assert "progress" in await socket.receive_json(timeout=15)
        headers = {"cookie": await browser.cookie(""), "host": HOST} | PAGE
        async with session.ws_connect(f"http://stream{MANY}", headers=headers) as socket:
            await socket.send_json({"create": {"watchId": "a", "watch": {"parent": FEED, "now": True}}})
            assert "created" in await socket.receive_json(timeout=15)
            await socket.send_json({"refresh": {"accessToken": access_token()}})
            await socket.send_json({"cancel": {"watchId": "b"}})
            while (said := await socket.receive_json(timeout=15))["watchId"] != "b":
                pass
            assert said["canceled"]["status"]["code"] == 5  # so the refresh was taken


async def test_the_cookie_is_for_one_path_no_script_and_no_other_site(
    browser: Browser, make_stream: MakeStream, own_url: str
) -> None:
    (plain,) = SimpleCookie(await browser.redeem(await browser.issue())).values()
    assert plain.key == "strandline-watch"
    assert (plain["path"], plain["samesite"], plain["max-age"]) == ("/v1/namespaces/tides:watch", "Strict", "600")
    assert plain["httponly"]
    assert not plain["secure"]
    assert not plain["domain"]
    (many,) = SimpleCookie(await browser.redeem(await browser.issue(""))).values()
    assert many["path"] == "/v1/namespaces:watch"
    (members,) = SimpleCookie(await browser.redeem(await browser.issue(f"{FEED}/members"))).values()
    assert members["path"] == "/v1/namespaces/tides/members:watch"
    behind_tls = Browser(await make_stream(own_url=own_url, public_tls=True))
    (secure,) = SimpleCookie(await behind_tls.redeem(await behind_tls.issue())).values()
    assert (secure.key, secure["secure"]) == ("__Secure-strandline-watch", True)
    # One that was set over plain HTTP counts for nothing there.
    assert await behind_tls.outcome(WATCH, EVENTS | {"cookie": f"strandline-watch={secure.value}"}) == (
        401,
        "TOKEN_MISSING",
    )


async def test_a_ticket_is_redeemed_once_whichever_replica_is_asked(
    browser: Browser, make_stream: MakeStream, own_url: str
) -> None:
    other = Browser(await make_stream(own_url=own_url))
    for first, second in ((browser, browser), (browser, other), (other, browser)):
        ticket = await browser.issue()
        await first.redeem(ticket)
        assert await second.refused(ticket) == "TICKET_INVALID"
    ticket = await browser.issue()
    attempts = [each.redeem(ticket) for each in (browser, other) for _ in range(8)]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert sum(isinstance(outcome, str) for outcome in outcomes) == 1


async def test_a_ticket_expires(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "TICKET_SECONDS", -1)
    assert await browser.refused(await browser.issue()) == "TICKET_INVALID"


async def test_redeemed_tickets_are_forgotten_when_they_have_long_expired(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert browser.stream.database is not None
    await browser.redeem(await browser.issue())
    monkeypatch.setattr("services.stream.ticket_store._SKEW_SECONDS", -3600)
    await browser.redeem(await browser.issue())
    async with browser.stream.database.connection() as connection, connection.transaction():
        await connection.execute("SELECT set_config('app.namespace', 'system', true)")
        cursor = await connection.execute("SELECT count(*) FROM redeemed_tickets")
        assert await cursor.fetchone() == (1,)


FILL = """
    INSERT INTO redeemed_tickets SELECT 'system', now() + i * '1s'::interval, gen_random_uuid()
        FROM generate_series(1, 20000) i;
    ANALYZE
"""


@pytest.mark.parametrize("filled", [False, True], ids=["an empty table", "a full table"])
async def test_tickets_to_forget_are_one_range_whatever_the_planner_knows(own_url: str, filled: bool) -> None:
    if filled:
        superuser = psycopg.conninfo.make_conninfo(own_url, user="postgres")
        async with await psycopg.AsyncConnection.connect(superuser) as connection:
            await connection.execute(FILL)
    async with await psycopg.AsyncConnection.connect(own_url, options=INDEX_WALKS_ONLY) as connection:
        await connection.execute("SELECT set_config('app.namespace', 'system', true)")
        statement = forget(time.time())
        cursor = await connection.execute(b"EXPLAIN " + statement.sql.encode(), statement.params, prepare=True)
        plan = "\n".join(str(line) for (line,) in await cursor.fetchall())
    assert "redeemed_tickets_pkey" in plan
    assert any("Index Cond" in line and "expire_time <" in line for line in plan.splitlines()), plan


async def test_what_is_no_ticket_opens_nothing(browser: Browser) -> None:
    ticket = await browser.issue()
    cookie = (await browser.redeem(ticket)).partition(";")[0].partition("=")[2]
    changed = ticket[:10] + ("A" if ticket[10] != "A" else "B") + ticket[11:]
    for wrong in ("", "x", changed, ticket + "=", cookie, access_token(), "ü"):
        assert await browser.refused(wrong) == "TICKET_INVALID"
    assert await browser.outcome(WATCH, EVENTS | {"cookie": f"strandline-watch={ticket}"}) == (401, "TOKEN_INVALID")


async def test_a_ticket_is_for_who_asked_for_it_whoever_redeems_it(owner: Owner, browser: Browser) -> None:
    stranger = access_token("0192f0a0-0000-7000-8000-00000000000f")
    cookie = await browser.cookie(token=stranger)
    assert await browser.outcome(WATCH, EVENTS | {"cookie": cookie}) == (404, "NOT_FOUND")


FOREIGN = {
    "another site": {"origin": "https://evil.example"},
    "another port": {"origin": "http://feeds.example:8081"},
    "a sandbox": {"origin": "null"},
    "a site next door": {"origin": "http://other.example:8080", "sec-fetch-site": "same-site"},
    "a link on another site": {"sec-fetch-site": "cross-site"},
    "an address that was typed in": {"sec-fetch-site": "none"},
    "nobody knows": {},
    "another site that says it is ours": {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
async def test_only_a_page_of_this_origin_redeems_a_ticket_and_uses_a_cookie(
    browser: Browser, headers: dict[str, str]
) -> None:
    ticket = await browser.issue()
    assert await browser.refused(ticket, headers) == "ORIGIN_NOT_ALLOWED"
    cookie = {"cookie": (await browser.redeem(ticket)).partition(";")[0]}  # it was not used up
    upgrade = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    upgrade |= {"sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    for transport in ({"accept": "text/event-stream"}, {}, upgrade):
        assert await browser.outcome(WATCH, transport | headers | cookie) == (403, "ORIGIN_NOT_ALLOWED")


async def test_a_page_elsewhere_gets_no_ticket_and_one_of_another_host_redeems_none(browser: Browser) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await browser.issue(origin="https://evil.example")
    assert reason(raised.value)[0] == "ORIGIN_NOT_ALLOWED"
    other_name = Browser(browser.stream, "other.example:8080")
    ticket = await browser.issue()
    assert await other_name.refused(ticket, {"origin": "http://other.example:8080"}) == "TICKET_INVALID"


async def test_a_cookie_opens_the_feed_that_it_is_for_and_no_other(owner: Owner, browser: Browser) -> None:
    await found(owner, REEFS)
    await owner.put(TIDES, "a", n=1)
    one, many, members = [await browser.cookie(parent) for parent in (FEED, "", f"{FEED}/members")]
    for path, cookie, outcome in (
        (WATCH, one, (200, "")),
        (WATCH, many, (401, "TOKEN_INVALID")),
        (WATCH.replace("tides", "reefs"), one, (401, "TOKEN_INVALID")),
        (MANY, one, (401, "TOKEN_INVALID")),
        (MEMBERS, members, (200, "")),
        (MEMBERS, one, (401, "TOKEN_INVALID")),
        (MEMBERS.replace("tides", "reefs"), members, (401, "TOKEN_INVALID")),
        (WATCH, members, (401, "TOKEN_INVALID")),
        ("/v1/namespaces/tides/changes?after_revision=0", one, (401, "TOKEN_MISSING")),
    ):
        upgrade = {"connection": "upgrade", "upgrade": "websocket"} | PAGE if path == MANY else EVENTS
        assert await browser.outcome(path, upgrade | {"cookie": cookie}) == outcome, path


async def test_a_cookie_is_worth_nothing_to_grpc(browser: Browser) -> None:
    async with grpc.aio.insecure_channel(browser.stream.grpc_address) as channel:
        stub: ticket_service_pb2_grpc.TicketServiceAsyncStub = ticket_service_pb2_grpc.TicketServiceStub(channel)
        metadata = (("cookie", await browser.cookie()), *PAGE.items())
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.IssueTicket(pb.IssueTicketRequest(), metadata=metadata)
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_cookie_and_a_token_at_once_are_refused(browser: Browser) -> None:
    headers = EVENTS | {"cookie": await browser.cookie(), "authorization": f"Bearer {access_token()}"}
    assert await browser.outcome(WATCH, headers) == (400, "INVALID_FIELD")


async def test_a_cookie_that_is_sent_twice_is_refused_whichever_comes_first(browser: Browser) -> None:
    stranger = access_token("0192f0a0-0000-7000-8000-00000000000f")
    mine, planted = await browser.cookie(), await browser.cookie(token=stranger)
    for sent in (f"{mine}; {planted}", f"{planted}; a=b; {mine}", f"{mine};{mine}"):
        assert await browser.outcome(WATCH, EVENTS | {"cookie": sent}) == (400, "INVALID_FIELD"), sent
    two_headers = CIMultiDict([("cookie", mine), ("cookie", planted), *EVENTS.items()])
    assert await browser.outcome(WATCH, two_headers) == (400, "INVALID_FIELD")
    assert await browser.outcome(WATCH, EVENTS | {"cookie": f"a=b; {mine}; x{planted}"}) == (200, "")


async def test_a_cookie_expires_and_its_feeds_end(
    owner: Owner, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = EVENTS | {"cookie": await browser.cookie()}
    async with browser.get(WATCH, headers) as response:
        feed = events(response)
        await anext(feed)
        for module in ("services.stream.permit", "services.runtime.gate"):  # as if its ten minutes were over
            monkeypatch.setattr(f"{module}.LEEWAY", -passes.COOKIE_SECONDS)
        async for _, message in feed:
            if "end" in message:
                break
    assert message["end"]["reason"] == "TOKEN_EXPIRED"
    assert await browser.outcome(WATCH, headers) == (401, "TOKEN_INVALID")


async def test_the_cookies_of_a_session_that_ended_open_nothing_and_their_feeds_end(
    owner: Owner, browser: Browser
) -> None:
    unused, headers = await browser.issue(), EVENTS | {"cookie": await browser.cookie()}
    async with browser.get(WATCH, headers) as response:
        feed = events(response)
        await anext(feed)
        revoked = {"user": ANN, "expiresAt": int(time.time()) + 660}
        await owner.write(SYSTEM, {("revocation", SESSION): revoked})
        async for _, message in feed:
            if "end" in message:
                break
    assert message["end"]["reason"] == "ACCESS_REVOKED"
    assert await browser.outcome(WATCH, headers) == (401, "TOKEN_INVALID")
    assert await browser.refused(unused) == "TICKET_INVALID"


def test_ended_sessions_are_remembered_for_longer_than_their_youngest_cookie_counts() -> None:
    fresh = 2  # seconds, after which every replica knows that a session was ended
    assert passes.COOKIE_SECONDS + LEEWAY + fresh < REVOCATION_SECONDS


async def test_a_removed_member_is_out_cookie_or_not(owner: Owner, browser: Browser) -> None:
    headers = EVENTS | {"cookie": await browser.cookie()}
    async with browser.get(WATCH, headers) as response:
        feed = events(response)
        await anext(feed)
        await owner.write(SYSTEM, {("membership", f"tides~{ANN}"): None})
        async for _, message in feed:
            if "end" in message:
                break
    assert message["end"]["reason"] == "ACCESS_REVOKED"
    assert await browser.outcome(WATCH, headers) == (404, "NOT_FOUND")


async def test_a_cookie_of_another_installation_is_none(browser: Browser) -> None:
    ours, theirs = Passes(bytes(32), secure=False), Passes(b"x" * 32, secure=False)
    for made, outcome in ((ours, (200, "")), (theirs, (401, "TOKEN_INVALID"))):
        ticket = ours.open_ticket(await browser.issue())
        cookie = made.cookie(ticket)[0].partition(";")[0]
        assert await browser.outcome(WATCH, EVENTS | {"cookie": cookie}) == outcome


@pytest.mark.parametrize("parent", ["namespaces/Not one", "namespaces/", "tides", "namespaces/a/b", "x" * 300])
async def test_a_ticket_is_for_a_namespace_or_for_many_watches(browser: Browser, parent: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await browser.issue(parent)
    assert reason(raised.value)[0] == "INVALID_FIELD"
