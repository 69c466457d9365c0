"""Random writes against a model in plain Python; afterwards state, log and index entries must tell one story."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from google.protobuf import json_format
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.stream.v1 import feed_pb2

from services.entity.index_keys import entry_keys, parse_index
from services.entity.schemas import field_types
from tests.integration.entity.conftest import Replica, Shore, error_info, eventually, info_in

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "code": {"type": "integer"},
        "name": {"type": ["string", "null"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
INDEXES: list[dict[str, Any]] = [
    {"fields": ["data.code"], "unique": True},
    {"fields": ["data.name desc", "data.code"]},
    {"fields": ["data.tags"]},
]
REFUSALS = {"NOT_FOUND", "ALREADY_EXISTS", "SCHEMA_VIOLATION", "UNIQUE_VIOLATION", "ETAG_MISMATCH"}
Change = feed_pb2.Change


def random_content(rng: random.Random) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if rng.random() < 0.6:
        content["code"] = rng.randrange(25)
    if rng.random() < 0.6:
        content["name"] = rng.choice([None, "a", "b"])
    if rng.random() < 0.4:
        content["tags"] = rng.sample(["x", "y", "z"], rng.randrange(4))
    if rng.random() < 0.05:
        content["wrong"] = True
    return content


def random_mutation(rng: random.Random, shore: Shore) -> tuple[str, str, dict[str, Any], entity_pb2.Mutation]:
    entity_id = f"b{rng.randrange(20)}"
    content = random_content(rng)
    kind = rng.choice(["create", "update", "replace", "upsert", "delete", "undelete"])
    mutation = {
        "create": lambda: shore.creating(entity_id, content),
        "update": lambda: shore.updating(entity_id, content),
        "replace": lambda: shore.updating(entity_id, content, update_mask=["*"]),
        "upsert": lambda: shore.updating(entity_id, content, allow_missing=True),
        "delete": lambda: shore.deleting(entity_id),
        "undelete": lambda: shore.undeleting(entity_id),
    }[kind]()
    return kind, entity_id, content, mutation


class Model:
    """What should happen: live and deleted content by id."""

    def __init__(self) -> None:
        self.live: dict[str, dict[str, Any]] = {}
        self.deleted: dict[str, dict[str, Any]] = {}

    def apply(self, kind: str, entity_id: str, content: dict[str, Any]) -> str:
        """Apply a write; the reason it is refused with, or "" """
        current = self.live.get(entity_id)
        if kind == "delete":
            if current is None:
                return "NOT_FOUND"
            self.deleted[entity_id] = self.live.pop(entity_id)
            return ""
        if kind == "undelete":
            if current is not None:
                return "ALREADY_EXISTS"
            if entity_id not in self.deleted:
                return "NOT_FOUND"
            new = self.deleted[entity_id]
        elif kind == "create":
            if current is not None:
                return "ALREADY_EXISTS"
            new = content
        elif current is None:
            if kind != "upsert":
                return "NOT_FOUND"
            new = content
        else:
            new = content if kind == "replace" else {**current, **content}
        if "wrong" in new:
            return "SCHEMA_VIOLATION"
        if new == current:
            return ""
        taken = [data.get("code") for other, data in self.live.items() if other != entity_id]
        if new.get("code") is not None and new["code"] in taken:
            return "UNIQUE_VIOLATION"
        self.live[entity_id] = new
        self.deleted.pop(entity_id, None)
        return ""


@pytest.mark.parametrize("seed", range(4))
async def test_one_writer_sees_exactly_what_the_model_says(shore: Shore, seed: int) -> None:
    rng = random.Random(seed)
    await shore.declare(schema=SCHEMA, indexes=INDEXES)
    model = Model()
    for step in range(250):
        kind, entity_id, content, mutation = random_mutation(rng, shore)
        expected = model.apply(kind, entity_id, content)
        (result,) = (await shore.batch(mutation)).results
        assert (info_in(result.status).reason if result.status.code else "") == expected, (step, kind, entity_id)
    state = await check_one_story(shore)
    assert {key: data for key, (live, data) in state.items() if live} == model.live
    assert {key: data for key, (live, data) in state.items() if not live} == model.deleted


@pytest.mark.parametrize("seed", range(3))
async def test_many_writers_on_two_replicas_leave_one_story(shore: Shore, other_replica: Replica, seed: int) -> None:
    rng = random.Random(seed)
    await shore.declare(schema=SCHEMA)
    sides = [shore, shore.through(other_replica)]
    for round_ in range(6):
        calls: list[Any] = []
        for _ in range(30):
            side = rng.choice(sides)
            mutations = {}
            for _ in range(rng.choice([1, 1, 3, 8])):
                _, entity_id, _, mutation = random_mutation(rng, side)
                mutations[entity_id] = mutation
            calls.append((side.transact if rng.random() < 0.4 else side.batch)(*mutations.values()))
        if round_ == 2:
            calls.append(shore.change_type(indexes=INDEXES[1:]))
        if round_ == 4:
            calls.append(shore.change_type(indexes=INDEXES[:2]))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        refused = [error_info(outcome).reason for outcome in outcomes if isinstance(outcome, BaseException)]
        for outcome in outcomes:
            if isinstance(outcome, pb.BatchWriteResponse):
                refused += [info_in(result.status).reason for result in outcome.results if result.status.code]
        assert set(refused) <= REFUSALS
    await check_one_story(shore)


async def check_one_story(shore: Shore) -> dict[str, tuple[bool, dict[str, Any]]]:
    """State by id (live, data); asserts that the log, the entities and the index entries agree on it."""
    units = await shore.units()
    assert [unit.revision for unit in units] == list(range(1, len(units) + 1))
    last: dict[str, entity_pb2.Entity] = {}
    for unit in units:
        for change in unit.changes:
            if change.kind == Change.SCHEMA_CHANGED:
                continue
            name = change.entity.name
            if change.kind != Change.CREATED:
                assert change.previous == last[name]
            assert change.entity.revision == unit.revision
            assert change.entity.update_time == unit.commit_time
            last[name] = change.entity
    entities = [await shore.get(name.rsplit("/", 1)[1]) for name in last]
    assert {entity.name: entity for entity in entities} == last
    live_names = {entity.name for entity in entities if not entity.HasField("delete_time")}
    assert {entity.name for entity in (await shore.page(page_size=1000)).entities} == live_names

    state = {
        entity.name.rsplit("/", 1)[1]: (not entity.HasField("delete_time"), json_format.MessageToDict(entity.data))
        for entity in entities
    }
    look = shore.replica.deployment.rows

    async def idle() -> bool:
        return await look("SELECT count(*) FROM index_jobs WHERE namespace = %s", shore.namespace.id) == [(0,)]

    await eventually(idle)
    type_ = await shore.get_type()
    ((stored,),) = await look("SELECT indexes FROM types WHERE namespace = %s", shore.namespace.id)
    ids = [index["id"] for index in stored]
    expected = set()
    for index_id, index in zip(ids, type_.indexes, strict=True):
        spec = parse_index(index.fields, unique=index.unique, field_types=field_types(SCHEMA))
        if index.state == index.READY:
            for entity_id, (live, data) in state.items():
                expected |= {(index_id, not live, key, entity_id) for key in entry_keys(spec, data)}
    entries = "SELECT index_id, deleted, key, id FROM index_entries WHERE namespace = %s"
    assert set(await look(entries, shore.namespace.id)) == expected
    return state
