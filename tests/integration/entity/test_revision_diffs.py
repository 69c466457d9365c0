"""The net change of every entity between two revisions, against the two states compared in plain Python."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from strandline.entity.v1 import history_service_pb2
from strandline.stream.v1 import feed_pb2

from tests.integration.entity.conftest import Shore
from tests.integration.entity.test_past import State, data_of, is_live, past  # noqa: F401  (past is a fixture)

EntityDiff = history_service_pb2.EntityDiff
Net = dict[str, tuple[int, int, int]]


async def diffs(shore: Shore, **query: Any) -> list[EntityDiff]:
    """All pages."""
    found: list[EntityDiff] = []
    token = ""
    while True:
        page = await shore.diff_page(page_token=token, **query)
        found += page.diffs
        if not (token := page.next_page_token):
            return found


def net(before: State, after: State) -> Net:
    """Name to (kind, revision before, revision after)."""
    live = [{name: e for name, e in state.items() if is_live(e)} for state in (before, after)]
    found: Net = {}
    for name in live[0].keys() | live[1].keys():
        old, new = (state.get(name) for state in live)
        if old is None and new is not None:
            found[name] = (EntityDiff.CREATED, 0, new.revision)
        elif old is not None and new is None:
            found[name] = (EntityDiff.DELETED, old.revision, 0)
        elif old is not None and new is not None and data_of(old) != data_of(new):
            found[name] = (EntityDiff.UPDATED, old.revision, new.revision)
    return found


@pytest.mark.parametrize(("page_size", "examined"), [(1, 10_000), (7, 3), (1000, 10_000)])
async def test_every_entity_that_differs_is_told_once(
    past: tuple[Shore, list[State], list[feed_pb2.Unit]],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    page_size: int,
    examined: int,
) -> None:
    monkeypatch.setattr("services.entity.revision_diffs.MAX_EXAMINED", examined)
    shore, states, _ = past
    rng = random.Random(5)
    ranges = [(0, len(states) - 1), (0, 0), (3, 3)]
    ranges += [tuple(sorted(rng.sample(range(len(states)), 2))) for _ in range(6)]  # type: ignore[misc]
    for start, end in ranges:
        found = await diffs(shore, from_revision=start, to_revision=end or 1, page_size=page_size)
        told: Net = {diff.name: (diff.kind, diff.from_revision, diff.to_revision) for diff in found}
        assert len(told) == len(found)
        assert told == net(states[start], states[end or 1])
        of_whales = await diffs(shore, from_revision=start, to_revision=end or 1, types=["whale"])
        assert {diff.name for diff in of_whales} == {name for name in told if "/whale/" in name}


async def test_what_was_changed_and_changed_back_is_nothing(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    await shore.create("b2", {"n": 1})
    start = await shore.head()
    await shore.update("b1", {"n": 2})
    await shore.update("b1", {"n": 1})
    await shore.delete("b2")
    await shore.undelete("b2")
    await shore.create("b3", {})
    await shore.delete("b3")
    await shore.create("b4", {"x": [1]})
    (diff,) = await diffs(shore, from_revision=start)
    assert (diff.name, diff.kind) == (shore.name("b4"), EntityDiff.CREATED)
    assert [change.pointer for change in diff.changes] == ["/x"]


async def test_pages_belong_to_one_range_while_writes_go_on(shore: Shore) -> None:
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:03}", {"n": n}) for n in range(100)))
    first = await shore.diff_page(page_size=10)
    end, found, token = first.revision, list(first.diffs), first.next_page_token
    writing = asyncio.create_task(shore.batch(*(shore.updating(f"b{n:03}", {"n": -1}) for n in range(100))))
    while token:
        page = await shore.diff_page(page_size=10, page_token=token)
        assert page.revision == end
        found += page.diffs
        token = page.next_page_token
    await writing
    assert sorted(diff.name for diff in found) == [shore.name(f"b{n:03}") for n in range(100)]
    assert all(diff.kind == EntityDiff.CREATED and diff.to_revision <= end for diff in found)


async def test_a_page_of_large_differences_ends_at_3_mib(shore: Shore) -> None:
    await shore.declare()
    for n in range(20):
        await shore.create(f"b{n:02}", {"text": "x" * 200_000})
    page = await shore.diff_page()
    assert len(page.SerializeToString()) < 3.1 * 2**20
    assert page.next_page_token
    assert len(await diffs(shore)) == 20
