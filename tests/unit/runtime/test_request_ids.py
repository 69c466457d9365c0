"""Answers to the many units of one request are kept together, and each is found by its number."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.runtime.request_ids import MAX_SPAN, AnsweredRequest, Share, answered_requests, kept_together, ranges_of

slow_machines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
names = st.sampled_from(["one", "two", "two0", "a_long-one"])
shares = st.builds(Share, names, st.integers(0, 3 * MAX_SPAN) | st.integers(0, 20))


@st.composite
def answers(draw: st.DrawFn) -> list[AnsweredRequest]:
    of_many = draw(st.lists(shares, max_size=30, unique=True))
    alone = draw(st.lists(names, max_size=3, unique=True))
    asked: list[tuple[str, Share | None]] = [(share.request_id, share) for share in of_many]
    asked += [(request_id, None) for request_id in alone]
    return [
        AnsweredRequest(
            draw(st.sampled_from(["ann", "bob"])),
            draw(st.sampled_from(["Write", "Import"])),
            request_id,
            draw(st.binary(min_size=16, max_size=16)),
            draw(st.integers(0, 2**50)),
            draw(st.binary(max_size=40)),
            share,
        )
        for request_id, share in draw(st.permutations(asked))
    ]


@slow_machines
@given(answers())
def test_what_is_kept_together_is_told_one_by_one(given_answers: list[AnsweredRequest]) -> None:
    rows = [tuple(row)[:6] for row in kept_together(given_answers)]
    assert sorted(answered_requests(rows)) == sorted(given_answers)
    assert len({row[:3] for row in rows}) == len(rows), "each row has an id of its own"


@slow_machines
@given(answers(), st.lists(shares, min_size=1, max_size=5))
def test_rows_with_any_of_the_wanted_numbers_lie_in_the_ranges_that_are_read(
    given_answers: list[AnsweredRequest], wanted: list[Share]
) -> None:
    ranges = ranges_of(["one"], wanted)
    for row in kept_together(given_answers):
        of_many = {answer.share for answer in answered_requests([tuple(row)[:6]])}
        is_read = any(first <= row.request_id <= last for first, last in ranges)
        if of_many & set(wanted) or row.request_id == "one":
            assert is_read
        elif is_read:
            assert row.request_id.partition("#")[0] in {share.request for share in wanted}
