"""Room for requests to webhooks: bounded over all of them, and for each namespace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.stream.webhook_pushers import Room

STEPS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(-3, 6), st.booleans()), max_size=30)


def test_what_is_reserved_is_there_for_nobody_else_until_it_is_released() -> None:
    room = Room(10, 10)
    assert [room.reserve("a", 8), room.reserve("b", 8), room.reserve("b", 8)] == [8, 2, 0]
    room.release("a", 3)
    assert room.reserve("b", 8) == 3


def test_one_namespace_leaves_room_for_others() -> None:
    room = Room(10, 4)
    assert [room.reserve("a", 3), room.reserve("a", 3), room.reserve("a", 3)] == [3, 1, 0]
    assert room.reserve("b", 3) == 3


@given(STEPS)
def test_there_is_never_more_reserved_than_there_is_room_for(steps: list[tuple[str, int, bool]]) -> None:
    room, held = Room(8, 5), {"a": 0, "b": 0}
    for namespace, count, releases in steps:
        if releases:
            released = min(max(count, 0), held[namespace])
            room.release(namespace, released)
            held[namespace] -= released
        else:
            expected = max(0, min(count, 8 - sum(held.values()), 5 - held[namespace]))
            assert room.reserve(namespace, count) == expected
            held[namespace] += expected
