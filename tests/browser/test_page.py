"""The example page in a real browser: the stream is cut twice under it, and it misses nothing."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from browser.serve import Page
from strandline.entity.v1 import entity_pb2
from strandline_cli.credentials import ADMIN_EMAIL
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_client import Client

from tests.e2e.local_platform import Platform

from . import chromium

SECONDS = 60.0
_STORY = """
JSON.stringify(Object.fromEntries(Object.entries(window.feeds ?? {}).map(([name, { feed, revisions }]) => {
  const { revision, state, violations, connections } = feed;
  const entities = Object.fromEntries([...feed.entities].map(([name, entity]) => [name, entity.data]));
  return [name, { revision, state, violations, connections, revisions, entities }];
})))"""
pytestmark = pytest.mark.timeout(300)


class Namespace:
    """One of its own, with a writer."""

    def __init__(self, running: Running, client: Client) -> None:
        self.id = f"page-{uuid.uuid4().hex[:8]}"
        self._client = client
        self.truth: dict[str, Any] = {}
        self.head = 0
        api = running.api()
        api.call("POST", f"/v1/namespaces?namespace_id={self.id}", {"massChangeGuard": "OFF"})
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
        api.call("POST", f"/v1/namespaces/{self.id}/types?type_id=buoy", {"schema": schema})

    async def write(self, count: int) -> None:
        """So many units, in turn on a few names, every fifth a deletion."""
        for number in range(count):
            name = f"namespaces/{self.id}/types/buoy/entities/b{number % 7}"
            if number % 5 == 4:
                mutation = entity_pb2.Mutation(delete=entity_pb2.DeleteMutation(name=name, allow_missing=True))
                self.truth.pop(name, None)
            else:
                data = {"n": self.head * 1000 + number}
                update = entity_pb2.UpdateMutation(
                    name=name, data_json=json.dumps(data).encode(), update_mask=["*"], allow_missing=True
                )
                mutation = entity_pb2.Mutation(update=update)
                self.truth[name] = data
            self.head = max(self.head, (await self._client.transact(self.id, [mutation])).revision)


@pytest.fixture
async def namespace(platform: Platform) -> AsyncIterator[Namespace]:
    running = Running.in_home(Home(platform.home))
    async with running.client() as client:
        yield await asyncio.to_thread(Namespace, running, client)


@pytest.fixture
async def origin(platform: Platform) -> AsyncIterator[str]:
    runner = web.AppRunner(Page(platform.rest).app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


@pytest.fixture
def password(platform: Platform) -> str:
    return (Home(platform.home).secrets / "admin" / "password").read_text()


async def feeds(tab: chromium.Tab) -> dict[str, Any]:
    """What each feed of the page has been through."""
    told = await tab.evaluate(_STORY)
    answer: dict[str, Any] = json.loads(told)
    return answer


async def reached(tab: chromium.Tab, revision: int, connections: int) -> dict[str, Any]:
    """The feeds, once both are live at *revision* after so many connections, or one of them found a fault."""
    deadline = time.monotonic() + SECONDS
    while True:
        told = await feeds(tab)
        faults = [feed["violations"] for feed in told.values() if feed["violations"]]
        assert not faults, faults
        if len(told) == 2 and all(
            feed["revision"] == revision and feed["connections"] >= connections and feed["state"] == "live"
            for feed in told.values()
        ):
            return told
        assert time.monotonic() < deadline, told
        await asyncio.sleep(0.1)


async def test_event_source_and_web_socket_miss_nothing_while_the_stream_is_cut_twice(
    platform: Platform, namespace: Namespace, origin: str, password: str, tab: chromium.Tab
) -> None:
    await namespace.write(10)
    await tab.open(f"{origin}/?namespace={namespace.id}")
    await sign_in(tab, password)
    begun = await reached(tab, namespace.head, 1)
    start = namespace.head
    for cut in (1, 2):
        # As if token and cookie were near their end: the next connection gets new ones first.
        await tab.evaluate("session._cookieUntil = session._tokenUntil = 0")
        await asyncio.to_thread(platform.kill, "stream")
        await namespace.write(20)  # while nobody listens
        await reached(tab, namespace.head, cut + 1)
        await namespace.write(5)
    assert await tab.evaluate("Math.min(session._cookieUntil, session._tokenUntil) > Date.now()")
    told = await reached(tab, namespace.head, 3)
    assert set(told) == set(begun) == {"sse", "websocket"}
    for feed in told.values():
        assert feed["revisions"] == list(range(start + 1, namespace.head + 1))
        assert feed["entities"] == namespace.truth
    rows = f"document.querySelectorAll('main tbody tr').length === {2 * len(namespace.truth)}"
    await becomes_true(tab, rows)  # drawn a moment later
    if path := os.environ.get("STRANDLINE_SCREENSHOT"):
        await tab.screenshot(path)


async def test_a_wrong_password_is_told_and_opens_nothing(origin: str, namespace: Namespace, tab: chromium.Tab) -> None:
    await tab.open(f"{origin}/?namespace={namespace.id}")
    await sign_in(tab, "wrong")
    await becomes_true(tab, "document.querySelector('#refusal').textContent.startsWith('LOGIN_FAILED')")
    assert await tab.evaluate("window.feeds === undefined")


async def test_a_page_of_another_origin_opens_no_feed_in_the_browser_of_somebody_who_is_let_in(
    origin: str, namespace: Namespace, password: str, tab: chromium.Tab
) -> None:
    await tab.open(f"{origin}/?namespace={namespace.id}")
    await sign_in(tab, password)
    await reached(tab, 1, 1)
    watch = f"{origin}/v1/namespaces/{namespace.id}:watch?now=true"
    attempts = {
        "WebSocket": f"""const it = new WebSocket({json.dumps(watch.replace("http", "ws", 1))});
                         it.onopen = () => done("open"); it.onclose = () => done("refused");""",
        "EventSource": f"""const it = new EventSource({json.dumps(watch)}, {{ withCredentials: true }});
                           it.onmessage = () => done("open"); it.onerror = () => done("refused");""",
    }
    assert await outcomes(tab, attempts) == {"WebSocket": "open", "EventSource": "open"}
    await tab.open("data:text/html,<title>elsewhere</title>")
    assert await outcomes(tab, attempts) == {"WebSocket": "refused", "EventSource": "refused"}


async def becomes_true(tab: chromium.Tab, expression: str) -> None:
    """Wait for it."""
    deadline = time.monotonic() + SECONDS
    while not await tab.evaluate(expression):
        assert time.monotonic() < deadline, expression
        await asyncio.sleep(0.1)


async def outcomes(tab: chromium.Tab, attempts: dict[str, str]) -> dict[str, Any]:
    """What became of each attempt, in the page that is open."""
    return {
        name: await tab.evaluate(f"new Promise((done) => {{ {attempt} }}).finally(() => 0)")
        for name, attempt in attempts.items()
    }


async def sign_in(tab: chromium.Tab, password: str) -> None:
    """Fill the form and send it."""
    await tab.evaluate(
        f"""document.querySelector("#email").value = {json.dumps(ADMIN_EMAIL)};
            document.querySelector("#password").value = {json.dumps(password)};
            document.querySelector("form").requestSubmit();"""
    )
