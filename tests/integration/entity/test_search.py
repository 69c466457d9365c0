"""``search``: words in the texts of a type, by a full-text index."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strandline.entity.v1 import entity_pb2

from services.entity.index_builds import IndexBuilder
from services.entity.words import words_of
from tests.integration.entity.building import only_builder
from tests.integration.entity.conftest import Replica, Shore, error_info, ready, reason, refusal

FULL_TEXT = {"fields": ["data.name", "data.tags"], "kind": "FULL_TEXT"}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "n": {"type": "integer"},
    },
}


@pytest.fixture
async def port(shore: Shore) -> Shore:
    """A namespace with a type whose names and tags can be searched."""
    await shore.declare(schema=SCHEMA, indexes=[FULL_TEXT, {"fields": ["data.n"]}])
    return shore


async def test_all_words_must_be_there_in_any_order_case_and_accent(port: Shore) -> None:
    await port.create("a", {"name": "Zürich Harbour Light", "n": 1})
    await port.create("b", {"name": "Harbour pier", "tags": ["zurich"], "n": 2})
    await port.create("c", {"name": "Harbours", "n": 3})
    assert await port.list_ids(search="harbour ZURICH") == ["a", "b"]
    assert await port.list_ids(search="light") == ["a"]
    assert await port.list_ids(search="harbour light pier") == []
    assert await port.list_ids(search="harbour", filter="data.n > 1") == ["b"]
    assert await port.list_ids(search="harbour", filter="NOT data.n = 2") == ["a"]


async def test_the_index_follows_updates_deletes_and_undeletes(port: Shore) -> None:
    await port.create("a", {"name": "red buoy"})
    await port.update("a", {"name": "green buoy"})
    assert await port.list_ids(search="red") == []
    assert await port.list_ids(search="green buoy") == ["a"]
    await port.delete("a")
    assert await port.list_ids(search="green") == []
    assert await port.list_ids(search="green buoy", show_deleted=True) == ["a"]
    await port.undelete("a")
    assert await port.list_ids(search="green") == ["a"]


async def test_pages_go_on_in_the_order_of_ids_and_belong_to_their_search(port: Shore) -> None:
    for n in range(25):
        await port.create(f"b{n:02}", {"name": f"common {'rare' if n % 5 == 0 else 'often'}", "n": n})
    assert await port.list_ids(search="common rare", page_size=2) == [f"b{n:02}" for n in range(0, 25, 5)]
    page = await port.page(search="common", page_size=2)
    assert await reason(port.page(search="often", page_size=2, page_token=page.next_page_token)) == "PAGE_TOKEN_INVALID"
    assert await reason(port.page(page_size=2, page_token=page.next_page_token)) == "PAGE_TOKEN_INVALID"


async def test_what_cannot_be_searched_is_refused_in_words(port: Shore) -> None:
    assert await reason(port.page(search="...")) == "INVALID_FIELD"
    assert await reason(port.page(search=" ".join(f"w{n}" for n in range(17)))) == "INVALID_FIELD"
    assert await reason(port.page(search="a", order_by="data.n")) == "INVALID_FIELD"
    assert await reason(port.page(search="a", as_of_revision=1)) == "INVALID_FIELD"
    await port.declare("plain", schema=SCHEMA)
    failure = await refusal(port.page("plain", search="a"))
    assert error_info(failure).reason == "INDEX_REQUIRED"
    assert error_info(failure).metadata["index"] == '{"fields": ["data.name", "data.tags"], "kind": "FULL_TEXT"}'


async def test_a_full_text_index_serves_no_filter_and_no_order(port: Shore) -> None:
    await port.create("a", {"name": "red"})
    assert await reason(port.page(filter='data.name = "red"')) == "INDEX_REQUIRED"
    assert await reason(port.page(order_by="data.name")) == "INDEX_REQUIRED"


async def test_an_added_index_finds_what_was_there_and_shows_how_far_it_is(
    shore: Shore, replica: Replica, other_replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare(schema=SCHEMA)
    for start in range(0, 3000, 500):
        await shore.batch(*(shore.creating(f"b{n:04}", {"name": f"word{n % 7}"}) for n in range(start, start + 500)))
    seen: list[tuple[int, int]] = []
    take_step = IndexBuilder._take_step

    async def take_step_and_look(self: IndexBuilder, namespace: str, index_id: int) -> None:
        await take_step(self, namespace, index_id)
        index = (await shore.get_type()).indexes[0]
        if namespace == shore.namespace.id and index.state == index.BUILDING:
            seen.append((index.indexed, index.estimated_total))

    monkeypatch.setattr(IndexBuilder, "_take_step", take_step_and_look)
    async with only_builder(replica, other_replica) as builder:
        made = await shore.change_type(indexes=[FULL_TEXT])
        assert (made.indexes[0].kind, made.indexes[0].state) == (entity_pb2.Index.FULL_TEXT, entity_pb2.Index.BUILDING)
        builder.start()
        (index,) = (await ready(shore)).indexes
    assert seen == [(done, 3000) for done in range(500, 3001, 500)]
    assert index.state == entity_pb2.Index.READY
    assert (index.indexed, index.estimated_total) == (0, 0)
    assert await shore.list_ids(search="word3", page_size=1000) == [f"b{n:04}" for n in range(3, 3000, 7)]


TEXT = st.lists(st.sampled_from(["red", "Réd", "buoy", "pier", "n1", "-", "東京", "x" * 70]), max_size=6).map(" ".join)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.dictionaries(st.sampled_from([f"e{n}" for n in range(12)]), st.tuples(TEXT, st.lists(TEXT, max_size=2))),
    st.lists(TEXT, min_size=1, max_size=5),
)
async def test_a_search_finds_what_plain_python_finds(
    replica: Replica, entities: dict[str, tuple[str, list[str]]], searches: list[str]
) -> None:
    shore = replica.shore()
    await shore.declare(schema=SCHEMA, indexes=[FULL_TEXT])
    if entities:
        contents: dict[str, dict[str, Any]] = {
            name: {"name": text, "tags": tags} for name, (text, tags) in entities.items()
        }
        await shore.batch(*(shore.creating(name, data) for name, data in contents.items()))
    held = {name: {*words_of(text), *words_of(tags)} for name, (text, tags) in entities.items()}
    for search in searches:
        wanted = set(words_of(search))
        if wanted:
            expected = sorted(name for name, there in held.items() if wanted <= there)
            assert await shore.list_ids(search=search, page_size=2) == expected
