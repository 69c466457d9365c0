"""The same feed over NDJSON, SSE and WebSocket, and its errors as problems."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import orjson
import pytest
from google.protobuf import json_format
from strandline.stream.v1 import feed_pb2

from .conftest import TIDES
from .owner import SYSTEM, Owner
from .service import ANN, SECONDS, StreamService, access_token

SSE = {"accept": "text/event-stream"}


async def lines(response: aiohttp.ClientResponse, until: int) -> list[dict[str, Any]]:
    """NDJSON messages up to the one that covers *until*."""
    messages: list[dict[str, Any]] = []
    while not messages or int(messages[-1]["revision"]) < until:
        messages.append(json.loads(await asyncio.wait_for(response.content.readline(), SECONDS)))
    return messages


async def events(response: aiohttp.ClientResponse, count: int) -> list[tuple[str, dict[str, Any]]]:
    """SSE events: id and data."""
    found = []
    for _ in range(count):
        raw = await asyncio.wait_for(response.content.readuntil(b"\n\n"), SECONDS)
        id_line, data_line = raw.decode().rstrip("\n").split("\n")
        assert id_line.startswith("id: ")
        assert data_line.startswith("data: ")
        found.append((id_line.removeprefix("id: "), json.loads(data_line.removeprefix("data: "))))
    return found


async def test_ndjson_is_the_feed_one_message_a_line(owner: Owner, stream: StreamService) -> None:
    for n in range(5):
        await owner.put(TIDES, "a", height=n + 0.5, whole=n)
    async with stream.get("after_revision=2") as response:
        assert response.status == 200
        assert response.content_type == "application/x-ndjson"
        assert response.headers["strandline-revision"] == f"{TIDES.epoch}.5"
        messages = await lines(response, 5)
    async with stream.watch(after_revision=2) as reader:
        await reader.until(5)
    expected = json_format.MessageToDict(feed_pb2.Units(units=reader.units), always_print_fields_with_no_presence=True)[
        "units"
    ]
    assert [unit for message in messages for unit in message["units"]["units"]] == expected
    assert (messages[0]["afterRevision"], messages[0]["epoch"]) == ("2", TIDES.epoch)


async def test_an_sse_reader_goes_on_with_its_last_event_id(owner: Owner, stream: StreamService) -> None:
    await owner.put(TIDES, "a", n=1)
    async with stream.get("now=true", SSE) as response:
        assert response.content_type == "text/event-stream"
        ((last, first),) = await events(response, 1)
        assert (last, first["progress"]["headRevision"]) == (f"{TIDES.epoch}.1", "1")
    for n in range(2, 5):
        await owner.put(TIDES, "a", n=n)
    async with stream.get("now=true", SSE | {"last-event-id": last}) as response:
        ((last, message),) = await events(response, 1)
        assert [unit["revision"] for unit in message["units"]["units"]] == ["2", "3", "4"]
        assert last == f"{TIDES.epoch}.4"


async def test_an_sse_reader_goes_on_inside_a_snapshot(owner: Owner, stream: StreamService) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:02}"): {"n": n} for n in range(25)})
    async with stream.get("snapshot=true", SSE) as response:
        ((last, page),) = await events(response, 1)
        assert last == f"s.{page['snapshotPage']['resumeToken']}"
    async with stream.get("snapshot=true", SSE | {"last-event-id": last}) as response:
        *pages, (last, done) = await events(response, 3)
    names = [e["name"] for _, m in [("", page), *pages] for e in m["snapshotPage"]["entities"]]
    assert [name[-3:] for name in names] == [f"b{n:02}" for n in range(25)]
    assert (last, done["snapshotDone"]["count"]) == (f"{TIDES.epoch}.1", "25")


async def test_a_websocket_carries_the_same_messages_as_text_frames(owner: Owner, stream: StreamService) -> None:
    for n in range(3):
        await owner.put(TIDES, "a", n=n)
    async with stream.get("after_revision=0") as response:
        expected = await lines(response, 3)
    async with (
        stream.session() as session,
        session.ws_connect("http://stream/v1/namespaces/tides:watch?after_revision=0") as socket,
    ):
        await socket.send_str("whatever a client says is ignored")
        assert await socket.receive_json(timeout=SECONDS) == expected[0]
        await socket.ping()
        await owner.put(TIDES, "a", n=3)
        assert (await socket.receive_json(timeout=SECONDS))["revision"] == "4"
        draining = asyncio.create_task(stream.drain())
        end = await socket.receive_json(timeout=SECONDS)
        assert end["end"] == {"reason": "DRAINING", "resumeAfterRevision": "4", "detail": end["end"]["detail"]}
        assert (await socket.receive(timeout=SECONDS)).type == aiohttp.WSMsgType.CLOSE
        assert socket.close_code == 1001
        await draining


async def test_draining_ends_http_feeds_with_a_last_line(owner: Owner, stream: StreamService) -> None:
    async with stream.get("now=true") as response:
        await lines(response, 0)
        draining = asyncio.create_task(stream.drain())
        (*_, last) = (await asyncio.wait_for(response.content.read(), SECONDS)).splitlines()
        assert json.loads(last)["end"]["reason"] == "DRAINING"
        await draining


REFUSED = {
    "no start": ("", 400, "START_REQUIRED", "start"),
    "two starts": ("now=true&after_revision=1", 400, "INVALID_FIELD", "after_revision"),
    "an unknown parameter": ("now=true&afterr=1", 400, "UNKNOWN_FIELD", "afterr"),
    "the path's own field": ("now=true&parent=namespaces%2Fother", 400, "UNKNOWN_FIELD", "parent"),
    "a token in the URL": ("now=true&access_token=x", 400, "UNKNOWN_FIELD", "access_token"),
    "now is false": ("now=false", 400, "INVALID_FIELD", "now"),
    "no number": ("after_revision=abc", 400, "INVALID_FIELD", "after_revision"),
    "a negative revision": ("afterRevision=-1", 400, "INVALID_FIELD", "after_revision"),
    "a number beyond 64 bits": ("after_revision=9999999999999999999", 400, "INVALID_FIELD", "after_revision"),
    "no time": ("after_time=yesterday", 400, "INVALID_FIELD", "after_time"),
    "a filter that does not parse": ("now=true&filter=data.a%20%3D", 400, "INVALID_FIELD", "filter"),
    "no type id": ("now=true&types=Ship", 400, "INVALID_FIELD", "types[0]"),
    "no epoch": ("after_revision=0&epoch=xyz", 400, "INVALID_FIELD", "epoch"),
    "a revision of the future": ("after_revision=7", 400, "FUTURE_REVISION", ""),
    "another life": ("after_revision=0&epoch=deadbeef", 400, "EPOCH_CHANGED", ""),
    "a forged resume token": ("resume_token=abc", 400, "INVALID_FIELD", "resume_token"),
    "no length of time": ("now=true&progress_interval=1h", 400, "INVALID_FIELD", "progress_interval"),
    "too long a time": ("now=true&progress_interval=60s", 400, "INVALID_FIELD", "progress_interval"),
    "no entity": ("now=true&ids=buoy/a&ids=buoy", 400, "INVALID_FIELD", "ids[1]"),
    "ids and types": ("now=true&ids=buoy/a&types=buoy", 400, "INVALID_FIELD", "types"),
    "no mask": ("now=true&read_mask=height", 400, "INVALID_FIELD", "read_mask"),
}


@pytest.mark.parametrize(("query", "status", "reason", "field"), REFUSED.values(), ids=REFUSED)
async def test_a_refusal_before_the_first_message_is_a_problem_that_names_the_field(
    stream: StreamService, query: str, status: int, reason: str, field: str
) -> None:
    for headers in ({"x-request-id": "r1"}, SSE | {"x-request-id": "r1"}):
        async with stream.get(query, headers) as response:
            problem = await response.json(content_type="application/problem+json")
            assert (response.status, problem["status"], problem["reason"]) == (status, status, reason)
    assert set(problem) == {"type", "title", "status", "detail", "instance", "reason", "metadata", "violations"}
    assert (problem["type"], problem["instance"]) == (f"urn:strandline:{reason}", "r1")
    assert problem["title"] == reason.replace("_", " ").capitalize()
    # A URL has no body to point into; and what the state of the log forbids is no fault of a field.
    assert [each["field"] for each in problem["violations"]] == ([field] if field else [])
    assert {each["pointer"] for each in problem["violations"]} <= {None}


async def test_a_websocket_that_is_refused_gets_the_problem_too(stream: StreamService) -> None:
    async with stream.session() as session:
        with pytest.raises(aiohttp.WSServerHandshakeError) as raised:
            await session.ws_connect("http://stream/v1/namespaces/tides:watch?after_revision=7")
    assert raised.value.status == 400


ORIGINS = {
    "no browser": (None, True),
    "the same": ("http://feeds.example:8080", True),
    "the same behind TLS": ("https://Feeds.Example:8080", True),
    "another host": ("https://evil.example", False),
    "another port": ("http://feeds.example:8081", False),
    "no port": ("http://feeds.example", False),
    "a longer name": ("http://feeds.example:8080.evil.example", False),
    "a user of that name": ("http://feeds.example:8080@evil.example", False),
    "a sandbox": ("null", False),
    "nothing": ("", False),
    "no origin at all": ("http://[", False),
}


@pytest.mark.parametrize(("origin", "welcome"), ORIGINS.values(), ids=ORIGINS)
async def test_only_a_page_of_the_same_origin_opens_a_websocket(
    stream: StreamService, origin: str | None, welcome: bool
) -> None:
    headers = {"host": "feeds.example:8080", "connection": "upgrade", "upgrade": "websocket"}
    headers |= {"sec-websocket-version": "13", "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    if origin is not None:
        headers["origin"] = origin
    async with stream.get("now=true", headers) as response:
        if welcome:
            assert response.status == 101
        else:
            problem = await response.json(content_type="application/problem+json")
            assert (response.status, problem["reason"]) == (403, "ORIGIN_NOT_ALLOWED")


async def test_other_transports_have_no_origin_to_check(stream: StreamService) -> None:
    async with stream.get("now=true", {"origin": "https://evil.example"}) as response:  # no CORS header lets it read
        assert response.status == 200
        assert "access-control-allow-origin" not in response.headers


async def test_a_cut_position_is_gone(owner: Owner, stream: StreamService) -> None:
    for n in range(5):
        await owner.put(TIDES, "a", n=n)
    await owner.execute("UPDATE heads SET horizon = 3 WHERE namespace = %s", "tides")
    async with stream.get("after_revision=2") as response:
        problem = orjson.loads(await response.read())
    assert (response.status, problem["reason"], problem["metadata"]) == (410, "COMPACTED", {"horizon_revision": "3"})


async def test_no_token_a_bad_one_and_a_strangers_are_told_apart(stream: StreamService) -> None:
    stranger = access_token("0192f0a0-0000-7000-8000-00000000000f")
    for token, outcome in (
        ("", (401, "TOKEN_MISSING")),
        ("abc", (401, "TOKEN_INVALID")),
        (stranger, (404, "NOT_FOUND")),
    ):
        async with (
            stream.session(token) as session,
            session.get("http://stream/v1/namespaces/tides:watch?now=true") as response,
        ):
            assert (response.status, (await response.json(content_type=None))["reason"]) == outcome


async def test_what_is_not_a_watch_is_a_problem_as_well(stream: StreamService) -> None:
    async with stream.session() as session:
        for method, path in (("GET", "/v1/namespaces/tides"), ("POST", "/v1/namespaces/tides:watch"), ("GET", "/")):
            async with session.request(method, f"http://stream{path}") as response:
                assert (response.status, (await response.json(content_type=None))["reason"]) == (404, "NOT_FOUND")


async def test_whatever_the_edge_lets_through_is_refused_by_us_and_not_repeated(
    stream: StreamService, caplog: pytest.LogCaptureFixture
) -> None:
    filter_ = 'data.secret = "tern"' + "a" * 15_000
    async with stream.session() as session:
        url = "http://stream/v1/namespaces/tides:watch"
        async with session.get(url, params={"now": "true", "filter": filter_}) as response:
            body = await response.read()
        async with session.get(f"{url}?now=true", headers={"cookie": "a=" + "tern" * 4000}) as reader:
            assert reader.status == 200
    assert (response.status, orjson.loads(body)["violations"][0]["field"]) == (400, "filter")
    assert b"tern" not in body
    assert "tern" not in caplog.text


async def test_a_revoked_reader_gets_an_end_over_http_too(owner: Owner, stream: StreamService) -> None:
    async with stream.get("now=true") as response:
        await lines(response, 0)
        await owner.write(SYSTEM, {("membership", f"tides~{ANN}"): None})
        (*_, last) = (await asyncio.wait_for(response.content.read(), SECONDS)).splitlines()
    assert json.loads(last)["end"]["reason"] == "ACCESS_REVOKED"


async def test_a_reader_that_goes_away_takes_its_feed_with_it(owner: Owner, stream: StreamService) -> None:
    for headers in (SSE, {}):
        async with stream.get("now=true", headers) as response:
            await response.content.readline()
            assert stream.open_feeds == 1
        await stream.emptied()
