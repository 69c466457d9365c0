"""The versions of one entity, and the way back to one of them."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf import json_format
from strandline.entity.v1 import entity_service_pb2, history_service_pb2
from strandline.stream.v1 import feed_pb2

from tests.integration.entity.conftest import Replica, Shore, error_info, pointers, reason, refusal
from tests.integration.entity.test_past import State, data_of, is_live, past  # noqa: F401  (past is a fixture)

EntityRevision = history_service_pb2.EntityRevision


async def all_revisions(shore: Shore, entity_id: str, type_id: str, page_size: int) -> list[EntityRevision]:
    found: list[EntityRevision] = []
    token = ""
    while True:
        page = await shore.revisions(entity_id, type_id, page_size=page_size, page_token=token)
        assert len(page.revisions) <= page_size
        found += page.revisions
        if not (token := page.next_page_token):
            return found


@pytest.mark.parametrize("page_size", [1, 3, 1000])
async def test_the_revisions_of_an_entity_are_its_changes_in_the_log_newest_first(
    past: tuple[Shore, list[State], list[feed_pb2.Unit]],  # noqa: F811
    page_size: int,
) -> None:
    shore, _, units = past
    for type_id in ("buoy", "whale"):
        for entity_id in ("e01", "e07"):
            expected = [
                EntityRevision(
                    revision=unit.revision,
                    kind=change.kind,  # type: ignore[arg-type]  # the numbers are the same
                    commit_time=unit.commit_time,
                    actor=unit.actor,
                    request_id=unit.request_id,
                    entity=change.entity,
                )
                for unit in reversed(units)
                for change in unit.changes
                if change.entity.name == shore.name(entity_id, type_id)
            ]
            assert expected
            assert await all_revisions(shore, entity_id, type_id, page_size) == expected


async def test_a_read_mask_and_the_size_of_an_answer_hold_for_revisions_too(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 0, "text": "x" * 200_000})
    for n in range(1, 20):
        await shore.update("b1", {"n": n})
    first = await shore.revisions("b1")
    assert 10 < len(first.revisions) < 16  # 3 MiB
    rest = await shore.revisions("b1", page_token=first.next_page_token)
    found = [*first.revisions, *rest.revisions]
    assert [version.entity.data["n"] for version in found] == list(reversed(range(20)))
    masked = await shore.revisions("b1", read_mask=["data.n"], page_size=1)
    assert json_format.MessageToDict(masked.revisions[0].entity.data) == {"n": 19}


async def test_a_rollback_is_an_update_with_the_content_of_then(shore: Shore) -> None:
    await shore.declare(schema={"type": "object", "properties": {"n": {"type": "integer"}, "m": {"type": "integer"}}})
    created = (await shore.create("b1", {"n": 1})).entity
    await shore.update("b1", {"n": 2, "m": 2})
    answer = await shore.roll_back("b1", 2)
    assert (answer.revision, data_of(answer.entity), answer.entity.uid) == (4, {"n": 1}, created.uid)
    unit = (await shore.units(3))[0]
    assert [change.kind for change in unit.changes] == [feed_pb2.Change.UPDATED]
    assert data_of(unit.changes[0].previous) == {"n": 2, "m": 2}
    assert await shore.get("b1") == answer.entity


async def test_a_rollback_to_what_is_there_takes_no_revision(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    await shore.update("b1", {"n": 2})
    await shore.update("b1", {"n": 1})
    assert (await shore.roll_back("b1", 2)).revision == 4
    assert await shore.head() == 4


async def test_a_rollback_of_a_deleted_entity_undeletes_it_with_the_content_of_then(shore: Shore) -> None:
    await shore.declare()
    uid = (await shore.create("b1", {"n": 1})).entity.uid
    await shore.update("b1", {"n": 2})
    await shore.delete("b1")
    assert await reason(shore.roll_back("b1", 4)) == "NOT_FOUND"  # it was deleted then: there is nothing to go back to
    answer = await shore.roll_back("b1", 2)
    assert (data_of(answer.entity), answer.entity.uid, is_live(answer.entity)) == ({"n": 1}, uid, True)
    assert [change.kind for change in (await shore.units(4))[0].changes] == [feed_pb2.Change.UNDELETED]


async def test_a_rollback_may_take_the_content_of_an_earlier_life_of_the_name(shore: Shore) -> None:
    await shore.declare()
    first = (await shore.create("b1", {"n": 1})).entity
    await shore.delete("b1")
    second = (await shore.create("b1", {"n": 2})).entity
    assert first.uid != second.uid
    answer = await shore.roll_back("b1", 2)
    assert (data_of(answer.entity), answer.entity.uid) == ({"n": 1}, second.uid)
    # And it is names that are compared: what was made again with the same content does not differ.
    assert list((await shore.diff_page(from_revision=2)).diffs) == []


async def test_a_rollback_is_refused_like_any_other_write(shore: Shore, replica: Replica) -> None:
    schema = {"type": "object", "properties": {"n": {}, "code": {"type": "string"}}}
    await shore.declare(schema=schema, indexes=[{"fields": ["data.code"], "unique": True}], compatibility="NONE")
    await shore.create("b1", {"n": "one", "code": "A"})
    await shore.update("b1", {"n": 2, "code": "B"})
    await shore.create("b2", {"code": "A"})
    assert await reason(shore.roll_back("b1", 2)) == "UNIQUE_VIOLATION"
    await shore.delete("b2")
    assert await reason(shore.roll_back("b1", 2, etag='"2"')) == "ETAG_MISMATCH"
    by_header = await refusal(shore.roll_back("b1", 2, headers={"if_match": '"2"'}))
    assert dict(by_header.trailing_metadata() or ())["strandline-http-status"] == "412"
    strict = {"type": "object", "properties": {"n": {"type": "integer"}, "code": {"type": "string"}}}
    await shore.change_type(schema=strict)
    failure = await refusal(shore.roll_back("b1", 2))
    assert (error_info(failure).reason, pointers(failure)) == ("SCHEMA_VIOLATION", ["/n"])
    head = await shore.head()
    answer = await shore.roll_back("b1", 3, etag='"3"', validate_only=True)
    assert data_of(answer.entity) == {"n": 2, "code": "B"}
    assert await shore.head() == head


async def test_a_rollback_that_is_asked_for_again_is_made_once(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    await shore.update("b1", {"n": 2})
    first = await shore.roll_back("b1", 2, request_id="r")
    await shore.update("b1", {"n": 3})
    assert await shore.roll_back("b1", 2, request_id="r") == first
    assert await reason(shore.roll_back("b1", 3, request_id="r")) == "REQUEST_ID_REUSED"
    assert (await shore.get("b1")).data["n"] == 3


async def test_of_many_rollbacks_with_one_etag_one_wins(shore: Shore) -> None:
    await shore.declare()
    for n in range(8):
        await shore.update("b1", {"n": n}, allow_missing=True)
    etag = (await shore.get("b1")).etag
    calls = [shore.roll_back("b1", revision, etag=etag) for revision in range(2, 9)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 1
    assert await shore.head() == 10


async def test_the_difference_of_an_entity_between_two_revisions(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1, "at": {"lat": 5, "lon": 6}, "tags": ["a"]})
    await shore.update("b1", {"n": None, "at": {"lat": 5, "lon": 7}, "tags": ["b"], "new": True})
    await shore.delete("b1")
    diff = await shore.diff("b1", 2, 3)
    assert json_format.MessageToDict(diff) == {
        "name": shore.name("b1"),
        "kind": "UPDATED",
        "fromRevision": "2",
        "toRevision": "3",
        "changes": [
            {"pointer": "/at/lon", "before": 6, "after": 7},
            {"pointer": "/n", "before": 1, "after": None},
            {"pointer": "/new", "after": True},
            {"pointer": "/tags", "before": ["a"], "after": ["b"]},
        ],
    }
    created, deleted = await shore.diff("b1", 0, 2), await shore.diff("b1", 3)
    assert [(change.HasField("before"), change.HasField("after")) for change in created.changes] == [(False, True)] * 3
    assert [(change.HasField("before"), change.HasField("after")) for change in deleted.changes] == [(True, False)] * 4
    assert (created.kind, created.from_revision, created.to_revision) == (created.CREATED, 0, 2)
    assert (deleted.kind, deleted.from_revision, deleted.to_revision) == (deleted.DELETED, 3, 0)
    same = await shore.diff("b1", 2, 2)
    assert (same.kind, list(same.changes)) == (same.KIND_UNSPECIFIED, [])
    assert await reason(shore.diff("b1", 0, 1)) == "NOT_FOUND"


async def test_a_rollback_obeys_references(shore: Shore) -> None:
    properties = {"port": {"type": "string"}}
    await shore.declare("port")
    reference = {"field": "data.port", "type": "port", "onDelete": "RESTRICT"}
    await shore.declare(schema={"type": "object", "properties": properties}, references=[reference])
    await shore.create("basel", {}, "port")
    await shore.create("b1", {"port": "basel"})
    there = await shore.head()
    await shore.update("b1", {}, update_mask=["*"])
    await shore.delete("basel", "port")
    head = await shore.head()
    assert await reason(shore.roll_back("b1", there)) == "REFERENCE_NOT_FOUND"
    assert await shore.head() == head
    await shore.undelete("basel", "port")
    assert data_of((await shore.roll_back("b1", there)).entity) == {"port": "basel"}
    assert await reason(shore.delete("basel", "port")) == "REFERENCED"


async def test_of_what_was_purged_the_past_knows_names_and_kinds_and_no_content(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"secret": "the wreck"})
    await shore.update("b1", {"secret": "the wreck, moved"})
    await shore.create("b2", {"n": 1})
    purge = entity_service_pb2.PurgeEntityRequest(name=shore.name("b1"))
    await shore.replica.entities.PurgeEntity(purge, metadata=shore.metadata())
    await shore.create("b1", {"n": 2})
    for revision in (2, 3, 4):
        assert await reason(shore.get("b1", as_of_revision=revision)) == "NOT_FOUND"
        assert await reason(shore.roll_back("b1", revision)) == "NOT_FOUND"
        assert "b1" not in await shore.list_ids(as_of_revision=revision, show_deleted=True)
        assert shore.name("b1") not in {entity.name for entity in (await shore.export_page(revision=revision)).entities}
    assert await reason(shore.diff("b1", 2, 3)) == "NOT_FOUND"
    page = await shore.revisions("b1")
    kinds = [EntityRevision.Kind.Name(version.kind) for version in page.revisions]
    assert kinds == ["CREATED", "PURGED", "DELETED", "UPDATED", "CREATED"]
    assert [version.HasField("entity") for version in page.revisions] == [True, False, False, False, False]
    told = [(diff.name, diff.kind) for diff in (await shore.diff_page(from_revision=2)).diffs]
    assert told == [(shore.name("b2"), 1), (shore.name("b1"), 1)]
    answers = [page, await shore.diff_page(), await shore.export_page(revision=3)]
    assert not any(b"wreck" in answer.SerializeToString() for answer in answers)
