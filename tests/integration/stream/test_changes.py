"""Catch-up pages: aligned, unchanged when full, with an ETag that a purge and nothing else changes."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from prometheus_client import REGISTRY
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2, stream_service_pb2, stream_service_pb2_grpc

from services.runtime.changelog import PURGED, Change
from services.runtime.database import Statement

from .conftest import TIDES, MakeStream
from .owner import SYSTEM, Owner
from .service import ANN, StreamService, access_token
from .test_resume import commit, created

SECRET = b"first-mate"


async def get(
    stream: StreamService, query: str, *, namespace: str = "tides", token: str | None = None, **headers: str
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and JSON of a page."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    url = f"http://stream/v1/namespaces/{namespace}/changes?{query}"
    async with stream.session(token) as session, session.get(url, headers=sent) as response:
        body = await response.read()
        return response.status, {k.lower(): v for k, v in response.headers.items()}, json.loads(body) if body else None


async def walk(stream: StreamService, after: int, limit: int = 0) -> list[dict[str, Any]]:
    """Pages up to the head; their ranges join up and their units are dense."""
    pages = []
    while True:
        status, _, page = await get(stream, f"after_revision={after}&limit={limit}&epoch={TIDES.epoch}")
        if status == 503:  # a slow machine: everything here is one process
            continue
        assert (status, int(page["afterRevision"])) == (200, after)
        after = int(page["revision"])
        assert [int(unit["revision"]) for unit in page["units"]] == list(
            range(int(page["afterRevision"]) + 1, after + 1)
        )
        pages.append(page)
        if after == int(page["headRevision"]):
            return pages


def ends(pages: list[dict[str, Any]]) -> list[int]:
    return [int(page["revision"]) for page in pages]


async def test_pages_are_aligned_wherever_one_begins(owner: Owner, stream: StreamService) -> None:
    await commit(owner, 1, [[created(number)] for number in range(1, 2_501)])
    assert ends(await walk(stream, 0)) == [1024, 2048, 2500]
    assert ends(await walk(stream, 700)) == [1024, 2048, 2500]
    assert ends(await walk(stream, 1024)) == [2048, 2500]
    assert ends(await walk(stream, 900, limit=100)) == [
        1000,
        1024,
        *range(1124, 2048, 100),
        2048,
        *range(2148, 2500, 100),
        2500,
    ]
    assert ends(await walk(stream, 2500)) == [2500]


async def test_a_page_holds_the_units_of_the_feed(owner: Owner, stream: StreamService) -> None:
    for n in range(5):
        await owner.put(TIDES, "a", height=n + 0.5)
    async with stream.watch(after_revision=2) as reader:
        await reader.until(5)
    status, headers, page = await get(stream, "afterRevision=2")
    feed = feed_pb2.Units(units=reader.units)
    expected = json_format.MessageToDict(feed, always_print_fields_with_no_presence=True)["units"]
    position = {"afterRevision": "2", "revision": "5", "epoch": TIDES.epoch}
    assert (status, page) == (200, position | {"units": expected, "headRevision": "5", "horizonRevision": "0"})
    assert headers["content-type"].startswith("application/json")
    assert headers["strandline-revision"] == f"{TIDES.epoch}.5"
    async with grpc.aio.insecure_channel(stream.grpc_address) as channel:
        stub: stream_service_pb2_grpc.StreamServiceAsyncStub = stream_service_pb2_grpc.StreamServiceStub(channel)
        answer = await stub.ListChanges(
            stream_service_pb2.ListChangesRequest(parent="namespaces/tides", after_revision=2),
            metadata=(("authorization", f"Bearer {access_token()}"),),
        )
    assert json_format.MessageToDict(answer, always_print_fields_with_no_presence=True) == page


async def test_a_full_page_is_not_modified_by_what_follows_it(owner: Owner, stream: StreamService) -> None:
    await commit(owner, 1, [[created(number)] for number in range(1, 1_101)])
    _, full, page = await get(stream, "after_revision=0")
    _, partial, _ = await get(stream, "after_revision=1024")
    assert full["cache-control"] == "private, no-cache"
    assert full["vary"].lower() == "authorization"
    await owner.put(TIDES, "a", n=1)
    for known in (full["etag"], f'"other", {full["etag"]}', full["etag"].removeprefix("W/"), "*"):
        status, headers, body = await get(stream, "after_revision=0", if_none_match=known)
        assert (status, body) == (304, None)
        assert (headers["etag"], headers["cache-control"]) == (full["etag"], "private, no-cache")
        assert headers["strandline-revision"] == f"{TIDES.epoch}.1101"
    _, again, later = await get(stream, "after_revision=0", if_none_match='"other"')
    assert again["etag"] == full["etag"]
    assert later | {"headRevision": page["headRevision"]} == page
    status, _, page = await get(stream, "after_revision=1024", if_none_match=partial["etag"])
    assert (status, page["revision"]) == (200, "1101")


async def test_who_keeps_the_last_page_learns_that_it_is_not_the_last_any_more(
    owner: Owner, stream: StreamService
) -> None:
    await commit(owner, 1, [[created(number)] for number in range(1, 1_025)])
    _, headers, page = await get(stream, "after_revision=0")
    assert page["revision"] == page["headRevision"]
    assert (await get(stream, "after_revision=0", if_none_match=headers["etag"]))[0] == 304
    await owner.put(TIDES, "a", n=1)
    status, _, page = await get(stream, "after_revision=0", if_none_match=headers["etag"])
    assert (status, page["revision"], page["headRevision"]) == (200, "1024", "1025")


async def test_a_purge_changes_the_etag_of_what_it_blanked_at_once(owner: Owner, stream: StreamService) -> None:
    secret = {5: SECRET}
    await commit(owner, 1, [[created(number, secret.get(number, b""))] for number in range(1, 3_001)])
    before = {after: (await get(stream, f"after_revision={after}"))[1]["etag"] for after in (0, 10, 1024)}
    blank = Statement(
        "UPDATE units SET body = overlay(body placing %s from position(%s::bytea in body))"
        " WHERE namespace = %s AND revision = 5",
        (bytes(len(SECRET)), SECRET, TIDES.id),
    )
    await commit(
        owner, 3_001, [[Change(PURGED, "buoy", "b5", entity_pb2.Entity(type="buoy").SerializeToString())]], blank
    )
    # Nobody was told of it: the page asks the log's owner.
    pages = await asyncio.gather(*(get(stream, "after_revision=0", if_none_match=before[0]) for _ in range(5)))
    for status, headers, page in pages:
        assert (status, headers["etag"] == before[0]) == (200, False)
        assert SECRET.decode() not in json.dumps(page)
    for after in (10, 1024):
        assert (await get(stream, f"after_revision={after}", if_none_match=before[after]))[0] == 304


async def test_pages_that_many_ask_for_cost_one_read_of_the_log(owner: Owner, stream: StreamService) -> None:
    total = await commit(owner, 1, [[created(number)] for number in range(1, 5_001)])
    name = "strandline_stream_log_read_bytes_total"
    before = REGISTRY.get_sample_value(name) or 0
    walks = await asyncio.gather(*(walk(stream, 0) for _ in range(12)))
    assert {tuple(ends(pages)) for pages in walks} == {(1024, 2048, 3072, 4096, 5000)}
    assert (REGISTRY.get_sample_value(name) or 0) - before <= 1.5 * total


async def test_pages_join_up_while_the_log_grows(owner: Owner, make_stream: MakeStream) -> None:
    stream = await make_stream()

    async def follow() -> list[int]:
        seen: list[dict[str, Any]] = []
        while not seen or int(seen[-1]["revision"]) < 300:
            seen += await walk(stream, int(seen[-1]["revision"]) if seen else 0)
        return [int(unit["revision"]) for page in seen for unit in page["units"]]

    writing = asyncio.gather(*(owner.put(TIDES, f"b{n % 7}", n=n) for n in range(300)))
    for revisions in await asyncio.gather(*(follow() for _ in range(5))):
        assert revisions == list(range(1, 301))
    await writing


async def test_an_empty_namespace_has_an_empty_page(stream: StreamService) -> None:
    status, headers, page = await get(stream, "")
    assert (status, page["units"], page["revision"], page["headRevision"]) == (200, [], "0", "0")
    assert (await get(stream, "", if_none_match=headers["etag"]))[0] == 304


async def test_large_units_come_alone(owner: Owner, stream: StreamService) -> None:
    for n in range(4):
        await owner.put(TIDES, "a", n=n, text="x" * 200_000)
    pages = await walk(stream, 0)
    assert ends(pages) == [1, 2, 3, 4]


async def test_what_was_cut_is_refused_and_the_horizon_is_named(owner: Owner, stream: StreamService) -> None:
    await commit(owner, 1, [[created(number)] for number in range(1, 31)])
    assert ends(await walk(stream, 0)) == [30]
    await owner.execute("UPDATE heads SET horizon = 20 WHERE namespace = %s", "tides")
    await owner.execute("DELETE FROM units WHERE namespace = %s AND revision <= 20", "tides")
    status, headers, problem = await get(stream, "after_revision=19")
    assert (status, problem["reason"], problem["metadata"]) == (410, "COMPACTED", {"horizon_revision": "20"})
    assert headers["cache-control"] == "no-store"
    status, _, page = await get(stream, "after_revision=20")
    assert (status, page["revision"], page["horizonRevision"]) == (200, "30", "20")


REFUSED = {
    "a revision of the future": ("after_revision=7", 400, "FUTURE_REVISION"),
    "another life": ("after_revision=0&epoch=deadbeef", 400, "EPOCH_CHANGED"),
    "an unknown parameter": ("after_revision=0&types=buoy", 400, "UNKNOWN_FIELD"),
    "the path's own field": ("parent=namespaces%2Fother", 400, "UNKNOWN_FIELD"),
    "a negative revision": ("after_revision=-1", 400, "INVALID_FIELD"),
    "a negative limit": ("limit=-1", 400, "INVALID_FIELD"),
    "a limit beyond 32 bits": ("limit=2147483648", 400, "INVALID_FIELD"),
    "a name given twice": ("limit=1&limit=2", 400, "INVALID_FIELD"),
    "no number": ("after_revision=", 400, "INVALID_FIELD"),
    "no epoch": ("epoch=xyz", 400, "INVALID_FIELD"),
}


@pytest.mark.parametrize(("query", "status", "reason"), REFUSED.values(), ids=REFUSED)
async def test_a_refused_page_is_a_problem(stream: StreamService, query: str, status: int, reason: str) -> None:
    got, headers, problem = await get(stream, query)
    assert (got, problem["status"], problem["reason"]) == (status, status, reason)
    assert headers["content-type"] == "application/problem+json"
    assert "etag" not in headers


async def test_only_members_get_pages(owner: Owner, stream: StreamService) -> None:
    etag = (await get(stream, ""))[1]["etag"]
    stranger = access_token(user="0192f0a0-0000-7000-8000-00000000000f")
    assert (await get(stream, "", token=stranger))[0] == 404
    assert (await get(stream, "", token=stranger, if_none_match=etag))[0] == 404
    assert (await get(stream, "", token=""))[0] == 401
    assert (await get(stream, "", namespace="system"))[0] == 404
    assert (await get(stream, "", namespace="system", token=access_token(scope="admin")))[0] == 200
    async with stream.watch(now=True) as reader:
        await owner.write(SYSTEM, {("membership", f"tides~{ANN}"): None})
        await reader.end()  # then the service has heard of it
    assert (await get(stream, "", if_none_match=etag))[0] == 404


async def test_two_services_make_the_same_pages_with_the_same_etags(owner: Owner, make_stream: MakeStream) -> None:
    await commit(owner, 1, [[created(number)] for number in range(1, 1_500)])
    first, second = await make_stream(), await make_stream()
    await walk(second, 3)  # what it has read before does not show
    for query in ("after_revision=0", "after_revision=40&limit=7", "after_revision=1024"):
        (_, one, page), (_, other, same) = [await get(stream, query) for stream in (first, second)]
        assert (one["etag"], page) == (other["etag"], same)
    assert all(a < b for a, b in pairwise(ends(await walk(first, 0))))
