"""The client's proof that a feed is complete: what it must accept, and every kind of lie that it must find."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from strandline_client import FeedEnded, FeedViolation, Start
from strandline_client.errors import ApiError, Check
from strandline_client.following import FeedCounters, follow
from strandline_client.http_watching import EventSource, look, split
from strandline_client.position import Ending, Position, Seen
from strandline_client.verify import RangeVerifier, SnapshotVerifier


def units(*revisions: int) -> list[tuple[int, object]]:
    return [(revision, f"unit {revision}") for revision in revisions]


GOOD: list[tuple[Any, ...]] = [(3, 3, "e"), (3, 5, "e", units(4, 5)), (5, 5, "e"), (5, 6, "e", units(6))]


def test_ranges_that_join_up_are_accepted() -> None:
    verifier = RangeVerifier(dense=True)
    for message in GOOD:
        verifier.observe(*message)
    assert (verifier.epoch, verifier.revision) == ("e", 6)


LIES: dict[str, tuple[Check, tuple[Any, ...]]] = {
    "a gap between messages": ("dense", (7, 8, "e", units(8))),
    "a message twice": ("dense", (5, 6, "e", units(6))),
    "a unit missing inside": ("dense", (6, 8, "e", units(8))),
    "a unit missing at the end": ("dense", (6, 8, "e", units(7))),
    "no units where there must be some": ("dense", (6, 8, "e")),
    "a range that runs backwards": ("dense", (6, 5, "e", [])),
    "another epoch": ("dense", (6, 7, "f", units(7))),
    "a unit twice": ("unique", (6, 8, "e", units(7, 7, 8))),
    "the last unit again": ("unique", (6, 8, "e", units(6, 7, 8))),
    "a unit in two pieces": ("atomic", (6, 8, "e", [*units(7), (7, "the rest of unit 7"), *units(8)])),
    "units out of order": ("ordered", (6, 8, "e", units(8, 7))),
    "a unit from before": ("ordered", (6, 8, "e", units(4, 7, 8))),
    "a unit beyond the range": ("bookmarkable", (6, 7, "e", units(7, 8))),
}


@pytest.mark.parametrize(("check", "lie"), LIES.values(), ids=LIES)
def test_every_lie_is_found_by_its_name_and_moves_nothing(check: Check, lie: tuple[Any, ...]) -> None:
    verifier = RangeVerifier(dense=True)
    for message in GOOD:
        verifier.observe(*message)
    with pytest.raises(FeedViolation) as raised:
        verifier.observe(*lie)
    assert raised.value.check == check
    assert verifier.revision == 6


def test_a_late_unit_is_found_although_ranges_join_up() -> None:
    verifier = RangeVerifier(dense=False)
    verifier.observe(0, 5, "e")
    with pytest.raises(FeedViolation) as raised:
        verifier.observe(5, 6, "e", units(4))
    assert raised.value.check == "bookmarkable"


def test_a_connection_that_does_not_go_on_where_the_last_one_was_cut_is_not_resumed() -> None:
    position = Position(Start(after_revision=3, epoch="e"), dense=True)
    position.take(Seen(3, 5, "e", units(4, 5)))
    assert position.resume() == Start(after_revision=5, epoch="e")
    for wrong in (Seen(4, 6, "e", units(5, 6)), Seen(6, 7, "e", units(7)), Seen(5, 6, "f", units(6))):
        with pytest.raises(FeedViolation) as raised:
            position.take(wrong)
        assert raised.value.check == "resumable"


def test_a_filtered_feed_may_leave_revisions_out_but_not_ranges() -> None:
    verifier = RangeVerifier(dense=False)
    for message in ((0, 5, "e", units(3)), (5, 9, "e"), (9, 12, "e", units(10, 12))):
        verifier.observe(*message)
    with pytest.raises(FeedViolation):
        verifier.observe(13, 14, "e", units(14))


def summary(*entities: tuple[str, int]) -> tuple[int, str]:
    total = sum(int.from_bytes(hashlib.sha256(f"{n} {r}".encode()).digest()) for n, r in entities)
    return len(entities), f"{total % 2**256:064x}"


def test_a_snapshot_is_compared_with_the_servers_sum() -> None:
    verifier = SnapshotVerifier()
    verifier.observe([("a", 1), ("b", 2)])
    verifier.check(*summary(("b", 2), ("a", 1)))
    with pytest.raises(FeedViolation):
        verifier.check(*summary(("a", 1), ("b", 3)))


def test_an_entity_twice_in_a_snapshot_is_found() -> None:
    verifier = SnapshotVerifier()
    verifier.observe([("a", 1)])
    with pytest.raises(FeedViolation):
        verifier.observe([("a", 1)])


def test_a_broken_snapshot_goes_on_by_token_and_its_tail_by_revision() -> None:
    position = Position(Start(snapshot=True), dense=True)
    position.take(Seen(7, 7, "e", page=[("a", 1)], resume_token="one"))  # noqa: S106  (no password)
    assert position.start.query() == [("resume_token", "one")]
    position.take(Seen(7, 7, "e", page=[("b", 1)], resume_token="two"))  # noqa: S106  (no password)
    position.take(Seen(7, 7, "e", summary=summary(("a", 1), ("b", 1))))
    assert position.start.query() == [("after_revision", "7"), ("epoch", "e")]
    position.take(Seen(7, 9, "e", units=units(8, 9)))
    assert position.start == Start(after_revision=9, epoch="e")


def test_an_end_that_allows_it_is_resumed_and_any_other_is_told() -> None:
    position = Position(Start(now=True), dense=True)
    position.take(Seen(3, 3, "e"))
    with pytest.raises(ApiError, match="DRAINING"):
        position.take(Seen(3, 3, "e", end=Ending("DRAINING", "")))
    assert position.start == Start(after_revision=3, epoch="e")
    with pytest.raises(FeedEnded) as raised:
        position.take(Seen(3, 3, "e", end=Ending("ACCESS_REVOKED", "")))
    assert (raised.value.reason, raised.value.epoch, raised.value.revision) == ("ACCESS_REVOKED", "e", 3)


@pytest.mark.parametrize(
    "start", [Start(snapshot=True), Start(now=True), Start(after_time=datetime(2999, 1, 1, tzinfo=UTC))]
)
def test_an_end_before_the_first_message_leaves_nothing_to_join_up_with(start: Start) -> None:
    position = Position(start, dense=True)
    for revision, reason in ((3, "DRAINING"), (5, "UNAVAILABLE")):
        with pytest.raises(ApiError, match=reason):
            position.take(Seen(revision, revision, "e", end=Ending(reason, "")))
        assert position.start == start
    if start.snapshot:
        position.take(Seen(7, 7, "e", None, [("a", 6)], "t"))
        with pytest.raises(ApiError, match="DRAINING"):
            position.take(Seen(7, 7, "e", end=Ending("DRAINING", "")))
        position.take(Seen(7, 7, "e", None, [("b", 7)], "u"))
    else:
        position.take(Seen(7, 7, "e"))
    with pytest.raises(FeedViolation):
        position.take(Seen(8, 9, "e", units=units(9)))


def test_a_position_survives_an_end_before_the_first_message() -> None:
    position = Position(Start(after_revision=3, epoch="e"), dense=True)
    with pytest.raises(ApiError, match="DRAINING"):
        position.take(Seen(3, 3, "e", end=Ending("DRAINING", "")))
    with pytest.raises(FeedViolation):
        position.take(Seen(4, 5, "e", units=units(5)))


async def test_a_violation_is_an_error_and_is_counted_by_its_name() -> None:
    async def connect(start: Start) -> AsyncGenerator[Seen, None]:
        yield Seen(0, 1, "e", units(1))
        yield Seen(2, 3, "e", units(3))

    counters = FeedCounters()
    feed = follow(connect, lambda seen: seen, Position(Start(after_revision=0), True), 5, counters)
    assert (await anext(feed)).revision == 1
    with pytest.raises(FeedViolation, match="dense"):
        await anext(feed)
    assert counters == FeedCounters(connections=1, messages=1, violations=Counter({"dense": 1}))


async def test_a_feed_that_is_complete_ends_without_an_error() -> None:
    async def connect(start: Start) -> AsyncGenerator[Seen, None]:
        yield Seen(0, 1, "e", units(1))
        yield Seen(1, 1, "e", end=Ending("COMPLETED", ""))

    position = Position(Start(after_revision=0), True)
    found = [seen.revision async for seen in follow(connect, lambda seen: seen, position, 5, FeedCounters())]
    assert found == [1, 1]


async def test_a_position_that_is_refused_as_lost_ends_the_feed_with_where_it_was() -> None:
    async def connect(start: Start) -> AsyncGenerator[Seen, None]:
        if start.after_revision:
            raise ApiError("OUT_OF_RANGE", "COMPACTED", "too old")
        yield Seen(0, 4, "e")

    position = Position(Start(after_revision=0), False)
    with pytest.raises(FeedEnded) as raised:
        async for _ in follow(connect, lambda seen: seen, position, 5, FeedCounters()):
            pass
    assert (raised.value.reason, raised.value.epoch, raised.value.revision) == ("COMPACTED", "e", 4)
    assert raised.value.position_is_lost


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({}, "exactly one of now, after_revision, snapshot, after_time, resume_token: got none"),
        ({"now": True, "snapshot": True}, "got now and snapshot"),
        ({"after_revision": 0, "resume_token": "t"}, "got after_revision and resume_token"),
        ({"now": True, "epoch": "e"}, "epoch goes with after_revision"),
    ],
)
def test_a_start_is_exactly_one_place(places: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Start(**places)


async def test_a_connection_is_told_as_lost_when_another_is_tried_unasked() -> None:
    breaks = [
        None,
        ApiError("UNAVAILABLE", "", "no connection"),
        ApiError("UNAVAILABLE", "DRAINING", "announced"),
        ApiError("NOT_FOUND", "NOT_FOUND", "for good"),
    ]
    told: list[int] = []

    async def connect(start: Start) -> AsyncGenerator[Seen, None]:
        failure = breaks.pop(0)
        yield Seen(0, 0, "e")
        if failure is not None:
            raise failure

    def lost() -> None:
        told.append(len(breaks))

    with pytest.raises(ApiError, match="for good"):
        async for _ in follow(
            connect, lambda seen: seen, Position(Start(after_revision=0), True), 30, FeedCounters(), lost
        ):
            pass
    assert told == [3, 2]


async def test_the_id_of_an_event_is_known_before_its_message_is_given_away() -> None:
    asked: list[str | None] = []

    async def serve(request: web.Request) -> web.Response:
        asked.append(request.headers.get("last-event-id"))
        return web.Response(body=b"id: s.abc\ndata: {}\n\n")

    app = web.Application()
    app.router.add_get("/", serve)
    async with TestServer(app) as server, aiohttp.ClientSession() as session:
        events = EventSource()
        for _ in range(2):
            async with aclosing(events.connect(session, str(server.make_url("/")), [], {})) as connection:
                await anext(connection)  # and no more: as after an `End`
    assert asked == [None, "s.abc"]


def test_json_messages_say_the_same_about_themselves() -> None:
    unit = {"revision": "8", "changes": []}
    message = {"afterRevision": "7", "revision": "8", "epoch": "e", "units": {"units": [unit]}}
    assert look(message) == Seen(7, 8, "e", units=[(8, unit)])


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("separator", [b"\n", b"\n\n"])
async def test_messages_are_cut_wherever_the_network_cut_them(size: int, separator: bytes) -> None:
    pieces = [b"id: 1\ndata: {}" if len(separator) == 2 else b"{}", b"x" * 50, b"last"]
    stream = separator.join([*pieces, b"cut o"])

    async def chunks() -> Any:
        for start in range(0, len(stream), size):
            yield stream[start : start + size]

    assert [piece async for piece in split(chunks(), separator)] == pieces
