"""What a filter makes of each kind of change."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import json_format
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
    (view,) = kept.views
    made = view.unit
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
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("types[0]", {"types": ["Ship"]}),
        ("types[0]", {"types": [""]}),
        ("filter", {"filter": "data.n >"}),
        ("ids[1]", {"ids": ["buoy/a", "buoy"]}),
        ("ids[0]", {"ids": ["namespaces/tides/types/buoy/entities/a"]}),
        ("types", {"types": ["buoy"], "ids": ["buoy/a"]}),
        ("read_mask", {"read_mask": ["country"]}),
        ("read_mask", {"read_mask": ["data.a,data.b"]}),
    ]
    for field, request in wrong:
        with pytest.raises(InvalidArgument) as raised:
            selection_of(**{"types": [], "filter": "", **request})
        assert raised.value.reason == "INVALID_FIELD"
        assert raised.value.violations[0].field == field


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


def test_ids_name_entities_and_with_them_their_types() -> None:
    selection = selection_of([], "", ids=["buoy/a", "ship/b"])
    assert selection.types == {"buoy", "ship"}
    inside, outside = (
        Change(kind=Change.CREATED, entity=entity_pb2.Entity(name=f"namespaces/tides/types/{place}"))
        for place in ("buoy/entities/a", "buoy/entities/b")
    )
    schema = Change(kind=Change.SCHEMA_CHANGED, type=entity_pb2.EntityType(name="namespaces/tides/types/ship"))
    other = Change(kind=Change.SCHEMA_CHANGED, type=entity_pb2.EntityType(name="namespaces/tides/types/whale"))
    assert select(selection, inside, outside, schema, other) == [inside, schema]


def test_what_was_not_asked_for_is_left_out_of_the_entity_and_of_what_it_was() -> None:
    change = Change(kind=Change.UPDATED, entity=entity(IN), previous=entity(IN))
    for shown in (change.entity, change.previous):
        shown.data.update({"country": "CH", "port": {"size": 7, "depth": 3}})
        shown.etag, shown.revision = '"7"', 7
    (kept,) = select(selection_of([], "data.n > 10", read_mask=["data.country", "data.port.size"]), change)
    assert dict(kept.entity.data) == dict(kept.previous.data)
    assert json_format.MessageToDict(kept.entity)["data"] == {"country": "CH", "port": {"size": 7}}
    assert (kept.entity.name, kept.entity.etag, kept.entity.revision) == (change.entity.name, '"7"', 7)
    (kept,) = select(selection_of([], "", include_previous=False), change)
    assert kept == Change(kind=Change.UPDATED, entity=change.entity)
    assert selection_of([], "", read_mask=["*"]).is_everything


def test_a_mask_gives_a_purged_entity_no_content() -> None:
    purged = Change(kind=Change.PURGED, entity=entity(BLANKED))
    assert select(selection_of([], "", read_mask=["data.n"]), purged) == [purged]


def test_selections_are_equal_when_they_ask_for_the_same() -> None:
    assert selection_of(["b", "a"], "data.n = 1") == selection_of(["a", "b", "a"], "data.n = 1")
    one = selection_of([], "data.n = 1", ids=["a/b"], read_mask=["data.x", "data.y"])
    assert one == selection_of([], "data.n = 1", ids=["a/b"], read_mask=["data.y", "data.x", "data.y"])
    others = [
        selection_of(["a"], "data.n = 1", read_mask=["data.x", "data.y"]),
        selection_of([], "data.n = 2", ids=["a/b"], read_mask=["data.x", "data.y"]),
        selection_of([], "data.n = 1", ids=["a/c"], read_mask=["data.x", "data.y"]),
        selection_of([], "data.n = 1", ids=["a/b"], read_mask=["data.x"]),
        selection_of([], "data.n = 1", ids=["a/b"], read_mask=["data.x", "data.y"], include_previous=False),
    ]
    assert len({one.text, *(other.text for other in others)}) == len({one, *others}) == 6
