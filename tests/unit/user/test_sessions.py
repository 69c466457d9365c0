"""The rule of refresh tokens, against a model of two people who hold copies of everything that was ever issued."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.user.model import EndReason, Session
from services.user.sessions import ABSOLUTE_LIFE, IDLE_LIFE, REPLAY_WINDOW, Outcome, Presented, RefreshTokens, present

START = datetime(2026, 1, 1, tzinfo=UTC)
TOKENS = RefreshTokens(bytes(32))


class TwoHolders(RuleBasedStateMachine):
    """Any holder presents any generation at any time; the service does what ``present`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.session = Session(str(uuid4()), str(uuid4()), 0, START, START + ABSOLUTE_LIFE)
        self.used: set[int] = set()
        self.successors: dict[int, set[int]] = {}

    @rule(seconds=st.one_of(st.integers(0, 15), st.integers(0, 3600 * 24 * 20)))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(data=st.data())
    def somebody_presents_a_token(self, data: st.DataObject) -> None:
        generation = data.draw(st.integers(0, self.session.generation))
        was_ended = self.session.end_reason is not None
        outcome = present(self.session, generation, self.now)
        if outcome is Outcome.ROTATE:
            assert generation not in self.used
            self.session = replace(self.session, generation=generation + 1, rotate_time=self.now)
            self.used.add(generation)
            self.successors.setdefault(generation, set()).add(self.session.generation)
        elif outcome is Outcome.REPEAT:
            assert self.now - self.session.rotate_time <= REPLAY_WINDOW
            self.successors.setdefault(generation, set()).add(self.session.generation)
        elif outcome is Outcome.REUSED:
            assert was_ended or generation in self.used
            self.session = replace(self.session, end_reason=EndReason.REFRESH_REUSED)
        if was_ended:
            assert outcome in (Outcome.REUSED, Outcome.ENDED)

    @precondition(lambda self: self.session.end_reason is None)
    @rule()
    def its_owner_signs_out(self) -> None:
        self.session = replace(self.session, end_reason=EndReason.LOGOUT)

    @invariant()
    def no_token_ever_has_two_successors(self) -> None:
        assert all(len(successors) == 1 for successors in self.successors.values())

    @invariant()
    def at_most_one_token_can_move_the_session_on(self) -> None:
        movers = [
            generation
            for generation in range(self.session.generation + 3)
            if present(self.session, generation, self.now) is Outcome.ROTATE
        ]
        assert movers in ([], [self.session.generation])

    @invariant()
    def nothing_lives_beyond_its_time(self) -> None:
        over = self.now >= START + ABSOLUTE_LIFE or self.now >= self.session.rotate_time + IDLE_LIFE
        if over or self.session.end_reason is not None:
            outcomes = {present(self.session, n, self.now) for n in range(self.session.generation + 2)}
            assert outcomes <= {Outcome.ENDED, Outcome.REUSED}


TestTwoHolders = TwoHolders.TestCase
TestTwoHolders.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.uuids(), st.integers(0, 2**31 - 1))
def test_a_refresh_token_says_what_it_was_made_for(session: object, generation: int) -> None:
    token = TOKENS.issue(str(session), generation)
    assert len(token) == 52
    assert TOKENS.read(token) == Presented(str(session), generation)
    assert RefreshTokens(os.urandom(32)).read(token) is None


def test_a_refresh_token_has_one_spelling() -> None:
    tokens = (TOKENS.issue(str(uuid4()), 7) for _ in range(1000))
    token = next(token for token in tokens if "-" in token)
    assert TOKENS.read(token.replace("-", "+")) is None


@given(st.data())
def test_a_changed_refresh_token_says_nothing(data: st.DataObject) -> None:
    token = TOKENS.issue(str(uuid4()), 7)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_=+ é"))
    changed = token[:place] + other + token[place + 1 :]
    assert changed == token or TOKENS.read(changed) is None
    assert TOKENS.read(token[:place]) is None
