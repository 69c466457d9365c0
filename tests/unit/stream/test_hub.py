"""The ring: dense, bounded, and the same for every cursor."""

from __future__ import annotations

import asyncio
import random
import weakref

import pytest
from strandline.stream.v1 import feed_pb2

from services.runtime.changelog import Head
from services.stream.hub import Hub
from services.stream.messages import MAX_MESSAGE_BYTES, MAX_SHARED, LogUnit
from services.stream.selection import selection_of


def body(revision: int, size: int = 0) -> bytes:
    return feed_pb2.Unit(revision=revision, actor="x" * size).SerializeToString()


def bodies(after: int, to: int, size: int = 0) -> list[bytes]:
    return [body(revision, size) for revision in range(after + 1, to + 1)]


@pytest.fixture
def hub() -> Hub:
    made = Hub("tides", max_bytes=10_000, max_units=50)
    made.start(Head("tides", "00c0ffee", 10))
    return made


def test_a_hub_begins_empty_at_the_head(hub: Hub) -> None:
    assert (hub.floor, hub.position, hub.head, hub.batch(10)) == (10, 10, 10, None)


def test_units_after_a_gap_are_refused_and_known_ones_skipped(hub: Hub) -> None:
    assert not hub.append(11, bodies(11, 12))
    assert hub.append(10, bodies(10, 12))
    assert hub.append(9, bodies(9, 13))
    assert hub.append(10, bodies(10, 11))
    batch = hub.batch(10)
    assert batch is not None
    assert [view.unit.revision for view in batch.views] == [11, 12, 13]


def test_the_ring_is_bounded_in_units_and_in_bytes(hub: Hub) -> None:
    hub.append(10, bodies(10, 200))
    assert (hub.floor, hub.position) == (150, 200)
    hub.append(200, bodies(200, 260, size=1000))
    assert hub.position == 260
    assert 250 <= hub.floor < 260


def test_a_message_holds_about_a_mebibyte_but_always_one_unit() -> None:
    hub = Hub("tides")
    hub.start(Head("tides", "00c0ffee", 0))
    hub.append(0, [*bodies(0, 3, size=400_000), body(4, size=3_000_000), *bodies(4, 5)])
    sizes = []
    cursor = 0
    while (batch := hub.batch(cursor)) is not None:
        assert batch.after == cursor
        sizes.append(len(batch.units))
        assert len(batch.protobuf) <= MAX_MESSAGE_BYTES + 100 or len(batch.units) == 1
        cursor = batch.revision
    assert (cursor, sizes) == (5, [2, 1, 1, 1])


def test_subscribers_at_one_place_share_one_message(hub: Hub) -> None:
    hub.append(10, bodies(10, 12))
    assert hub.batch(10) is hub.batch(10)
    hub.append(12, bodies(12, 13))
    batch = hub.batch(10)
    assert batch is not None
    assert batch.revision == 13


def test_messages_that_are_kept_to_be_shared_are_few() -> None:
    hub = Hub("tides")
    hub.start(Head("tides", "00c0ffee", 0))
    audience = hub.join(selection_of([], "", include_previous=False))
    hub.append(0, bodies(0, 20))
    for revision in range(1, 21):
        audience.keep(revision, LogUnit(body(revision)))
    for batch_of in (hub.batch, lambda cursor: audience.batch(cursor, 20)):
        batches = [weakref.ref(made) for cursor in range(20) if (made := batch_of(cursor)) is not None]
        del made
        assert len(batches) == 20
        assert sum(batch() is not None for batch in batches) <= MAX_SHARED


def test_any_order_of_overlapping_pieces_and_any_pace_of_reading_gives_the_same_feed() -> None:
    chance = random.Random(7)
    for _ in range(200):
        hub = Hub("tides", max_units=20)
        hub.start(Head("tides", "00c0ffee", 0))
        cursors = dict.fromkeys("abc", 0)
        seen: dict[str, list[int]] = {name: [] for name in cursors}
        while hub.position < 60:
            after = max(0, hub.position + chance.randint(-5, 2))
            to = after + chance.randint(0, 8)
            assert hub.append(after, bodies(after, to)) == (after <= hub.position) or hub.position >= to
            for name in cursors:
                if chance.random() < 0.5 and cursors[name] >= hub.floor and (batch := hub.batch(cursors[name])):
                    seen[name] += [view.unit.revision for view in batch.views]
                    cursors[name] = batch.revision
        for name, revisions in seen.items():
            assert revisions == list(range(1, cursors[name] + 1))


async def test_one_change_wakes_everybody_who_waits(hub: Hub) -> None:
    waiting = [asyncio.create_task(hub.changed()) for _ in range(100)]
    await asyncio.sleep(0)
    hub.append(10, bodies(10, 11))
    await asyncio.wait_for(asyncio.gather(*waiting), 30)


async def test_a_waiter_that_is_cancelled_leaves_the_others(hub: Hub) -> None:
    first, second = (asyncio.create_task(hub.changed()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    hub.wake()
    await asyncio.wait_for(second, 30)
    assert first.cancelled()


def test_a_purge_drops_what_came_before_it_from_the_ring(hub: Hub) -> None:
    purge = feed_pb2.Unit(revision=15, changes=[feed_pb2.Change(kind=feed_pb2.Change.PURGED)]).SerializeToString()
    hub.append(10, [*bodies(10, 14), purge, *bodies(15, 17)])
    assert (hub.floor, hub.position) == (14, 17)
    batch = hub.batch(14)
    assert batch is not None
    assert [view.unit.revision for view in batch.views] == [15, 16, 17]
    hub.append(17, bodies(17, 100))
    assert hub.floor == 50, "what is left is counted as before"


def test_content_that_looks_like_a_purge_drops_nothing(hub: Hub) -> None:
    hub.append(10, [*bodies(10, 12), feed_pb2.Unit(revision=13, actor="\b\5").SerializeToString()])
    assert (hub.floor, hub.position) == (10, 13)
