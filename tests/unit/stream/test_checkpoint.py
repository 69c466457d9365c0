"""Groups against a model that keeps one record per change for ever and looks at all of them each time."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.stream import checkpoint
from services.stream.checkpoint import AckId, Group, Parked, Policy, Position, Selected

KEYS = "abcd"
POLICY = Policy(max_in_flight=5, ack_deadline=10, max_attempts=3, min_backoff=2, max_backoff=6)


@dataclass
class Record:
    """What the model knows of one change. ``state``: waiting, flying, parked or done."""

    position: Position
    key: str
    state: str = "waiting"
    attempts: int = 0
    due: int = 0
    ack_id: AckId | None = None
    delivered: list[int] = field(default_factory=list)


class Groups(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.group = Group(cursor=0, next_delivery=77)
        self.records: dict[Position, Record] = {}
        self.revision = 0
        self.units: dict[int, list[str]] = {}
        self.parked: dict[Position, Parked] = {}  # what a database would hold
        self.given: list[AckId] = []

    # The log

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=4, unique=True))
    def commit(self, keys: list[str]) -> None:
        self.revision += 1
        self.units[self.revision] = keys

    @precondition(lambda self: self.group.cursor < self.revision)
    @rule()
    def read(self) -> None:
        revision = self.group.cursor + 1
        selected = [Selected(Position(revision, index), key, 1) for index, key in enumerate(self.units[revision])]
        parked_keys = {parked.key for parked in self.parked.values()}
        assert self.group.fits(selected, parked_keys)
        self.group.admit(revision, selected, parked_keys)
        self._keep_parked()
        for change in selected:
            is_parked = any(one.key == change.key and one.state == "parked" for one in self.records.values())
            state = "parked" if is_parked else "waiting"
            self.records[change.position] = Record(change.position, change.key, state)

    # Workers

    @rule(limit=st.integers(1, 6))
    def hand_out(self, limit: int) -> None:
        self._model_expires()
        flying = [one for one in self.records.values() if one.state == "flying"]
        expected = [
            one.position
            for _, one in sorted(self.records.items())
            if one.state == "waiting"
            and one.due <= self.now
            and not any(
                other.key == one.key and other.position < one.position and other.state in ("waiting", "flying")
                for other in self.records.values()
            )
        ][: max(0, min(limit, POLICY.max_in_flight - len(flying)))]
        handed = self.group.hand_out(self.now, limit, POLICY)
        self._keep_parked()
        assert [item.position for item in handed] == expected
        for item in handed:
            record = self.records[item.position]
            record.state, record.ack_id = "flying", item.ack_id
            record.attempts += 1
            record.due = self.now + POLICY.ack_deadline
            record.delivered.append(item.delivery)
            assert (item.attempts, item.due) == (record.attempts, record.due)
            self.given.append(item.ack_id)

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        record, ack_id = self._draw(data)
        assert self.group.finish(ack_id) == (record is not None)
        if record is not None:
            record.state = "done"

    @precondition(lambda self: self.given)
    @rule(data=st.data(), pause=st.integers(0, 20))
    def retry(self, data: st.DataObject, pause: int) -> None:
        record, ack_id = self._draw(data)
        is_flying = record is not None and record.state == "flying"
        assert self.group.retry(ack_id, self.now + pause, POLICY) == is_flying
        self._keep_parked()
        if record is not None and is_flying:
            self._model_fails(record, self.now + pause)

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        record, ack_id = self._draw(data)
        assert self.group.park(ack_id, "NACK") == (record is not None)
        self._keep_parked()
        if record is not None:
            self._model_parks(record)

    @precondition(lambda self: self.given)
    @rule(data=st.data(), more=st.integers(1, 30))
    def extend(self, data: st.DataObject, more: int) -> None:
        record, ack_id = self._draw(data)
        is_flying = record is not None and record.state == "flying"
        assert self.group.extend(ack_id, self.now + more) == is_flying
        if record is not None and is_flying:
            record.due = self.now + more

    @precondition(lambda self: self.given)
    @rule()
    def take_back_the_last(self) -> None:
        ack_id = self.given[-1]
        record = self._current(ack_id)
        self.group.take_back(ack_id)
        if record is not None and record.state == "flying":
            record.state, record.due, record.ack_id = "waiting", 0, None
            record.attempts -= 1
            record.delivered.pop()
            self.given.pop()

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    # Owners

    @rule(key=st.sampled_from(KEYS))
    def replay(self, key: str) -> None:
        again = [self.parked.pop(at) for at in sorted(self.parked) if self.parked[at].key == key]
        self.group.restore(again)
        for record in self.records.values():
            if record.key == key and record.state == "parked":
                record.state, record.attempts, record.due, record.ack_id = "waiting", 0, 0, None

    @rule(data=st.data())
    def seek(self, data: st.DataObject) -> None:
        revision = data.draw(st.integers(0, self.revision))
        self.group.seek(revision)
        dropped = [at for at in self.parked if at.revision > revision]
        for at in dropped:
            del self.parked[at]
        self.group.parked -= len(dropped)
        # Nothing after the position was ever read; before it only what is parked is still of interest.
        self.records = {
            at: one for at, one in self.records.items() if at.revision <= revision and one.state in ("parked", "done")
        }

    # What always holds

    @invariant()
    def the_checkpoint_is_the_last_revision_up_to_which_all_is_done_or_parked(self) -> None:
        unfinished = [at.revision for at, one in self.records.items() if one.state in ("waiting", "flying")]
        assert self.group.checkpoint == (min(unfinished) - 1 if unfinished else self.group.cursor)

    @invariant()
    def nobody_has_two_changes_of_one_key(self) -> None:
        flying = [item.key for item in self.group.outstanding.values() if item.in_flight]
        assert len(flying) == len(set(flying)) <= POLICY.max_in_flight

    @invariant()
    def a_key_is_either_parked_or_delivered(self) -> None:
        assert not {item.key for item in self.group.outstanding.values()} & {one.key for one in self.parked.values()}

    @invariant()
    def group_and_model_agree_on_every_change(self) -> None:
        states = {at: one.state for at, one in self.records.items()}
        assert set(self.group.outstanding) == {at for at, state in states.items() if state in ("waiting", "flying")}
        assert set(self.parked) == {at for at, state in states.items() if state == "parked"}
        assert self.group.parked == len(self.parked)
        assert list(self.group.outstanding) == sorted(self.group.outstanding)

    @invariant()
    def time_alone_changes_nothing_before_the_next_due_time(self) -> None:
        group = deepcopy(self.group)
        group.expire(self.now, POLICY)
        ready, due = group.ready(self.now), group.next_due(self.now)
        moment = self.now + 10**6 if due is None else due - 1
        group.expire(moment, POLICY)
        assert group.ready(moment) == ready

    def teardown(self) -> None:
        """Whatever happened: with workers that succeed, everything is delivered in the end, each key in order."""
        for key in KEYS:
            self.replay(key)
        while self.group.cursor < self.revision:
            self.read()
        finished: list[tuple[str, Position]] = []
        for _ in range(2 * len(self.records) + 5):
            self.now += 100
            for item in self.group.hand_out(self.now, 100, POLICY):
                finished.append((item.key, item.position))
                assert self.group.finish(item.ack_id)
            for parked in self.group.newly_parked:  # what had failed for the last time
                self.parked[parked.position] = parked
            self.group.newly_parked.clear()
            self.group.restore([self.parked.pop(at) for at in sorted(self.parked)])
        assert not self.group.outstanding
        assert self.group.checkpoint == self.revision
        for key in KEYS:
            positions = [position for one, position in finished if one == key]
            assert positions == sorted(positions)
        assert {at for _, at in finished} == {at for at, one in self.records.items() if one.state != "done"}

    # The model

    def _draw(self, data: st.DataObject) -> tuple[Record | None, AckId]:
        ack_id = data.draw(st.sampled_from(self.given))
        return self._current(ack_id), ack_id

    def _current(self, ack_id: AckId) -> Record | None:
        """The record whose last delivery *ack_id* is, if that counts still."""
        record = self.records.get(ack_id.position)
        if record is None or record.ack_id != ack_id or record.state not in ("waiting", "flying"):
            return None
        return record

    def _model_expires(self) -> None:
        for _, record in sorted(self.records.items()):
            if record.state == "flying" and record.due <= self.now:
                pause = min(POLICY.max_backoff, POLICY.min_backoff * 2 ** (record.attempts - 1))
                self._model_fails(record, record.due + pause)

    def _model_fails(self, record: Record, due: int) -> None:
        record.state, record.due = "waiting", due
        if record.attempts >= POLICY.max_attempts:
            self._model_parks(record)

    def _model_parks(self, record: Record) -> None:
        for other in self.records.values():
            if other.key == record.key and other.state in ("waiting", "flying"):
                other.state = "parked"

    def _keep_parked(self) -> None:
        for parked in self.group.newly_parked:
            assert parked.position not in self.parked
            self.parked[parked.position] = parked
        self.group.newly_parked.clear()


Groups.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestGroups = Groups.TestCase


def selected(revision: int, *keys: str) -> list[Selected]:
    return [Selected(Position(revision, index), key, 1) for index, key in enumerate(keys)]


def test_a_parked_key_holds_up_itself_and_no_other() -> None:
    group = Group(cursor=0, next_delivery=1)
    group.admit(1, selected(1, "a", "b"), ())
    first, _ = group.hand_out(0, 10, POLICY)
    assert group.park(first.ack_id, "NACK")
    group.admit(2, selected(2, "a", "b"), {"a"})
    group.outstanding.pop(Position(1, 1))
    assert [item.key for item in group.hand_out(0, 10, POLICY)] == ["b"]
    assert [(parked.key, parked.reason) for parked in group.newly_parked] == [("a", "NACK"), ("a", "BEHIND")]


def test_what_is_acknowledged_after_its_deadline_is_done_unless_somebody_else_has_it() -> None:
    group = Group(cursor=0, next_delivery=1)
    group.admit(1, selected(1, "a", "b"), ())
    late, later = group.hand_out(0, 10, POLICY)
    first, second = late.ack_id, later.ack_id
    group.expire(10, POLICY)
    assert group.finish(first)
    (again,) = group.hand_out(100, 10, POLICY)
    assert not group.finish(second)
    assert group.finish(again.ack_id)


def test_nothing_more_is_read_while_too_much_is_outstanding() -> None:
    group = Group(cursor=0, next_delivery=1)
    for revision in range(1, checkpoint.MAX_OUTSTANDING + 1):
        assert group.fits(selected(revision, "a"), ())
        group.admit(revision, selected(revision, "a"), ())
    assert not group.fits(selected(group.cursor + 1, "b"), ())
    assert group.fits([], ()), "what is not selected takes no room"


def test_a_unit_larger_than_the_limit_is_read_when_nothing_is_outstanding() -> None:
    group = Group(cursor=0, next_delivery=1)
    assert group.fits([Selected(Position(1, n), str(n), 1) for n in range(checkpoint.MAX_OUTSTANDING + 1)], ())


def test_when_as_much_is_parked_as_may_be_nothing_else_is_and_its_keys_are_not_read_on() -> None:
    group = Group(cursor=0, next_delivery=1, parked=checkpoint.MAX_PARKED)
    assert not group.fits(selected(1, "a"), {"a"})
    group.admit(1, selected(1, "b"), ())
    (item,) = group.hand_out(0, 10, POLICY)
    assert not group.park(item.ack_id, "NACK")
    item.attempts = POLICY.max_attempts
    assert group.retry(item.ack_id, 5, POLICY)
    assert not group.newly_parked
    assert group.outstanding, "it is delivered again rather than lost"


def test_a_unit_that_does_not_follow_the_cursor_is_refused() -> None:
    with pytest.raises(AssertionError):
        Group(cursor=3, next_delivery=1).admit(5, [], ())


def test_pauses_double_up_to_the_longest() -> None:
    assert [POLICY.backoff(attempts) for attempts in (1, 2, 3, 4, 1000)] == [2, 4, 6, 6, 6]
