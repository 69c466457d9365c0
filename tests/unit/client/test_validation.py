"""The validator accepts every history of a server that keeps its promises, and catches each fault by its own check."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from strandline_client.errors import LOST, Check
from strandline_client.history import (
    Acknowledgement,
    Change,
    Message,
    PagedEntity,
    Recording,
    Selection,
    Session,
    Unit,
)
from strandline_client.position import Start
from strandline_client.validation import validate

EPOCH = "00c0ffee"
NAMES = [f"namespaces/n/types/{kind}/entities/{number}" for kind in ("buoy", "ship") for number in range(3)]


@dataclass
class History:
    """A log, one reader of it, and what a writer was told."""

    log: list[Unit]
    recording: Recording
    acknowledgements: list[Acknowledgement]

    def checks(self) -> set[Check]:
        return {violation.check for violation in validate(self.log, [self.recording], self.acknowledgements)}


def logs(at_least: int) -> st.SearchStrategy[list[Unit]]:
    """Units of writes to a few names; what a write does follows from what the name held."""
    write = st.tuples(st.sampled_from(NAMES), st.none() | st.integers(0, 3))
    return st.lists(
        st.lists(write, min_size=1, max_size=4, unique_by=lambda item: item[0]), min_size=at_least, max_size=12
    ).map(log_of)


def log_of(writes: list[list[tuple[str, int | None]]]) -> list[Unit]:
    held: dict[str, Any] = {}
    live: set[str] = set()
    log: list[Unit] = []
    for unit in writes:
        changes = []
        for name, number in unit:
            before = held.get(name)
            if number is None:
                if name in live:
                    changes.append(Change("DELETED", name, before, before))
                    live.discard(name)
                continue
            data = {"n": number, "at": len(log)}
            changes.append(Change("UPDATED", name, data, before) if name in live else Change("CREATED", name, data))
            held[name] = data
            live.add(name)
        if changes:
            log.append(Unit(len(log) + 1, tuple(changes)))
    return log


def seen_by(selection: Selection, unit: Unit) -> Unit | None:
    """What the reader gets of *unit*: the server's rules, told once more."""
    kept = []
    for change in unit.changes:
        if not is_named(selection, change.name):
            continue
        before, now = (data is not None and is_wanted(selection, data) for data in (change.previous, change.data))
        kinds = {"CREATED": "CREATED" * now, "DELETED": "DELETED" * before}
        crossing = {(True, True): "UPDATED", (True, False): "LEFT", (False, True): "ENTERED", (False, False): ""}
        if kind := kinds.get(change.kind, crossing[before, now]):
            kept.append(replace(change, kind=kind))
    return Unit(unit.revision, tuple(kept)) if kept else None


def is_named(selection: Selection, name: str) -> bool:
    return name.split("/")[3] in (selection.types or ("buoy", "ship")) and name in (selection.ids or NAMES)


def is_wanted(selection: Selection, data: Any) -> bool:
    return selection.matches is None or selection.matches(data)


def snapshot_at(log: list[Unit], selection: Selection) -> list[PagedEntity]:
    state: dict[str, PagedEntity] = {}
    for unit in log:
        for change in unit.changes:
            state.pop(change.name, None)
            if change.kind != "DELETED" and is_named(selection, change.name):
                assert change.data is not None
                if is_wanted(selection, change.data):
                    state[change.name] = PagedEntity(change.name, unit.revision, change.data)
    return [state[name] for name in sorted(state)]


def sum_of(entities: Iterable[PagedEntity]) -> str:
    digests = (hashlib.sha256(f"{e.name} {e.revision}".encode()).digest() for e in entities)
    return f"{sum(map(int.from_bytes, digests)) % 2**256:064x}"


@st.composite
def histories(draw: st.DrawFn, at_least: int = 0) -> History:
    """What a server without faults sends, cut into messages and connections anywhere."""
    log = draw(logs(at_least))
    limit = draw(st.none() | st.integers(0, 3))
    types, ids = draw(st.sampled_from([((), ()), (("buoy",), ()), ((), (NAMES[0], NAMES[4]))]))
    matches = None if limit is None else lambda data: data["n"] >= limit
    selection = Selection(frozenset(types), frozenset(ids), matches)
    at = draw(st.integers(0, len(log)))
    recording = Recording("reader", selection)

    def begin_with_snapshot() -> None:
        recording.connected(Start(snapshot=True))
        entities = snapshot_at(log[:at], selection)
        size = draw(st.integers(1, 4))
        for place in range(0, len(entities), size):
            recording.received(Message(at, at, EPOCH, page=tuple(entities[place : place + size])))
        recording.received(Message(at, at, EPOCH, summary=(len(entities), sum_of(entities))))

    if draw(st.booleans()):
        begin_with_snapshot()
    else:
        recording.connected(Start(after_revision=at, epoch=EPOCH))
    while at < len(log):
        to = draw(st.integers(at, min(at + 4, len(log))))
        units = tuple(filter(None, (seen_by(selection, unit) for unit in log[at:to])))
        body: dict[str, Any] = {"units": units} if units else {"head": len(log)}
        recording.received(Message(at, to, EPOCH, **body))
        if draw(st.integers(0, 3)) == 0:
            recording.received(Message(to, to, EPOCH, end="DRAINING"))
            recording.connected(Start(after_revision=to, epoch=EPOCH))
        elif draw(st.integers(0, 7)) == 0:
            # Away while the log was cut, and told so: either when it comes again, or while it reads.
            if draw(st.booleans()):
                recording.connected(Start(after_revision=to, epoch=EPOCH))
                recording.refused("COMPACTED")
            else:
                recording.received(Message(to, to, EPOCH, end="COMPACTED"))
            to = draw(st.integers(to, len(log)))
            at = to
            begin_with_snapshot()
        at = to
    told = [
        Acknowledgement(u.revision, {c.name: c.data if c.kind != "DELETED" else None for c in u.changes}) for u in log
    ]
    return History(log, recording, told)


@given(histories())
@settings(max_examples=60, deadline=None)
def test_a_history_without_faults_is_accepted(history: History) -> None:
    assert validate(history.log, [history.recording], history.acknowledgements) == []


# Each fault changes the history in place; ``choose`` picks one of several places, or gives the example up.
Choose = Callable[[Iterable[Any]], Any]
Fault = Callable[[History, Choose], object]


def units_at(history: History, at_least: int = 1) -> Iterator[tuple[Session, int]]:
    """Where messages of at least so many units stand."""
    for session in history.recording.sessions:
        for place, message in enumerate(session.messages):
            if message.units is not None and len(message.units) >= at_least:
                yield session, place


def rewrite(history: History, choose: Choose, change: Callable[[Change], Change | None]) -> None:
    """Replace one delivered change for which *change* has a replacement."""
    session, place, u, c, new = choose(
        (session, place, u, c, new)
        for session, place in units_at(history)
        for u, unit in enumerate(session.messages[place].units or ())
        for c, old in enumerate(unit.changes)
        if (new := change(old)) is not None
    )
    units = list(session.messages[place].units)
    changes = units[u].changes
    units[u] = replace(units[u], changes=(*changes[:c], new, *changes[c + 1 :]))
    session.messages[place] = replace(session.messages[place], units=tuple(units))


def two_units_swapped(history: History, choose: Choose) -> None:
    session, place = choose(units_at(history, 2))
    first, second, *rest = session.messages[place].units
    session.messages[place] = replace(session.messages[place], units=(second, first, *rest))


def a_unit_twice(history: History, choose: Choose) -> None:
    session, place = choose(units_at(history))
    first, *rest = session.messages[place].units
    session.messages[place] = replace(session.messages[place], units=(first, first, *rest))


def a_unit_lost(history: History, choose: Choose) -> None:
    session, place = choose(units_at(history))
    session.messages[place] = replace(session.messages[place], units=session.messages[place].units[1:])


def a_unit_that_was_never_committed(history: History, choose: Choose) -> None:
    rewrite(history, choose, lambda change: replace(change, name="namespaces/n/types/buoy/entities/ghost"))


def other_content(history: History, choose: Choose) -> None:
    rewrite(history, choose, lambda change: replace(change, data={"n": 99}))


def a_change_of_a_unit_lost(history: History, choose: Choose) -> None:
    session, place, u = choose(
        (session, place, u)
        for session, place in units_at(history)
        for u, unit in enumerate(session.messages[place].units or ())
        if len(unit.changes) > 1
    )
    units = list(session.messages[place].units)
    units[u] = replace(units[u], changes=units[u].changes[1:])
    session.messages[place] = replace(session.messages[place], units=tuple(units))


def a_unit_in_two_pieces(history: History, choose: Choose) -> None:
    session, place, u = choose(
        (session, place, u)
        for session, place in units_at(history)
        for u, unit in enumerate(session.messages[place].units or ())
        if len(unit.changes) > 1
    )
    units = list(session.messages[place].units)
    pieces = [replace(units[u], changes=part) for part in (units[u].changes[:1], units[u].changes[1:])]
    session.messages[place] = replace(session.messages[place], units=(*units[:u], *pieces, *units[u + 1 :]))


def a_message_lost(history: History, choose: Choose) -> None:
    session, place = choose(
        (session, place)
        for session in history.recording.sessions
        for place, message in enumerate(session.messages[:-1])
        if place > 0 and message.revision > message.after
    )
    del session.messages[place]


def a_range_without_its_units(history: History, choose: Choose) -> None:
    assume(history.recording.selection.is_everything)
    session, place = choose(units_at(history))
    session.messages[place] = replace(session.messages[place], units=None, head=len(history.log))


def a_hole_in_the_log(history: History, choose: Choose) -> None:
    place = choose(range(len(history.log) - 1))
    del history.log[place]


def resumed(history: History) -> list[Session]:
    """The sessions that go on where the one before them ended."""
    return [session for session in history.recording.sessions[1:] if session.start.resumes]


def began_anew_unasked(history: History, choose: Choose) -> None:
    session = choose(
        session
        for before, session in pairwise(history.recording.sessions)
        if session.start.resumes and any(message.end is None for message in before.messages)
    )
    session.start = Start(now=True)


def a_gap_that_nobody_spoke_of(history: History, choose: Choose) -> None:
    session = choose(
        s for s in history.recording.sessions if s.refusal or (len(s.messages) > 1 and s.messages[-1].end in LOST)
    )
    session.refusal = ""
    session.messages = [message for message in session.messages if message.end not in LOST]


def began_again_with_an_older_state(history: History, choose: Choose) -> None:
    sessions = history.recording.sessions
    later = choose(
        n
        for n, session in enumerate(sessions)
        if n and sessions[n - 1].lost_its_place and any(message.revision for message in sessions[n - 1].messages)
    )
    sessions[later].messages[:] = [Message(0, 0, EPOCH, summary=(0, sum_of([])))]


def resumed_too_late(history: History, choose: Choose) -> None:
    session = choose(s for s in resumed(history) if s.messages and s.messages[0].revision > s.messages[0].after)
    first = session.messages[0]
    session.messages[0] = replace(first, after=first.after + 1)


def resumed_too_early(history: History, choose: Choose) -> None:
    session = choose(s for s in resumed(history) if s.messages and s.messages[0].after > 0)
    first = session.messages[0]
    session.messages[0] = replace(first, after=first.after - 1)


def asked_to_resume_too_late(history: History, choose: Choose) -> None:
    session = choose(resumed(history))
    session.start = replace(session.start, after_revision=session.start.after_revision + 1)


def resumed_in_another_life(history: History, choose: Choose) -> None:
    session = choose(s for s in resumed(history) if s.messages)
    session.messages[0] = replace(session.messages[0], epoch="deadbeef")


def progress_before_its_changes(history: History, choose: Choose) -> None:
    session, place = choose(units_at(history))
    late = session.messages[place]
    session.messages.insert(place, Message(late.after, late.revision, EPOCH, head=len(history.log)))
    session.messages[place + 1] = replace(late, after=late.revision)


def complete_beyond_the_head(history: History, choose: Choose) -> None:
    session = choose(s for s in history.recording.sessions if s.messages and s.messages[-1].revision > 0)
    last = session.messages[-1]
    session.messages.append(Message(last.revision, last.revision, EPOCH, head=last.revision - 1))


def what_does_not_match(history: History, choose: Choose) -> None:
    selection = history.recording.selection
    session, place, unit = choose(
        (session, place, unit)
        for session, place in units_at(history)
        for unit in history.log[session.messages[place].after : session.messages[place].revision]
        if seen_by(selection, unit) is None
    )
    units = (*session.messages[place].units, unit)
    ordered = tuple(sorted(units, key=lambda unit: unit.revision))
    session.messages[place] = replace(session.messages[place], units=ordered)


def another_crossing(history: History, choose: Choose) -> None:
    other = {"UPDATED": "ENTERED", "ENTERED": "UPDATED", "LEFT": "UPDATED"}
    rewrite(history, choose, lambda change: replace(change, kind=other[change.kind]) if change.kind in other else None)


def a_stale_previous(history: History, choose: Choose) -> None:
    rewrite(history, choose, lambda change: replace(change, previous={"n": -1}) if change.previous else None)


def no_previous(history: History, choose: Choose) -> None:
    rewrite(history, choose, lambda change: replace(change, previous=None) if change.previous else None)


def pages(history: History) -> Iterator[tuple[Session, int]]:
    for session in history.recording.sessions:
        yield from ((session, place) for place, message in enumerate(session.messages) if message.page)


def an_entity_lost_from_the_snapshot(history: History, choose: Choose) -> Session:
    session, place = choose(pages(history))
    session.messages[place] = replace(session.messages[place], page=session.messages[place].page[1:])
    return session  # type: ignore[no-any-return]


def an_entity_twice_in_the_snapshot(history: History, choose: Choose) -> None:
    session, place = choose(pages(history))
    page = session.messages[place].page
    session.messages[place] = replace(session.messages[place], page=(*page, page[0]))


def a_snapshot_that_lacks_an_entity_and_says_so(history: History, choose: Choose) -> None:
    session = an_entity_lost_from_the_snapshot(history, choose)
    rest = [entity for message in session.messages for entity in message.page or ()]
    place = next(place for place, message in enumerate(session.messages) if message.summary)
    session.messages[place] = replace(session.messages[place], summary=(len(rest), sum_of(rest)))


def old_content_in_the_snapshot(history: History, choose: Choose) -> None:
    session, place = choose(pages(history))
    first, *rest = session.messages[place].page
    session.messages[place] = replace(session.messages[place], page=(replace(first, data={"n": -1}), *rest))


def an_acknowledged_write_lost(history: History, choose: Choose) -> None:
    told = choose(history.acknowledgements)
    told.contents["namespaces/n/types/buoy/entities/lost"] = {"n": 1}


def an_acknowledged_content_lost(history: History, choose: Choose) -> None:
    told = choose(history.acknowledgements)
    told.contents[next(iter(told.contents))] = {"n": 99}


FAULTS: list[tuple[Check, Fault]] = [
    ("ordered", two_units_swapped),
    ("unique", a_unit_twice),
    ("reliable", a_unit_lost),
    ("reliable", a_unit_that_was_never_committed),
    ("reliable", other_content),
    ("atomic", a_change_of_a_unit_lost),
    ("atomic", a_unit_in_two_pieces),
    ("dense", a_message_lost),
    ("dense", a_range_without_its_units),
    ("dense", a_hole_in_the_log),
    ("resumable", resumed_too_late),
    ("resumable", resumed_too_early),
    ("resumable", asked_to_resume_too_late),
    ("resumable", resumed_in_another_life),
    ("resumable", began_anew_unasked),
    ("resumable", a_gap_that_nobody_spoke_of),
    ("bookmarkable", progress_before_its_changes),
    ("bookmarkable", complete_beyond_the_head),
    ("bookmarkable", began_again_with_an_older_state),
    ("filter", what_does_not_match),
    ("enter_leave", another_crossing),
    ("previous_value", a_stale_previous),
    ("previous_value", no_previous),
    ("snapshot", an_entity_lost_from_the_snapshot),
    ("snapshot", an_entity_twice_in_the_snapshot),
    ("snapshot", a_snapshot_that_lacks_an_entity_and_says_so),
    ("snapshot", old_content_in_the_snapshot),
    ("durable", an_acknowledged_write_lost),
    ("durable", an_acknowledged_content_lost),
]


def test_every_check_has_a_fault_that_it_must_catch() -> None:
    assert {check for check, _ in FAULTS} == set(Check.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("check", "fault"), FAULTS, ids=lambda item: getattr(item, "__name__", item))
def test_each_fault_is_caught_by_its_own_check(check: Check, fault: Fault) -> None:
    planted = 0

    @given(histories(at_least=5), st.data())
    # The same examples in every run: some faults fit few histories, and none must go untested by chance.
    @settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def plant(history: History, data: st.DataObject) -> None:
        nonlocal planted

        def choose(places: Iterable[Any]) -> Any:
            found = list(places)
            assume(found)
            return found[data.draw(st.integers(0, len(found) - 1))]

        fault(history, choose)
        planted += 1
        assert check in history.checks()

    plant()
    assert planted > 0
