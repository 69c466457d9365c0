"""A page of the edge's own origin gets in by a ticket and a cookie, in a real browser."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.local_platform import Platform

from . import chromium

pytestmark = pytest.mark.timeout(300)
# The ticket and its exchange, as docs/feeds.md has them.
_ENTER = """
const post = async (path, body, headers = {}) => {
  const answer = await fetch(path, {
    method: "POST", headers: {"content-type": "application/json", ...headers}, body: JSON.stringify(body)});
  return [answer.status, await answer.json()];
};
const enter = async (parent) => {
  const [, {ticket}] = await post("/v1/namespaces:issueTicket", {parent}, {authorization: `Bearer ${TOKEN}`});
  return post("/v1/namespaces:redeemTicket", {ticket});
};
"""
_EVENTS = """
(async () => {
  const [status] = await enter("namespaces/demo%(of)s");
  const feed = new EventSource("/v1/namespaces/demo%(of)s:watch?now=true");
  const message = await new Promise((resolve) => {
    feed.onmessage = ({data}) => resolve(JSON.parse(data));
    feed.onerror = () => resolve({failed: true});
  });
  feed.close();
  return JSON.stringify({status, message, seen: document.cookie});
})()
"""
_SOCKET = """
(async () => {
  await enter("");
  const socket = new WebSocket(location.origin.replace("http", "ws") + "/v1/namespaces:watch");
  const said = await new Promise((resolve) => {
    const create = {watchId: "a", watch: {parent: "namespaces/demo", now: true}};
    socket.onopen = () => socket.send(JSON.stringify({create}));
    socket.onmessage = ({data}) => resolve(JSON.parse(data));
    socket.onerror = () => resolve({failed: true});
  });
  socket.close();
  return JSON.stringify(said);
})()
"""


async def run(tab: chromium.Tab, token: str, script: str) -> Any:
    return json.loads(await tab.evaluate(f"{{const TOKEN = {json.dumps(token)};{_ENTER}{script}}}"))


async def test_a_page_of_the_edge_reads_by_event_source_and_by_websocket(platform: Platform, tab: chromium.Tab) -> None:
    # The edge serves no pages, but what it says of a path that is not there is a document of its origin.
    await tab.open(f"{platform.rest}/no-page", bypass_csp=True)
    for of in ("", "/members"):
        read = await run(tab, platform.token(), _EVENTS % {"of": of})
        assert read["status"] == 200
        assert "progress" in read["message"], read
        assert read["seen"] == ""  # no script sees the cookie
    said = await run(tab, platform.token(), _SOCKET)
    assert "created" in said, said


async def test_a_page_of_another_origin_gets_nowhere_with_the_cookie(platform: Platform, tab: chromium.Tab) -> None:
    await tab.open(f"{platform.rest}/no-page", bypass_csp=True)
    assert (await run(tab, platform.token(), _EVENTS % {"of": ""}))["status"] == 200
    # Same address, other name: another origin, and another site.
    await tab.open(f"{platform.rest.replace('127.0.0.1', 'localhost')}/no-page", bypass_csp=True)
    script = """
    (async () => {
      const url = `%s/v1/namespaces/demo:watch?now=true`;
      const outcome = (source) => new Promise((resolve) => {
        source.onmessage = () => resolve("read");
        source.onerror = () => resolve("refused");
      });
      return JSON.stringify([
        await outcome(new EventSource(url, {withCredentials: true})),
        await outcome(new WebSocket(url.replace("http", "ws"))),
      ]);
    })()"""
    assert await run(tab, "", script % platform.rest) == ["refused", "refused"]
