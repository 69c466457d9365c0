"""The validator on what the random histories of ``test_validation`` lack: changed types and purged entities."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from google.protobuf.json_format import MessageToDict
from strandline.stream.v1 import feed_pb2
from strandline_client.errors import Check
from strandline_client.history import (
    Acknowledgement,
    Change,
    Message,
    PagedEntity,
    Recording,
    Selection,
    Unit,
    unit_of_json,
    unit_of_protobuf,
)
from strandline_client.position import Start
from strandline_client.validation import validate

EPOCH = "00c0ffee"
TYPE = "namespaces/n/types/buoy"
NAME = f"{TYPE}/entities/b"
OLD, NEW = {"type": "object"}, {"type": "object", "properties": {"n": {}}}
WRITTEN = [
    Change("SCHEMA_CHANGED", TYPE, OLD),
    Change("CREATED", NAME, {"n": 1}),
    Change("SCHEMA_CHANGED", TYPE, NEW, OLD),
    Change("UPDATED", NAME, {"n": 2}, {"n": 1}),
    Change("DELETED", NAME, {"n": 2}, {"n": 2}),
    Change("PURGED", NAME),
    Change("CREATED", NAME, {"n": 3}),
    Change("DELETED", NAME, {"n": 3}, {"n": 3}),
    Change("SCHEMA_CHANGED", TYPE, None, NEW),
]
PURGED_AT = 6
TOLD = [Acknowledgement(place, {c.name: None if c.kind == "DELETED" else c.data}) for place, c in enumerate(WRITTEN, 1)]
Edit = Callable[[int, Change], Change | None]


def blank(revision: int, change: Change) -> Change:
    """What the purge leaves of a change."""
    return replace(change, data=None, previous=None) if revision < PURGED_AT and change.name == NAME else change


def checks(selection: Selection, edit: Edit, seen: Sequence[Change] = WRITTEN) -> set[Check]:
    """What a reader broke that got what *edit* makes of *seen* (None: not that)."""
    log = [Unit(revision, (blank(revision, change),)) for revision, change in enumerate(WRITTEN, 1)]
    edited = ((revision, edit(revision, change)) for revision, change in enumerate(seen, 1))
    units = tuple(Unit(revision, (change,)) for revision, change in edited if change is not None)
    recording = Recording("reader", selection)
    recording.connected(Start(after_revision=0, epoch=EPOCH))
    recording.received(Message(0, len(log), EPOCH, units=units))
    return {violation.check for violation in validate(log, [recording], TOLD)}


EVERYTHING = Selection()
BUOYS = Selection(types=frozenset({"buoy"}))
NOT_FIRST = Selection(matches=lambda data: data["n"] > 1)
ENTERED = [*WRITTEN]
ENTERED[3] = replace(WRITTEN[3], kind="ENTERED")


@pytest.mark.parametrize("selection", [EVERYTHING, BUOYS], ids=["everything", "buoys"])
def test_a_reader_before_the_purge_and_one_after_it_both_saw_what_they_should(selection: Selection) -> None:
    assert checks(selection, lambda _, change: change) == set()
    assert checks(selection, blank) == set()


def test_under_a_filter_a_reader_after_the_purge_sees_nothing_of_what_was_before_it() -> None:
    assert checks(NOT_FIRST, lambda revision, change: None if revision == 2 else change, ENTERED) == set()
    assert checks(NOT_FIRST, lambda revision, change: None if revision in (2, 4, 5) else change, ENTERED) == set()


def test_schema_changes_carry_what_the_type_was_also_to_who_wants_no_previous() -> None:
    selection = Selection(previous=False)

    def without(_: int, change: Change) -> Change:
        return change if change.kind == "SCHEMA_CHANGED" else replace(change, previous=None)

    assert checks(selection, without) == set()
    assert checks(selection, lambda _, change: replace(change, previous=None)) == {"previous_value"}


def at(place: int, **fields: object) -> Edit:
    """A reader that gets another change at *place* than was committed."""
    return lambda revision, change: replace(change, **fields) if revision == place else change  # type: ignore[arg-type]


@pytest.mark.parametrize("selection", [EVERYTHING, BUOYS, NOT_FIRST], ids=["everything", "buoys", "filtered"])
@pytest.mark.parametrize(
    ("check", "edit"),
    [
        ("reliable", at(3, data=OLD)),
        ("previous_value", at(3, previous=None)),
        ("reliable", at(PURGED_AT, kind="DELETED")),
        ("reliable", at(7, data={"n": 4})),
    ],
    ids=["another schema", "no schema before", "another kind", "other content after the purge"],
)
def test_changed_types_and_what_follows_a_purge_are_judged_as_everything(
    selection: Selection, check: Check, edit: Edit
) -> None:
    assert check in checks(selection, edit)


@pytest.mark.parametrize("lost", [1, 3, PURGED_AT, 7, 9])
def test_under_a_filter_too_a_lost_schema_change_or_purge_is_missed(lost: int) -> None:
    skipped = {2, lost}
    assert "reliable" in checks(NOT_FIRST, lambda revision, change: None if revision in skipped else change, ENTERED)


@pytest.mark.parametrize("selection", [BUOYS, Selection(ids=frozenset({NAME}))], ids=["type", "id"])
def test_without_a_filter_changes_that_were_purged_are_missed_too(selection: Selection) -> None:
    assert checks(selection, lambda revision, change: None if revision == 4 else change) == {"reliable"}
    assert "reliable" in checks(selection, at(4, kind="CREATED"))


def test_a_snapshot_after_the_purge_must_not_show_what_it_removed() -> None:
    log = [Unit(revision, (blank(revision, change),)) for revision, change in enumerate(WRITTEN, 1)]

    def begun_at(revision: int) -> set[Check]:
        recording = Recording("reader")
        recording.connected(Start(snapshot=True))
        recording.received(Message(revision, revision, EPOCH, page=(PagedEntity(NAME, 4, {"n": 2}),)))
        recording.received(
            Message(revision, revision, EPOCH, summary=(1, hashlib.sha256(f"{NAME} 4".encode()).hexdigest()))
        )
        return {violation.check for violation in validate(log, [recording])}

    assert begun_at(4) == set()
    assert begun_at(PURGED_AT) == {"snapshot"}


def test_a_change_of_a_type_is_the_same_in_either_encoding() -> None:
    unit = feed_pb2.Unit(revision=3)
    change = unit.changes.add(kind=feed_pb2.Change.SCHEMA_CHANGED)
    change.type.name = change.previous_type.name = TYPE
    change.type.schema.update(NEW)  # type: ignore[arg-type]
    change.previous_type.schema.update(OLD)
    assert unit_of_protobuf(unit) == unit_of_json(MessageToDict(unit)) == Unit(3, (WRITTEN[2],))
    change.ClearField("type")
    assert unit_of_protobuf(unit) == unit_of_json(MessageToDict(unit))
    assert unit_of_protobuf(unit).changes == (Change("SCHEMA_CHANGED", TYPE, None, OLD),)
