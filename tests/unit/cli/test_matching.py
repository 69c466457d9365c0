"""Which candidates are pairs: one to one, and only beyond doubt."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from strandline_cli.unify.match import Candidate, resolve

CANDIDATES = st.lists(
    st.builds(Candidate, st.integers(0, 5), st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])),
    max_size=16,
    unique_by=lambda candidate: (candidate.thing, candidate.row),
)


@given(CANDIDATES, st.sampled_from([0.0, 0.5, 1.0]), st.randoms(use_true_random=False))
def test_a_pair_has_no_rival_on_either_side(candidates: list[Candidate], margin: float, rng: random.Random) -> None:
    pairs, ambiguous = resolve(candidates, margin)
    assert len({pair.thing for pair in pairs}) == len({pair.row for pair in pairs}) == len(pairs)
    for pair in pairs:
        rivals = [c for c in candidates if (c.thing == pair.thing) != (c.row == pair.row)]
        assert all(rival.score > pair.score + margin for rival in rivals)
        assert pair.row not in ambiguous
    shuffled = candidates.copy()
    rng.shuffle(shuffled)
    assert resolve(shuffled, margin) == (pairs, ambiguous)


@given(CANDIDATES, st.sampled_from([0.0, 0.5, 1.0]))
def test_a_row_that_is_neither_paired_nor_ambiguous_lost_its_thing_to_a_better_row(
    candidates: list[Candidate], margin: float
) -> None:
    pairs, ambiguous = resolve(candidates, margin)
    placed = {pair.row for pair in pairs} | ambiguous.keys()
    for row in {candidate.row for candidate in candidates} - placed:
        best = min((c for c in candidates if c.row == row), key=lambda c: c.score)
        assert any(c.thing == best.thing and c.score + margin < best.score for c in candidates)


def test_two_equal_candidates_are_left_to_people() -> None:
    rivals = [Candidate(1, 7, 0.0), Candidate(2, 7, 0.0)]
    assert resolve(rivals, 0.0) == ([], {7: rivals})
    twins = [Candidate(1, 7, 0.0), Candidate(1, 8, 0.0)]
    assert resolve(twins, 0.0) == ([], {7: twins[:1], 8: twins[1:]})


def test_the_nearest_wins_when_the_next_is_far_enough() -> None:
    assert resolve([Candidate(1, 7, 0.2), Candidate(2, 7, 1.4)], 1.0) == ([Candidate(1, 7, 0.2)], {})
    assert resolve([Candidate(1, 7, 0.2), Candidate(2, 7, 1.1)], 1.0)[0] == []
