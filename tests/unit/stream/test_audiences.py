"""Readers who asked for the same: whatever the ring forgets, each gets what the log holds for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.changelog import Head
from services.stream.audiences import Audience
from services.stream.hub import Hub
from services.stream.messages import LogUnit, UnitsMessage
from services.stream.selection import Selection, selection_of

Change = feed_pb2.Change
EPOCH = "00c0ffee"
SELECTIONS = [
    selection_of([], "data.n = 1"),
    selection_of([], "data.n = 1 AND data.m > 2"),
    selection_of([], "data.n > 1"),
    selection_of(["ship"], ""),
    selection_of([], "", ids=["buoy/1", "buoy/2"]),
    selection_of([], "", include_previous=False),
]


def unit(revision: int, *entities: tuple[int, int, int], purged: bool = False, padding: int = 0) -> bytes:
    """A unit that gives buoys and ships by number, (number, n, m), their content."""
    made = feed_pb2.Unit(revision=revision, actor="x" * padding)
    for number, n, m in entities:
        type_id = "ship" if number > 3 else "buoy"
        entity = entity_pb2.Entity(name=f"namespaces/tides/types/{type_id}/entities/{number}", type=type_id)
        previous = entity_pb2.Entity(name=entity.name, type=type_id)
        entity.data.update({"n": n, "m": m})
        previous.data.update({"n": m, "m": n})
        kind = Change.PURGED if purged else Change.UPDATED
        made.changes.append(Change(kind=kind, entity=entity, previous=previous))
    return made.SerializeToString()


def hub_at(position: int, max_bytes: int = 10**6, max_units: int = 1000) -> Hub:
    hub = Hub("tides", max_bytes, max_units)
    hub.start(Head("tides", EPOCH, position))
    return hub


@dataclass
class Reader:
    """As a feed reads: the audience if it knows, else the ring, else the log."""

    hub: Hub
    log: list[bytes]
    selection: Selection
    audience: Audience
    start: int
    cursor: int = field(init=False)
    seen: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cursor = self.start

    def look(self) -> None:
        if self.cursor >= self.audience.since:
            batch = self.audience.batch(self.cursor, self.hub.position)
            self.cursor = max(self.cursor, batch.revision if batch else self.hub.position)
        elif self.cursor >= self.hub.floor:
            whole = self.hub.batch(self.cursor)
            assert whole is not None
            batch = self.selection.of_units(whole, self.cursor)
            self.cursor = whole.revision
        else:
            end = min(self.cursor + 3, self.hub.position)
            bodies = [LogUnit(body) for body in self.log[self.cursor : end]]
            batch = self.selection.of_units(UnitsMessage(EPOCH, self.cursor, end, bodies), self.cursor)
            self.cursor = end
        self.seen += [each.body for each in batch.units] if batch else []

    def expected(self) -> list[bytes]:
        whole = [LogUnit(body) for body in self.log[self.start : self.cursor]]
        kept = self.selection.of_units(UnitsMessage(EPOCH, self.start, self.cursor, whole), self.start)
        return [each.body for each in kept.units] if kept else []


entities = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=3, unique_by=lambda e: e[0]
)
steps = st.one_of(
    st.tuples(st.just("commit"), st.lists(st.tuples(entities, st.booleans()), min_size=1, max_size=5)),
    st.tuples(st.just("join"), st.integers(0, len(SELECTIONS) - 1), st.integers(0, 8)),
    st.tuples(st.just("look"), st.integers(0, 9)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
    st.tuples(st.just("tick")),
    st.tuples(st.just("lose touch"), st.lists(entities, min_size=1, max_size=3)),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=40), st.sampled_from([400, 1500, 100_000]), st.sampled_from([4, 1000]))
def test_readers_that_come_and_go_at_any_pace_get_what_the_log_holds_for_them(
    script: list[Any], max_bytes: int, max_units: int
) -> None:
    hub = hub_at(0, max_bytes=max_bytes, max_units=max_units)
    log: list[bytes] = []
    readers: list[Reader] = []
    for step, *arguments in script:
        match step:
            case "commit":
                for several, purged in arguments[0]:
                    log.append(unit(len(log) + 1, *several, purged=purged and len(several) == 1))
                assert hub.append(hub.position, log[hub.position :])
            case "join":
                number, back = arguments
                selection = SELECTIONS[number]
                readers.append(Reader(hub, log, selection, hub.join(selection), max(0, hub.position - back)))
            case "look":
                for reader in readers[arguments[0] : arguments[0] + 1]:
                    reader.look()
            case "leave":
                for reader in readers[arguments[0] : arguments[0] + 1]:
                    hub.leave(reader.audience)
                    readers.remove(reader)
            case "tick":
                hub.wake()
            case "lose touch":
                log += [unit(len(log) + 1, *several) for several in arguments[0]]
                hub.start(Head("tides", EPOCH, len(log)))
        for reader in readers:
            assert reader.seen == reader.expected()
    for reader in readers:
        while reader.cursor < len(log):
            reader.look()
        assert reader.seen == reader.expected()


async def test_only_those_whom_a_unit_concerns_are_woken() -> None:
    hub = hub_at(0)
    audiences = {n: hub.join(selection_of([], f"data.n = {n}")) for n in range(10, 60)}
    audiences[0] = hub.join(selection_of(["ship"], ""))
    waiting = {n: asyncio.create_task(audience.changed()) for n, audience in audiences.items()}
    await asyncio.sleep(0)
    hub.append(0, [unit(1, (1, 20, 21)), unit(2, (2, 20, 30))])
    await asyncio.sleep(0)
    assert [n for n, task in waiting.items() if task.done()] == [20, 21, 30]
    hub.wake()
    await asyncio.wait_for(asyncio.gather(*waiting.values()), 15)


def test_readers_with_one_selection_share_one_message_whatever_range_it_covers() -> None:
    hub = hub_at(5)
    first, second = hub.join(selection_of([], "data.n = 1")), hub.join(selection_of([], "data.n = 1"))
    assert first is second
    hub.append(5, [unit(6, (1, 1, 0)), unit(7, (1, 5, 5))])
    batch = first.batch(5, hub.position)
    assert batch is not None
    assert (batch.after, batch.revision, len(batch.units)) == (5, 7, 1)
    wider = batch.covering(2)
    assert wider.units is batch.units
    for message in (batch, wider):
        parsed = feed_pb2.WatchResponse.FromString(message.protobuf)
        assert (parsed.after_revision, parsed.revision) == (message.after, 7)
        assert [each.revision for each in parsed.units.units] == [6]


def test_a_purge_makes_an_audience_forget_what_came_before_it() -> None:
    hub = hub_at(0)
    audience = hub.join(selection_of([], "data.n > 0"))
    hub.append(0, [unit(1, (1, 1, 1)), unit(2, (2, 1, 1))])
    assert audience.batch(0, hub.position) is not None
    hub.append(2, [unit(3, (1, 0, 0), purged=True)])
    assert audience.since == 2
    batch = audience.batch(2, hub.position)
    assert batch is not None
    assert [view.unit.revision for view in batch.views] == [3]


def test_what_audiences_hold_is_bounded() -> None:
    hub = hub_at(0, max_bytes=20_000)
    audiences = [hub.join(selection_of([], f"data.n > {n}", include_previous=False)) for n in range(20)]
    for revision in range(1, 500):
        hub.append(revision - 1, [unit(revision, (1, 50, 50))])
    held = [audience.batch(audience.since, hub.position) for audience in audiences]
    assert sum(len(each.body) for batch in held if batch for each in batch.units) <= 20_000
    assert all(hub.floor <= audience.since < hub.position for audience in audiences)


def test_units_that_would_take_too_long_to_evaluate_are_left_to_their_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.stream.audiences.MAX_EVALUATIONS", 10)
    hub = hub_at(0)
    audiences = [hub.join(selection_of([], f"data.n > {n}")) for n in range(4)]
    hub.append(0, [unit(revision, (1, 9, 9)) for revision in range(1, 5)])
    assert [audience.since for audience in audiences] == [4, 4, 4, 4]
    hub.append(4, [unit(5, (1, 9, 9))])
    for audience in audiences:
        batch = audience.batch(4, hub.position)
        assert batch is not None
        assert batch.revision == 5


def test_a_unit_that_cannot_be_read_is_never_taken_for_one_that_does_not_match(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = hub_at(0)
    audience = hub.join(selection_of([], "data.n = 1"))
    assert hub.append(0, [unit(1, (1, 1, 1)), b"\xff"])
    assert (audience.since, "cannot be evaluated" in caplog.text) == (2, True)


async def test_an_audience_whose_units_are_left_to_its_readers_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.stream.audiences.MAX_EVALUATIONS", 0)
    hub = hub_at(0)
    task = asyncio.create_task(hub.join(selection_of(["ship"], "")).changed())
    await asyncio.sleep(0)
    hub.append(0, [unit(1, (5, 1, 1))])
    await asyncio.wait_for(task, 15)


def test_a_reader_for_whom_nothing_happens_does_not_fall_off_the_ring() -> None:
    hub = hub_at(0, max_units=4)
    audience = hub.join(selection_of([], "data.n = 7"))
    for revision in range(1, 100):
        hub.append(revision - 1, [unit(revision, (1, 0, 0))])
    hub.append(99, [unit(100, (1, 7, 0))])
    assert (hub.floor, audience.since) == (96, 0)
    batch = audience.batch(0, hub.position)
    assert batch is not None
    assert (batch.after, batch.revision, [view.unit.revision for view in batch.views]) == (0, 100, [100])


def test_a_message_to_an_audience_holds_about_a_mebibyte_and_covers_what_it_holds() -> None:
    hub = hub_at(0, max_bytes=10**7)
    audience = hub.join(selection_of(["buoy"], ""))
    hub.append(0, [unit(revision, (1, 1, 1), padding=400_000) for revision in range(1, 6)])
    covered, cursor = [], 0
    while (batch := audience.batch(cursor, hub.position)) is not None:
        covered.append((batch.after, batch.revision, len(batch.units)))
        cursor = batch.revision
    assert covered == [(0, 2, 2), (2, 4, 2), (4, 5, 1)]


async def test_what_a_purge_took_along_is_gone_before_anybody_is_told() -> None:
    hub = hub_at(0)
    audience = hub.join(selection_of([], "data.n > 0"))
    found: list[tuple[int, UnitsMessage | None]] = []

    def take() -> bool:
        found.append((audience.since, audience.batch(audience.since, hub.position)))
        return True

    waiting = asyncio.create_task(audience.changed(take))
    await asyncio.sleep(0)
    hub.append(0, [unit(1, (1, 1, 1)), unit(2, (1, 1, 1), purged=True), unit(3, (2, 1, 1))])
    ((since, message),) = found
    assert message is not None
    assert (since, message.after, message.revision) == (1, 1, 3)
    assert [view.unit.revision for view in message.views] == [2, 3]
    waiting.cancel()
