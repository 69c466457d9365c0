"""What differs between two contents."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.entity.content import canonical
from services.entity.diffs import MAX_CHANGES, MISSING, differences

keys = st.sampled_from(["a", "b", "a/b", "~", "~1", "", "é"])
scalars = st.none() | st.booleans() | st.sampled_from([0, 1, 1.5, "", "x", "1"])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner), max_leaves=8)
contents = st.dictionaries(keys, values, max_size=4)


def apply(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """*before*, with each difference to *after* written where its pointer says."""
    result: dict[str, Any] = json.loads(json.dumps(before))
    for pointer, old, new in differences(before, after):
        *parents, key = [part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:]]
        place = result
        for parent in parents:
            place = place[parent]
        assert (key in place) == (old is not MISSING)
        assert old is MISSING or canonical(place[key]) == canonical(old)
        if new is MISSING:
            del place[key]
        else:
            place[key] = new
    return result


@given(before=contents, after=contents)
def test_the_changes_lead_from_one_to_the_other(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert canonical(apply(before, after)) == canonical(after)
    assert bool(differences(before, after)) == (canonical(before) != canonical(after))


def test_a_change_is_told_where_it_is_and_an_array_as_a_whole() -> None:
    before = {"name": "K1", "at": {"lat": 1, "lon": 2}, "tags": ["a"], "gone": {"x": 1}, "same": [1]}
    after = {"name": "K1", "at": {"lat": 1, "lon": 3}, "tags": ["a", "b"], "new": {"y": None}, "same": [1]}
    assert differences(before, after) == [
        ("/at/lon", 2, 3),
        ("/gone", {"x": 1}, MISSING),
        ("/new", MISSING, {"y": None}),
        ("/tags", ["a"], ["a", "b"]),
    ]


def test_true_is_not_1_and_null_is_not_nothing() -> None:
    assert [change.pointer for change in differences({"a": True, "b": None}, {"a": 1})] == ["/a", "/b"]


def test_more_changes_than_anyone_reads_are_told_by_the_members_that_hold_them() -> None:
    before = {"many": {str(n): n for n in range(MAX_CHANGES + 1)}, "one": {"x": 1}}
    after = {"many": {str(n): -n - 1 for n in range(MAX_CHANGES + 1)}, "one": {"x": 2}}
    assert [change.pointer for change in differences(before, after)] == ["/many", "/one"]


def test_long_pointers_are_not_repeated_without_end() -> None:
    def deep(leaf: int) -> dict[str, Any]:
        inner: dict[str, Any] = {str(n): leaf for n in range(900)}
        for _ in range(30):
            inner = {"k" * 1000: inner}
        return inner

    assert len(differences(deep(1), deep(2))) == 1
