"""Lists against a computation in plain Python, and the bounds of a page."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf import json_format
from strandline.entity.v1 import entity_service_pb2 as pb

from services.entity.list_queries import Position, Walk, page_statement
from services.entity.planner import Plan
from services.runtime.database import Statement
from services.runtime.filters import parse_filter
from tests.integration.entity.conftest import Replica, Shore, error_info, pointers, reason, refusal

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "country": {"type": ["string", "null"]},
        "depth": {"type": "number"},
        "live": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "at": {"type": "object", "properties": {"lat": {"type": "number"}}},
    },
}
INDEXES = [
    {"fields": ["data.country"]},
    {"fields": ["data.depth desc"]},
    {"fields": ["data.country", "data.depth desc"]},
    {"fields": ["data.tags"]},
    {"fields": ["data.at.lat"]},
]
Data = dict[str, Any]


def random_data(rng: random.Random) -> Data:
    data: Data = {}
    if rng.random() < 0.9:
        data["country"] = rng.choice(["CH", "AT", "DE", "Ä", None])
    if rng.random() < 0.9:
        data["depth"] = rng.choice([-1, 0, 0.5, 2, 3, 1e6])
    if rng.random() < 0.5:
        data["live"] = rng.random() < 0.5
    if rng.random() < 0.8:
        data["tags"] = rng.sample(["a", "b", "c"], rng.randrange(3))
    if rng.random() < 0.5:
        data["at"] = {"lat": rng.choice([-5, 5.5])}
    return data


@pytest.fixture(scope="module")
async def harbour(replica: Replica) -> tuple[Shore, dict[str, Data], set[str]]:
    """300 entities with random data, and which of them are deleted."""
    rng = random.Random(7)
    shore = replica.shore()
    await shore.declare(schema=SCHEMA, indexes=INDEXES)
    stored = {f"b{rng.randrange(10**6):06}": random_data(rng) for _ in range(300)}
    await shore.batch(*(shore.creating(entity_id, data) for entity_id, data in stored.items()))
    for entity_id in list(stored)[::3]:
        stored[entity_id] = random_data(rng)
        await shore.update(entity_id, stored[entity_id], update_mask=["*"])
    deleted = set(list(stored)[::5])
    await shore.batch(*(shore.deleting(entity_id) for entity_id in deleted))
    return shore, stored, deleted


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


FILTERS: list[tuple[str, Callable[[Data], bool]]] = [
    ("", lambda d: True),
    ('data.country = "CH"', lambda d: d.get("country") == "CH"),
    ('data.country > "AT" AND data.depth >= 0', lambda d: (d.get("country") or "") > "AT" and d.get("depth", -9) >= 0),
    ('data.country = "CH" data.depth > 0', lambda d: d.get("country") == "CH" and d.get("depth", -9) > 0),
    ("data.depth < 3", lambda d: number(d.get("depth")) and d["depth"] < 3),
    ("data.depth = 0.5", lambda d: d.get("depth") == 0.5),
    ("data.at.lat > 0", lambda d: d.get("at", {}).get("lat", -1) > 0),
    ('data.tags:"a"', lambda d: "a" in d.get("tags", [])),
    ('data.tags:"a" AND data.depth > 0', lambda d: "a" in d.get("tags", []) and d.get("depth", -9) > 0),
    ('data.country = "CH" OR data.country = "AT"', lambda d: d.get("country") in ("CH", "AT")),
    ('NOT data.country = "CH"', lambda d: d.get("country") != "CH"),
    ('data.country != "CH"', lambda d: d.get("country") not in (None, "CH")),
    ('data.country = "C*"', lambda d: d.get("country") == "CH"),
    ('data.country = "*H"', lambda d: d.get("country") == "CH"),
    ('data.country = "A*T" AND data.depth > 0', lambda d: d.get("country") == "AT" and d.get("depth", -9) > 0),
    ('data.country != "A*"', lambda d: d.get("country") not in (None, "AT")),
    ("data.country = (CH OR AT)", lambda d: d.get("country") in ("CH", "AT")),
    ("-data.country:*", lambda d: d.get("country") is None),
    ("data.country:CH", lambda d: d.get("country") == "CH"),
    ("data.at:lat", lambda d: "at" in d),
    ("size(data.tags) > 1", lambda d: len(d.get("tags", [])) > 1),
    ("NOT lower(data.country) = 'ä'", lambda d: d.get("country") != "Ä"),
    ("revision > 1 AND data.country = CH", lambda d: d.get("country") == "CH"),
    ("create_time > 2026-01-01T00:00:00Z AND name = '*/buoy/*'", lambda d: True),
    ("create_time < 2026-01-01T00:00:00Z OR expire_time:*", lambda d: False),
    ("data.depth > 5 AND data.depth < 4", lambda d: False),
]
_RANK = {type(None): 1, bool: 2, int: 3, float: 3, str: 4}


def rank(data: Data, key: str) -> tuple[Any, ...]:
    """The place of a field in an order."""
    if key not in data:
        return (0,)
    value = data[key]
    kind = _RANK[type(value)]
    return (kind,) if value is None else (kind, value.encode() if isinstance(value, str) else value)


@pytest.mark.parametrize(("text", "matches"), FILTERS, ids=[text for text, _ in FILTERS])
@pytest.mark.parametrize("show_deleted", [False, True])
async def test_a_filter_finds_what_it_says(
    harbour: tuple[Shore, dict[str, Data], set[str]], text: str, matches: Callable[[Data], bool], show_deleted: bool
) -> None:
    shore, stored, deleted = harbour
    found = await shore.list_ids(filter=text, page_size=7, show_deleted=show_deleted)
    expected = {key for key, data in stored.items() if matches(data) and (show_deleted or key not in deleted)}
    assert len(found) == len(set(found))
    assert set(found) == expected


@pytest.mark.parametrize("show_deleted", [False, True])
@pytest.mark.parametrize(
    ("order_by", "text", "key", "reverse"),
    [
        ("data.country", "", "country", False),
        ("data.country desc", "", "country", True),
        ("data.depth desc", "", "depth", True),
        ("data.depth", "", "depth", False),
        ("data.depth", 'data.country = "CH"', "depth", False),
        ("data.depth desc", 'data.country = "CH"', "depth", True),
        ("data.depth", "data.depth > 0", "depth", False),
    ],
)
async def test_an_order_is_kept_over_pages(
    harbour: tuple[Shore, dict[str, Data], set[str]],
    order_by: str,
    text: str,
    key: str,
    reverse: bool,
    show_deleted: bool,
) -> None:
    shore, stored, deleted = harbour
    matches = dict(FILTERS).get(text) or (lambda d: d.get("depth", -9) > 0)
    found = await shore.list_ids(filter=text, order_by=order_by, page_size=9, show_deleted=show_deleted)
    alive = {k: d for k, d in stored.items() if matches(d) and (show_deleted or k not in deleted)}
    assert set(found) == set(alive)
    ranks = [rank(alive[entity_id], key) for entity_id in found]
    assert ranks == sorted(ranks, reverse=reverse)


async def test_moments_are_served_by_an_index_of_their_texts(shore: Shore) -> None:
    moment = {"type": "string", "format": "date-time"}
    await shore.declare(schema={"type": "object", "properties": {"at": moment}}, indexes=[{"fields": ["data.at"]}])
    written = {
        "early": "2026-01-30T23:30:00Z",
        "same": "2026-01-31T12:00:00.000+12:30",
        "later": "2026-01-31T00:00:00+00:15",
        "last": "2026-01-30T11:00:00-14:00",
        "none": "tomorrow",
    }
    await shore.batch(*(shore.creating(name, {"at": text}) for name, text in written.items()))
    assert set(await shore.list_ids(filter='data.at = "2026-01-30T23:30:00+00:00"')) == {"early", "same"}
    assert set(await shore.list_ids(filter='data.at > "2026-01-30T23:30:00Z"')) == {"later", "last"}
    assert set(await shore.list_ids(filter='data.at <= "2026-01-31T00:00:00Z"')) == {"early", "same", "later"}
    assert set(await shore.list_ids(filter='data.at != "2026-01-30T23:30:00Z"')) == {"later", "last", "none"}
    assert await shore.list_ids(filter='data.at = "2026-01-30*"', order_by="data.at") == ["last", "early"]


async def test_the_own_fields_of_deleted_entities_can_be_asked_for(
    harbour: tuple[Shore, dict[str, Data], set[str]],
) -> None:
    shore, _, deleted = harbour
    assert set(await shore.list_ids(filter="delete_time > 2026-01-01T00:00:00Z", show_deleted=True)) == deleted
    page = await shore.page(filter="NOT delete_time:*", page_size=1)
    (entity,) = page.entities
    text = f"uid = '{entity.uid}' etag = '{entity.etag}' created_by = '{entity.created_by}'".replace('"', r"\"")
    moment = entity.create_time.ToJsonString()
    found = (await shore.page(filter=f"{text} create_time = {moment} revision = {entity.revision}")).entities
    assert list(found) == [entity]


async def test_without_an_order_a_list_is_by_id(harbour: tuple[Shore, dict[str, Data], set[str]]) -> None:
    shore, stored, deleted = harbour
    assert await shore.list_ids() == sorted(set(stored) - deleted)
    assert await shore.list_ids(show_deleted=True) == sorted(stored)


async def test_page_sizes_are_coerced(harbour: tuple[Shore, dict[str, Data], set[str]]) -> None:
    shore, stored, deleted = harbour
    assert len((await shore.page()).entities) == 50
    assert len((await shore.page(page_size=5000)).entities) == len(stored) - len(deleted)
    assert await reason(shore.page(page_size=-1)) == "INVALID_FIELD"


async def test_the_last_page_has_no_token_even_when_it_is_full(
    harbour: tuple[Shore, dict[str, Data], set[str]],
) -> None:
    shore, stored, deleted = harbour
    assert not (await shore.page(page_size=len(stored) - len(deleted))).next_page_token


@pytest.mark.parametrize("change", ["filter", "order_by", "show_deleted", "type", "tampered", "foreign"])
async def test_a_page_token_works_only_in_its_own_list(
    harbour: tuple[Shore, dict[str, Data], set[str]], replica: Replica, change: str
) -> None:
    shore, _, _ = harbour
    token = (await shore.page(page_size=3)).next_page_token
    assert (await shore.page(page_size=99, page_token=token)).entities
    if change == "type":
        await shore.declare(f"other{random.randrange(10**9)}")
        call = shore.page("other", page_token=token)
    elif change == "tampered":
        call = shore.page(page_token=("B" if token[5] != "B" else "C").join((token[:5], token[6:])))
    elif change == "foreign":
        elsewhere = replica.shore()
        await elsewhere.declare()
        call = elsewhere.page(page_token=token)
    else:
        changed: dict[str, dict[str, Any]] = {
            "filter": {"filter": "NOT data.depth = 1"},
            "order_by": {"order_by": "data.country"},
            "show_deleted": {"show_deleted": True},
        }
        call = shore.page(page_token=token, **changed[change])
    assert await reason(call) == "PAGE_TOKEN_INVALID"


async def test_a_page_may_show_other_parts_of_the_data_than_the_one_before(shore: Shore) -> None:
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n}", {"n": n, "m": n}) for n in range(4)))
    token = (await shore.page(page_size=2, read_mask=["data.n"])).next_page_token
    rest = await shore.page(page_token=token, read_mask=["data.m"], min_revision=5)
    assert [dict(entity.data) for entity in rest.entities] == [{"m": 2}, {"m": 3}]


async def test_a_page_goes_on_after_what_was_deleted_meanwhile(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    await shore.batch(*(shore.creating(f"b{n}", {"n": n}) for n in range(9)))
    page = await shore.page(order_by="data.n", page_size=3)
    await shore.delete("b2")
    await shore.update("b0", {"n": 100})
    rest = await shore.page(order_by="data.n", page_token=page.next_page_token)
    assert [entity.name[-1] for entity in rest.entities] == ["3", "4", "5", "6", "7", "8", "0"]


async def test_a_dropped_index_ends_its_walks(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    await shore.batch(*(shore.creating(f"b{n}", {"n": n}) for n in range(9)))
    token = (await shore.page(order_by="data.n", page_size=3)).next_page_token
    await shore.change_type(indexes=[])
    assert await reason(shore.page(order_by="data.n", page_token=token)) == "PAGE_TOKEN_INVALID"
    assert await reason(shore.page(order_by="data.n")) == "INDEX_REQUIRED"


async def test_what_needs_an_index_and_has_none_is_refused_with_the_index_to_declare(shore: Shore) -> None:
    await shore.declare(schema=SCHEMA)
    failure = await refusal(shore.page(filter='data.country = "CH"', order_by="data.depth desc"))
    assert error_info(failure).reason == "INDEX_REQUIRED"
    wanted = json.loads(error_info(failure).metadata["index"])
    await shore.change_type(indexes=[wanted])
    await shore.page(filter='data.country = "CH"', order_by="data.depth desc")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"filter": "data.zzz = 1"}, "filter"),
        ({"filter": "data.country = CH OR NOT data.nmae != 'x'"}, "filter"),
        ({"filter": "data.country.x:*"}, "filter"),
        ({"order_by": "data.country, data.zzz desc"}, "order_by"),
    ],
)
async def test_a_field_that_no_entity_of_the_type_can_have_is_refused_and_no_index_recommended(
    shore: Shore, query: dict[str, Any], field: str
) -> None:
    await shore.declare(schema=SCHEMA)
    failure = await refusal(shore.page(**query))
    assert (error_info(failure).reason, pointers(failure)) == ("INVALID_FIELD", [field])
    assert "the schema of the type has no field data." in (failure.details() or "")
    # What an open object may have is not refused; nor what was there once, in a list of the past.
    assert await shore.list_ids(filter="data.at.lon > 5 OR NOT data.at.lon > 5") == []
    if "filter" in query:
        assert await shore.list_ids(as_of_revision=1, **query) == []


@pytest.mark.parametrize(
    "fields", [["data.zzz"], ["data.country", "data.nmae"], ["data.at"], ["lower(data.depth)"], ["data.country.x"]]
)
async def test_a_new_index_of_what_no_entity_can_have_in_it_is_refused(shore: Shore, fields: list[str]) -> None:
    index = {"fields": fields}
    await shore.declare(schema=SCHEMA)
    assert await reason(shore.change_type(indexes=[index])) == "INVALID_FIELD"
    assert await reason(shore.declare("ship", schema=SCHEMA, indexes=[index])) == "INVALID_FIELD"
    assert not (await shore.get_type()).indexes
    await shore.change_type(indexes=[{"fields": ["data.at.lon", "lower(data.country)", "data.tags"]}])


async def test_an_index_that_was_declared_before_its_field_was_ruled_out_stays(shore: Shore) -> None:
    await shore.declare(schema={**SCHEMA, "additionalProperties": True}, compatibility="NONE")
    await shore.change_type(indexes=[{"fields": ["data.zzz"]}])
    await shore.replica.deployment.rows(
        """UPDATE types SET schema = (schema::jsonb - 'additionalProperties')::json, generation = generation + 1000000
        WHERE namespace = %s RETURNING 1""",
        shore.namespace.id,
    )
    both = [{"fields": ["data.zzz"]}, {"fields": ["data.country"]}]
    assert len((await shore.change_type(indexes=both)).indexes) == 2


@pytest.mark.parametrize(
    "query",
    [
        {"filter": "country = 1"},
        {"filter": "data.country = 1"},
        {"filter": "data.depth = 'deep'"},
        {"filter": "data.country ="},
        {"filter": "data.country = null"},
        {"filter": "data.country"},
        {"filter": "harbour"},
        {"filter": "data.country < 'C*'"},
        {"filter": "lower(data.tags) = a"},
        {"order_by": "data.tags"},
        {"filter": "data.country = 'x" * 2000},
        {"order_by": "depth"},
        {"order_by": "data.depth up"},
        {"read_mask": ["country"]},
    ],
)
async def test_malformed_queries_are_refused(
    harbour: tuple[Shore, dict[str, Data], set[str]], query: dict[str, Any]
) -> None:
    shore, _, _ = harbour
    assert await reason(shore.page(**query)) == "INVALID_FIELD"


async def test_a_read_mask_returns_only_what_it_names(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1, "b": {"c": 2, "d": 3}, "e": [1]})
    mask = ["data.b.c", "data.e", "data.nothing", "data.a.deeper"]
    entity = await shore.get("b1", read_mask=mask)
    assert json_format.MessageToDict(entity.data) == {"b": {"c": 2}, "e": [1]}
    assert entity.etag == '"2"'
    (listed,) = (await shore.page(read_mask=mask)).entities
    assert listed == entity
    assert (await shore.get("b1", read_mask=["*"])).data["a"] == 1


async def test_a_page_examines_at_most_its_budget(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.entity.planned_reads.MAX_EXAMINED", 100)
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    await shore.batch(*(shore.creating(f"b{n:03}", {"n": n, "odd": n == 333}) for n in range(450)))
    for query in (
        {"filter": "NOT data.odd != true AND NOT data.odd != true"},
        {"filter": "data.n >= 0 AND NOT data.odd != true"},
        {"filter": "NOT data.odd != true", "order_by": "data.n desc"},
        {"filter": "NOT data.odd != true", "order_by": "data.n desc", "show_deleted": True},
    ):
        pages: list[int] = []
        found: list[str] = []
        token = ""
        while True:
            page = await shore.page(page_token=token, **query)
            pages.append(len(page.entities))
            found += [entity.name for entity in page.entities]
            token = page.next_page_token
            if not token:
                break
        assert found == [shore.name("b333")], query
        assert len(pages) == 5, query


async def test_a_walk_that_the_database_gives_up_on_is_made_shorter(
    shore: Shore, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare()
    for start in range(0, 160, 20):
        # Text that does not compress, and that the database puts together anew for each comparison.
        ids = [f"b{n:03}" for n in range(start, start + 20)]
        await shore.batch(*(shore.creating(entity_id, {"t": os.urandom(100_000).hex()}) for entity_id in ids))
    monkeypatch.setattr("services.entity.planned_reads.MAX_EXAMINED_OF_SLOW", 1)
    text = " AND ".join(["NOT data.a.b = 1"] * 99 + ["NOT data.t != 'x'"])
    await replica.deployment.execute("ALTER ROLE entity_app SET statement_timeout = '150ms'")
    try:
        async with replica.deployment.replica() as hurried:
            page = await shore.through(hurried).page(filter=text)
    finally:
        await replica.deployment.execute("ALTER ROLE entity_app RESET statement_timeout")
    assert (len(page.entities), bool(page.next_page_token)) == (0, True)


async def test_deleted_entities_in_the_way_end_a_page_too(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.entity.planned_reads.MAX_EXAMINED", 100)
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:03}", {}) for n in range(250)))
    await shore.batch(*(shore.deleting(f"b{n:03}") for n in range(240)))
    page = await shore.page()
    assert (len(page.entities), bool(page.next_page_token)) == (0, True)
    assert len(await shore.list_ids()) == 10


async def test_a_page_ends_at_three_mebibytes(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    text = "x" * 250_000
    for start in (0, 10):
        await shore.batch(*(shore.creating(f"b{n:02}", {"n": n, "t": text}) for n in range(start, start + 10)))
    queries: tuple[dict[str, Any], ...] = ({}, {"order_by": "data.n"}, {"order_by": "data.n desc"})
    for query in queries:
        page = await shore.page(page_size=1000, **query)
        assert len(page.entities) == 12
        assert page.ByteSize() < 3 * 2**20 + 10_000
        assert len(await shore.list_ids(page_size=1000, **query)) == 20


async def test_a_page_is_a_walk_of_one_range_that_stops_when_it_is_full(shore: Shore, replica: Replica) -> None:
    """Seen in the plan: nothing is sorted, and no more rows are read than the page needs."""
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    for start in range(0, 3000, 500):
        await shore.batch(*(shore.creating(f"b{n:04}", {"n": n}) for n in range(start, start + 500)))
    index_id = (
        await replica.deployment.rows("SELECT indexes->0->>'id' FROM types WHERE namespace = %s", shore.namespace.id)
    )[0][0]
    residual = parse_filter("data.n != 7")
    plans = [
        (Plan(residual=residual), Position(None, b"", "b0100")),
        (Plan(index_id=int(index_id), lower=b"\x40", upper=b"\x50", residual=residual), None),
        (Plan(index_id=int(index_id), reverse=True), Position(int(index_id), b"\x50", "b1000")),
    ]
    for plan, after in plans:
        for show_deleted in (False, True):
            walk = Walk(shore.namespace.id, "buoy", plan, after, show_deleted, 51, 10_000, 2**20)
            statement = page_statement(walk)
            (rows,) = await replica.service.database.read(
                shore.namespace.id, Statement("EXPLAIN (ANALYZE, TIMING OFF) " + statement.sql, statement.params)
            )
            text = "\n".join(line for (line,) in rows)
            assert "Seq Scan" not in text, text
            assert "Sort" not in text.replace("Sort Key", ""), text
            assert "rows=3000" not in text.replace(".00", ""), text


async def test_batch_get_keeps_the_order_and_names_what_is_missing(shore: Shore) -> None:
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n}", {"n": n}) for n in range(5)))
    await shore.delete("b2")
    request = pb.BatchGetEntitiesRequest(parent=f"{shore.parent}/types/buoy", ids=["b4", "b9", "b0", "b2", "b4"])
    answer = await shore.replica.entities.BatchGetEntities(request, metadata=shore.metadata())
    assert [entity.name[-1] for entity in answer.entities] == ["4", "0"]
    assert list(answer.missing_ids) == ["b9", "b2"]
    assert (answer.revision, answer.epoch) == (7, shore.namespace.epoch)
    request = pb.BatchGetEntitiesRequest(parent=f"{shore.parent}/types/buoy", ids=[f"b{n}" for n in range(501)])
    assert await reason(shore.replica.entities.BatchGetEntities(request, metadata=shore.metadata())) == "INVALID_FIELD"


async def test_batch_get_says_what_did_not_fit(shore: Shore) -> None:
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:02}", {"t": "x" * 250_000}) for n in range(13)))
    ids = [f"b{n:02}" for n in range(13)]
    request = pb.BatchGetEntitiesRequest(parent=f"{shore.parent}/types/buoy", ids=ids)
    answer = await shore.replica.entities.BatchGetEntities(request, metadata=shore.metadata())
    assert (len(answer.entities), list(answer.unread_ids)) == (12, ["b12"])


async def test_a_minimum_revision_that_does_not_exist_is_refused(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {})
    assert (await shore.get("b1", min_revision=2)).revision == 2
    failure = await refusal(shore.get("b1", min_revision=3))
    assert error_info(failure).reason == "FUTURE_REVISION"
    assert error_info(failure).metadata["head_revision"] == "2"
    assert await reason(shore.page(min_revision=3)) == "FUTURE_REVISION"
    request = pb.GetEntityRequest(name=shore.name("b1"))
    for position, expected in (
        (f"{shore.namespace.epoch}.2", ""),
        ("00000000.1", "EPOCH_CHANGED"),
        ("x", "INVALID_FIELD"),
    ):
        call = shore.replica.entities.GetEntity(request, metadata=shore.metadata(strandline_min_revision=position))
        if expected:
            assert await reason(call) == expected
        else:
            await call


async def test_a_namespace_that_was_never_written_to_is_empty(shore: Shore) -> None:
    assert await reason(shore.get("b1")) == "NOT_FOUND"
    assert await shore.head() == 0
