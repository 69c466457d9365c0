"""Segments: borders that depend on the log alone, little read twice, and nothing that was purged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strandline.stream.v1 import feed_pb2

from services.runtime.changelog import Head
from services.runtime.errors import FailedPrecondition, OutOfRange, Unavailable
from services.stream.hub import Hub
from services.stream.segments import MAX_BYTES, MAX_UNITS, Segment, Segments


def unit(revision: int, size: int) -> bytes:
    return feed_pb2.Unit(revision=revision, actor="x" * size).SerializeToString()


class Log:
    """A log that answers as ``LogService`` does, and counts what it was asked for."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.bodies = [unit(revision, size) for revision, size in enumerate(sizes, 1)]
        self.horizon = 0
        self.epoch = "00c0ffee"
        self.reads: list[tuple[int, int]] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.asked = asyncio.Event()

    @property
    def head(self) -> Head:
        return Head("tides", self.epoch, len(self.bodies), self.horizon)

    async def units(self, namespace: str, after: int, to: int = 0, max_bytes: int = 0) -> tuple[Head, Sequence[bytes]]:
        head = self.head
        if after < self.horizon:
            raise OutOfRange("COMPACTED", "cut", horizon_revision=str(self.horizon))
        found: list[bytes] = []
        for body in self.bodies[after:to]:
            if found and sum(map(len, found)) + len(body) > max_bytes:
                break
            found.append(body)
        self.reads.append((after, sum(map(len, found))))
        self.asked.set()
        await self.go_on.wait()
        return head, found

    def purge(self, upto: int) -> int:
        """Blank the units up to *upto* in place, and commit that; the revision."""
        self.bodies = [bytes(len(body)) for body in self.bodies[:upto]] + self.bodies[upto:]
        self.bodies.append(feed_pb2.Unit(changes=[feed_pb2.Change(kind=feed_pb2.Change.PURGED)]).SerializeToString())
        return len(self.bodies)


def hub_of(log: Log) -> Hub:
    hub = Hub("tides")
    hub.start(log.head)
    return hub


async def walk(log: Log, segments: Segments, hub: Hub, cursor: int) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Everything after *cursor*, and the ranges in which it came."""
    bodies, ranges = [], []
    while cursor < len(log.bodies):
        segment = await segments.after(hub, cursor)
        assert segment is not None
        batch = segment.batch(cursor)
        assert (batch.after, batch.revision) == (cursor, segment.revision)
        assert len(batch.units) == batch.revision - batch.after
        bodies += [each.body for each in batch.units]
        ranges.append((cursor, batch.revision))
        cursor = batch.revision
    return bodies, ranges


def borders(bodies: Sequence[bytes]) -> list[int]:
    """Where segments end, by their definition."""
    ends, cursor = [], 0
    while cursor < len(bodies):
        size = MAX_UNITS
        while True:
            after = cursor // size * size
            block = bodies[after : after + size]
            if size == 1 or sum(map(len, block)) <= MAX_BYTES:
                break
            size //= 2
        cursor = after + len(block)
        ends.append(cursor)
    return ends


SIZES = st.lists(
    st.tuples(st.integers(1, 900), st.sampled_from([10, 300, 1_000, 20_000, 150_000, 300_000])), min_size=1, max_size=6
).map(lambda runs: [size for count, size in runs for _ in range(min(count, 12_000_000 // size // 6))])


@settings(max_examples=30, deadline=None)
@given(SIZES, st.data())
async def test_borders_depend_on_the_log_and_not_on_who_asks_where(sizes: list[int], data: st.DataObject) -> None:
    log = Log(sizes)
    expected = borders(log.bodies)
    hub, segments = hub_of(log), Segments(log, max_bytes=data.draw(st.sampled_from([0, 2**20, 2**26])))
    for cursor in [*data.draw(st.lists(st.integers(0, len(sizes)), max_size=3)), 0]:
        bodies, ranges = await walk(log, segments, hub, cursor)
        assert bodies == log.bodies[cursor:]
        assert [end for _, end in ranges] == [end for end in expected if end > cursor]


@settings(max_examples=20, deadline=None)
@given(SIZES)
async def test_walking_a_log_reads_it_once(sizes: list[int]) -> None:
    log = Log(sizes)
    await walk(log, Segments(log, max_bytes=2**27), hub_of(log), 0)
    assert sum(size for _, size in log.reads) == sum(map(len, log.bodies))


async def test_readers_that_come_together_cost_one_read_each_segment() -> None:
    log = Log([600] * 3_000)
    hub, segments = hub_of(log), Segments(log)
    walks = await asyncio.gather(*(walk(log, segments, hub, cursor) for cursor in (0, 5, 700) for _ in range(50)))
    for (bodies, _), cursor in zip(walks, [c for c in (0, 5, 700) for _ in range(50)], strict=True):
        assert bodies == log.bodies[cursor:]
    assert len({after for after, _ in log.reads}) == len(log.reads), "something was read twice"
    first, again = await segments.after(hub, 3), await segments.after(hub, 3)
    assert first is not None
    assert again is not None
    assert first.batch(3) is again.batch(3), "it would be encoded for each reader"


async def test_a_segment_at_the_head_grows_by_what_is_new() -> None:
    log = Log([100] * 10)
    hub, segments = hub_of(log), Segments(log)
    assert (await walk(log, segments, hub, 0))[1] == [(0, 10)]
    log.bodies += [unit(revision, 100) for revision in range(11, 21)]
    log.reads.clear()
    assert (await walk(log, segments, hub, 4))[1] == [(4, 10), (10, 20)]
    assert [after for after, _ in log.reads] == [10]
    assert await segments.after(hub, 20) is None
    assert await walk(log, segments, hub, 0) == (log.bodies, [(0, 20)])


async def test_who_asks_for_all_there_is_gets_what_came_since_the_segment_was_read() -> None:
    log = Log([100] * 10)
    hub, segments = hub_of(log), Segments(log)
    await walk(log, segments, hub, 0)
    log.bodies += [unit(revision, 100) for revision in range(11, 2_001)]
    for reach, end in ((0, 10), (11, 1024), (2_000, 1024)):
        segment = await segments.after(hub, 0, reach)
        assert segment is not None
        assert segment.revision == end


async def test_a_purge_that_the_hub_has_seen_is_in_every_segment_from_then_on() -> None:
    log = Log([100] * 30)
    hub, segments = hub_of(log), Segments(log)
    before, _ = await walk(log, segments, hub, 0)
    assert b"x" in before[3]
    purged = log.purge(30)
    hub.append(30, log.bodies[30:])
    assert hub.purged_to == purged
    bodies, _ = await walk(log, segments, hub, 0)
    assert bodies == log.bodies


async def test_a_read_that_a_purge_overtakes_is_done_again() -> None:
    log = Log([100] * 30)
    hub, segments = hub_of(log), Segments(log)
    log.go_on.clear()
    walking = asyncio.create_task(walk(log, segments, hub, 0))
    await log.asked.wait()
    log.purge(30)
    hub.append(30, log.bodies[30:])
    log.go_on.set()
    bodies, _ = await walking
    assert bodies == log.bodies


async def test_who_comes_when_an_overtaken_read_has_just_ended_reads_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log([100] * 10)
    segments, hub = Segments(log), hub_of(log)
    hub.start(Head("tides", log.epoch, 0))
    late: list[asyncio.Task[Segment | None]] = []
    units = log.units

    async def overtaken(namespace: str, after: int, to: int = 0, max_bytes: int = 0) -> tuple[Head, Sequence[bytes]]:
        answer = await units(namespace, after, to, max_bytes)
        if not late:
            hub.purged_to = log.purge(5)
            late.append(asyncio.create_task(segments.after(hub, 0)))  # its turn comes before that of those who wait
        return answer

    monkeypatch.setattr(log, "units", overtaken)
    for segment in (await segments.after(hub, 0), await late[0]):
        assert segment is not None
        assert [each.body for each in segment.units] == log.bodies


async def test_what_may_hold_purged_content_does_not_stay_in_memory() -> None:
    log = Log([100] * 3)
    hub, segments = hub_of(log), Segments(log)
    await walk(log, segments, hub, 0)
    segments.sweep()
    log.reads.clear()
    await segments.after(hub, 0)
    assert not log.reads
    log.purge(3)
    hub.append(3, log.bodies[3:])
    segments.sweep()
    assert not segments.held_bytes
    await walk(log, segments, hub, 0)
    assert segments.held_bytes
    hub.end()
    segments.sweep()
    assert not segments.held_bytes


async def test_memory_is_bounded() -> None:
    log = Log([10_000] * 500)
    hub, segments = hub_of(log), Segments(log, max_bytes=2**20)
    await walk(log, segments, hub, 0)
    assert 0 < segments.held_bytes <= 2**20


async def test_memory_is_bounded_whatever_is_made_of_segments_and_readers_at_one_place_cost_one_read() -> None:
    log = Log([10_000] * 500)
    hub, segments = hub_of(log), Segments(log, max_bytes=2**24)
    for cursor in range(480):
        segment = await segments.after(hub, cursor)
        assert segment is not None
        rest = segment.batch(cursor)
        assert len(rest.views) == len(rest.units)
        assert rest.protobuf
        assert rest.json
        del rest
        assert segments.held_bytes <= 2**24
        assert segments.held_bytes > 11 * len(segment.units[-1].body)
    assert sum(count for _, count in log.reads) < 1.5 * sum(map(len, log.bodies))
    hub.end()
    segments.sweep()
    assert segments.held_bytes == 0


async def test_what_is_made_of_a_segment_that_is_kept_no_longer_counts_no_longer() -> None:
    log = Log([1_000] * 50)
    hub, segments = hub_of(log), Segments(log)
    segment = await segments.after(hub, 0)
    assert segment is not None
    rest, held = segment.batch(0), segments.held_bytes
    assert rest.protobuf
    assert segments.held_bytes > held + 50_000
    for cursor in range(1, 9):
        segment.batch(cursor)
    assert segments.held_bytes == held
    assert rest.views
    assert segments.held_bytes == held


async def test_what_was_cut_is_refused_and_the_rest_of_its_segment_is_not() -> None:
    log = Log([100] * 2_000)
    hub, segments = hub_of(log), Segments(log)
    log.horizon = 700
    for cursor in (0, 699):
        with pytest.raises(OutOfRange) as raised:
            await segments.after(hub, cursor)
        assert (raised.value.reason, raised.value.metadata) == ("COMPACTED", {"horizon_revision": "700"})
    assert await walk(log, segments, hub, 700) == (log.bodies[700:], [(700, 1024), (1024, 2000)])
    log.horizon = 900
    hub.learn(log.head)
    with pytest.raises(OutOfRange):
        await segments.after(hub, 800)
    assert (await walk(log, segments, hub, 950))[1] == [(950, 1024), (1024, 2000)]


async def test_another_life_of_the_log_is_refused() -> None:
    log = Log([100] * 3)
    hub, segments = hub_of(log), Segments(log)
    log.epoch = "0badcafe"
    with pytest.raises(FailedPrecondition) as raised:
        await segments.after(hub, 0)
    assert (raised.value.reason, raised.value.metadata) == ("EPOCH_CHANGED", {"epoch": "0badcafe"})


async def test_readers_that_wait_for_a_read_share_its_failure_and_the_next_reader_tries_again() -> None:
    class Away(Log):
        async def units(
            self, namespace: str, after: int, to: int = 0, max_bytes: int = 0
        ) -> tuple[Head, Sequence[bytes]]:
            await super().units(namespace, after, to, max_bytes)
            raise Unavailable("OVERLOADED", "away")

    log = Away([100] * 3)
    hub, segments = hub_of(log), Segments(log)
    outcomes = await asyncio.gather(*(segments.after(hub, 0) for _ in range(5)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert len(log.reads) == 1
    with pytest.raises(Unavailable):
        await segments.after(hub, 0)
    assert len(log.reads) == 2


async def test_a_reader_that_leaves_does_not_take_the_others_read_with_it() -> None:
    log = Log([100] * 3)
    hub, segments = hub_of(log), Segments(log)
    log.go_on.clear()
    first, second = (asyncio.create_task(segments.after(hub, 0)) for _ in range(2))
    await log.asked.wait()
    first.cancel()
    log.go_on.set()
    segment = await second
    assert segment is not None
    assert segment.revision == 3
    assert len(log.reads) == 1
