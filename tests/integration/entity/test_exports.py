"""An export is the state at one revision, whatever is written or restarted meanwhile."""

from __future__ import annotations

import asyncio

import pytest
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from tests.integration.entity.conftest import Replica, Shore, error_info, refusal
from tests.integration.entity.test_past import State, is_live, past  # noqa: F401  (past is a fixture)


async def export(
    shore: Shore, types: tuple[str, ...] = (), revision: int = 0
) -> tuple[list[str], list[entity_pb2.Entity], int]:
    """The types' ids, the entities and the revision, of all pages."""
    found: tuple[list[str], list[entity_pb2.Entity]] = ([], [])
    token = ""
    while True:
        page = await shore.export_page(types=types, revision=revision, page_token=token)
        assert not (page.types and found[1]), "types come before entities"
        found[0].extend(type_.name.rsplit("/", 1)[1] for type_ in page.types)
        found[1].extend(page.entities)
        if not (token := page.next_page_token):
            return *found, page.revision


async def test_an_export_is_every_live_entity_at_its_revision(
    past: tuple[Shore, list[State], list[feed_pb2.Unit]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.entity.snapshots.MAX_WALKED", 7)
    monkeypatch.setattr("services.entity.exports._TYPES_AT_ONCE", 1)
    shore, states, _ = past
    for revision in (0, 2, len(states) // 2):
        types, entities, exported = await export(shore, revision=revision)
        state = states[exported]
        assert exported == revision or len(states) - 1
        assert types == ["buoy", "whale"]
        live = [entity for entity in state.values() if is_live(entity)]
        assert entities == sorted(live, key=lambda entity: entity.name.split("/")[3::2])
        types, some, _ = await export(shore, types=("whale",), revision=revision)
        assert types == ["whale"]
        assert some == [entity for entity in entities if entity.type == "whale"]


async def test_an_export_goes_on_where_it_was_after_a_restart_while_writes_go_on(
    shore: Shore, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.snapshots.MAX_WALKED", 20)
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:03}", {"n": n}) for n in range(200)))
    revision = await shore.head()
    found: list[object] = []
    token = ""
    for restart in range(100):
        async with replica.deployment.replica() as another:
            page = await shore.through(another).export_page(page_token=token)
        assert page.revision == revision
        found += [entity.data["n"] for entity in page.entities]
        if not (token := page.next_page_token):
            break
        await shore.batch(shore.deleting(f"b{restart:03}"), shore.updating(f"b{199 - restart:03}", {"n": -1}))
    assert found == list(range(200))


async def test_an_export_of_nothing_is_empty(replica: Replica) -> None:
    assert await export(replica.shore()) == ([], [], 0)


async def test_many_exports_at_once_do_not_disturb_one_another(shore: Shore) -> None:
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:03}", {"n": n}) for n in range(50)))
    answers = await asyncio.gather(*(export(shore) for _ in range(5)))
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0][1]) == 50


async def test_types_that_are_not_there_are_no_part_of_an_export(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {})
    failure = await refusal(shore.export_page(types=["buoy", "gone"]))
    assert (error_info(failure).reason, error_info(failure).metadata["type"]) == ("NOT_FOUND", "gone")
    # Earlier there may have been one of that name.
    assert (await shore.export_page(types=["gone"], revision=1)).revision == 1
