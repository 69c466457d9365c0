"""The example page in a real browser: the stream is cut twice under it, and it misses nothing."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from browser.serve import Page
from strandline.entity.v1 import entity_pb2
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_client import Client

from tests.e2e.local_platform import Platform, new_home, started

from . import chromium

SECONDS = 60.0
_STORY = """
JSON.stringify(Object.fromEntries(Object.entries(window.feeds ?? {}).map(([name, { feed, revisions }]) => {
  const { revision, state, violations, connections } = feed;
  const entities = Object.fromEntries([...feed.entities].map(([name, entity]) => [name, entity.data]));
  return [name, { revision, state, violations, connections, revisions, entities }];
})))"""
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def program() -> str:
    found = chromium.path()
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(chromium.NAMES)} is on the path")
    return found


@pytest.fixture(scope="module")
def platform(program: str) -> Iterator[Platform]:
    with new_home() as home, started(home) as running:
        yield running


@pytest.fixture
async def tab(program: str) -> AsyncIterator[chromium.Tab]:
    async with chromium.chromium(program) as opened:
        yield opened


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
    async def token() -> str:
        return await asyncio.to_thread(platform.token)

    runner = web.AppRunner(Page(platform.rest, token).app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield f"http://{host}:{port}"
    await runner.cleanup()


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
    platform: Platform, namespace: Namespace, origin: str, tab: chromium.Tab
) -> None:
    await namespace.write(10)
    await tab.open(f"{origin}/?namespace={namespace.id}")
    begun = await reached(tab, namespace.head, 1)
    start = namespace.head
    for cut in (1, 2):
        await asyncio.to_thread(platform.kill, "stream")
        await namespace.write(20)  # while nobody listens
        await reached(tab, namespace.head, cut + 1)
        await namespace.write(5)
    told = await reached(tab, namespace.head, 3)
    assert set(told) == set(begun) == {"sse", "websocket"}
    for feed in told.values():
        assert feed["revisions"] == list(range(start + 1, namespace.head + 1))
        assert feed["entities"] == namespace.truth
    shown = await tab.evaluate("document.querySelectorAll('main tr').length")
    assert shown == 2 * len(namespace.truth)
    if path := os.environ.get("STRANDLINE_SCREENSHOT"):
        await tab.screenshot(path)


async def test_a_page_of_another_origin_opens_no_feed(origin: str, namespace: Namespace, tab: chromium.Tab) -> None:
    await tab.open("data:text/html,<title>elsewhere</title>")
    url = f"{origin}/v1/namespaces/{namespace.id}:watch?now=true"
    attempt = f"""new Promise((done) => {{
      const socket = new WebSocket({json.dumps(url.replace("http", "ws", 1))});
      socket.onopen = () => done("open");
      socket.onclose = () => done("refused");
    }})"""
    assert await tab.evaluate(attempt) == "refused"
    assert await tab.evaluate(f"fetch({json.dumps(url)}).then(() => 'read', () => 'refused')") == "refused"


@pytest.mark.parametrize(
    "headers",
    [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}, {"host": "rebound.example"}],
    ids=lambda headers: next(iter(headers)),
)
async def test_what_another_site_sends_gets_nothing(origin: str, namespace: Namespace, headers: dict[str, str]) -> None:
    async with aiohttp.ClientSession() as session:
        url = f"{origin}/v1/namespaces/{namespace.id}:watch?snapshot=true&once=true"
        async with session.get(url, headers=headers) as refused:
            assert refused.status == 403
        async with session.get(url) as allowed:
            assert allowed.status == 200
