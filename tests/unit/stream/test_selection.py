"""What a filter makes of each kind of change."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.errors import InvalidArgument
from services.stream.messages import LogUnit, UnitsMessage
from services.stream.selection import Selection, selection_of

Change = feed_pb2.Change
IN, OUT = 20, 5  # against data.n > 10
BLANKED = "blanked"


def entity(n: int | str | None, type_id: str = "buoy") -> entity_pb2.Entity | None:
    if n is None:
        return None
    made = entity_pb2.Entity(name=f"namespaces/tides/types/{type_id}/entities/a", type=type_id)
    if n != BLANKED:
        made.data.update({"n": n})
    return made


def select(selection: Selection, *changes: feed_pb2.Change) -> list[feed_pb2.Change]:
    unit = feed_pb2.Unit(revision=8, actor="ann", request_id="r", changes=changes)
    batch = UnitsMessage("00c0ffee", 7, 8, [LogUnit(unit.SerializeToString())])
    kept = selection.of_units(batch, 3)
    if kept is None:
        return []
    (made,) = kept.parsed
    assert (made.revision, made.actor, made.request_id) == (8, "ann", "r")
    assert (kept.after, kept.revision) == (7 if selection.is_everything else 3, 8)
    return list(made.changes)


CASES = [
    (Change.CREATED, IN, None, Change.CREATED),
    (Change.CREATED, OUT, None, None),
    (Change.CREATED, OUT, IN, None),
    (Change.UNDELETED, IN, OUT, Change.UNDELETED),
    (Change.UNDELETED, OUT, IN, None),
    (Change.UPDATED, IN, IN, Change.UPDATED),
    (Change.UPDATED, IN, OUT, Change.ENTERED),
    (Change.UPDATED, OUT, IN, Change.LEFT),
    (Change.UPDATED, OUT, OUT, None),
    (Change.DELETED, IN, IN, Change.DELETED),
    (Change.DELETED, OUT, IN, Change.DELETED),
    (Change.DELETED, OUT, OUT, None),
    (Change.DELETED, IN, None, Change.DELETED),
    (Change.EXPIRED, IN, IN, Change.EXPIRED),
    (Change.PURGED, BLANKED, None, Change.PURGED),
    (Change.UPDATED, BLANKED, BLANKED, None),
    (Change.CREATED, BLANKED, None, None),
]


@pytest.mark.parametrize("form", ["data.n > 10", "NOT data.n <= 10"])
@pytest.mark.parametrize(("kind", "now", "before", "expected"), CASES)
def test_the_kind_says_how_the_change_crosses_the_filter(
    kind: Any, now: Any, before: Any, expected: Any, form: str
) -> None:
    change = Change(kind=kind, entity=entity(now), previous=entity(before))
    assert [c.kind for c in select(selection_of([], form), change)] == ([expected] if expected else [])


def test_other_changes_of_the_unit_are_left_out() -> None:
    inside, outside = Change(kind=Change.CREATED, entity=entity(IN)), Change(kind=Change.CREATED, entity=entity(OUT))
    assert select(selection_of([], "data.n > 10"), outside, inside, outside) == [inside]


def test_schema_changes_go_to_everybody_who_watches_the_type() -> None:
    declared = Change(kind=Change.SCHEMA_CHANGED, type=entity_pb2.EntityType(name="namespaces/tides/types/buoy"))
    removed = Change(kind=Change.SCHEMA_CHANGED, previous_type=declared.type)
    for change in (declared, removed):
        assert select(selection_of([], "data.n > 10"), change) == [change]
        assert select(selection_of(["buoy"], "data.n > 10"), change) == [change]
        assert select(selection_of(["ship"], ""), change) == []


def test_a_unit_that_matches_as_a_whole_is_not_encoded_again() -> None:
    unit = LogUnit(
        feed_pb2.Unit(revision=8, changes=[Change(kind=Change.CREATED, entity=entity(IN))]).SerializeToString()
    )
    kept = selection_of(["buoy"], "data.n > 10").of_units(UnitsMessage("00c0ffee", 7, 8, [unit]), 3)
    assert kept is not None
    assert kept.units == [unit]


def test_a_selection_that_makes_no_sense_is_refused() -> None:
    for types, filter in ((["Ship"], ""), ([""], ""), ([], "data.n >")):
        with pytest.raises(InvalidArgument) as raised:
            selection_of(types, filter)
        assert raised.value.reason == "INVALID_FIELD"


def test_a_feed_without_a_filter_does_not_wait_for_the_parser() -> None:
    program = "from services.stream.selection import *; selection_of([], ''); import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True, timeout=30)
    loaded = run.stdout.split()
    assert "services.stream.selection" in loaded
    assert "lark" not in loaded


def test_a_filter_may_name_the_entitys_own_fields() -> None:
    changed = entity(IN)
    assert changed is not None
    changed.revision = 8
    changed.create_time.FromJsonString("2026-01-31T12:00:00Z")
    change = Change(kind=Change.CREATED, entity=changed)
    assert select(selection_of([], "name = '*/a' AND revision > 7 AND create_time < 2026-01-31T13:00:01+01:00"), change)
    assert select(selection_of([], "-delete_time:* -expire_time > 1970-01-01T00:00:00Z"), change)
    assert not select(selection_of([], "revision > 8 OR delete_time:*"), change)
