"""Filters, counts and aggregates through the edge, as REST, and the same filter on a feed."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from .local_platform import Platform
from .rest import Rest

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "country": {"type": "string"},
        "depth": {"type": "number"},
        "at": {"type": "string", "format": "date-time"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
INDEXES = [{"fields": ["data.country", "data.depth desc"]}, {"fields": ["lower(data.name)"]}, {"fields": ["data.at"]}]
BUOYS: dict[str, dict[str, Any]] = {
    "one": {"name": "Zürich", "country": "CH", "depth": 5, "at": "2026-01-31T12:00:00Z", "tags": ["a*"]},
    "two": {"name": "ZUG", "country": "CH", "depth": 7.5, "at": "2026-01-31T12:30:00+01:00"},
    "three": {"name": "Bregenz", "country": "AT", "tags": ["a", "b"]},
}


class Lake:
    """A namespace with three buoys."""

    def __init__(self, rest: Rest, namespace: str) -> None:
        self.rest = rest
        self.path = f"/v1/namespaces/{namespace}"
        self.entities = f"{self.path}/types/buoy/entities"

    async def found(self, text: str, **params: str) -> list[str]:
        answer = await self.rest.ok("GET", self.entities, params={"filter": text, **params})
        return [entity["name"].rsplit("/", 1)[1] for entity in answer["entities"]]


@pytest.fixture
async def lake(platform: Platform) -> AsyncIterator[Lake]:
    rest = Rest(platform.rest, platform.token())
    namespace = f"lake-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {}, params={"namespace_id": namespace})
    made = Lake(rest, namespace)
    await rest.ok("POST", f"{made.path}/types", {"schema": SCHEMA, "indexes": INDEXES}, params={"type_id": "buoy"})
    for entity_id, data in BUOYS.items():
        await rest.ok("POST", made.entities, {"data": data}, params={"entity_id": entity_id})
    yield made
    await rest.close()


async def test_filters_pass_the_edge_as_they_are_written(lake: Lake) -> None:
    assert await lake.found("data.country = CH AND data.depth > 5") == ["two"]
    assert await lake.found("lower(data.name) = 'zü*'") == ["one"]
    assert await lake.found("data.at < 2026-01-31T13:00:00+01:00") == ["two"]
    assert await lake.found(r"NOT data.tags:* OR data.name = 'Z*'") == ["one", "two"]
    assert await lake.found("-data.country = (CH OR DE)") == ["three"]
    assert await lake.found("name = '*/t*' size(data.tags) = 2") == ["three"]
    assert await lake.found("", order_by="lower(data.name) desc") == ["one", "two", "three"]
    for text, expected in (
        ("buoy", (400, "INVALID_FIELD")),
        ("data.depth = '5'", (400, "INVALID_FIELD")),
        ("data.name = 'Z*'", (400, "INDEX_REQUIRED")),
    ):
        answer = await lake.rest("GET", lake.entities, params={"filter": text})
        assert answer.problem == expected, text
    answer = await lake.rest("GET", lake.entities, params={"order_by": "data.tags"})
    assert answer.problem == (400, "INVALID_FIELD")


async def test_counts_and_aggregates_over_rest(lake: Lake) -> None:
    counted = await lake.rest("GET", f"{lake.entities}:count", params={"filter": "data.country = CH"})
    epoch, revision = counted.position
    assert counted.json == {"count": "2", "atLeast": False, "revision": str(revision), "epoch": epoch}
    body = {
        "aggregations": [{"count": {}}, {"sum": {"field": "data.depth"}}, {"min": {"field": "data.depth"}}],
        "groupBy": ["data.country"],
    }
    answer = await lake.rest("POST", f"{lake.entities}:aggregate", body)
    assert answer.json == {
        "groups": [{"key": ["AT"], "values": [1, 0, None]}, {"key": ["CH"], "values": [2, 12.5, 5]}],
        "revision": str(revision),
        "epoch": epoch,
    }
    ends = {"filter": "data.country = CH", "aggregations": [{"max": {"field": "data.depth"}}]}
    assert (await lake.rest.ok("POST", f"{lake.entities}:aggregate", ends))["groups"] == [{"key": [], "values": [7.5]}]
    for wrong, expected in (
        ({"aggregations": []}, (400, "INVALID_FIELD")),
        ({"aggregations": [{}]}, (400, "INVALID_FIELD")),
        ({"aggregations": [{"median": {"field": "data.depth"}}]}, (400, "UNKNOWN_FIELD")),
        ({"aggregations": [{"count": {}}], "groupBy": ["data.name"]}, (400, "INDEX_REQUIRED")),
    ):
        answer = await lake.rest("POST", f"{lake.entities}:aggregate", wrong)
        assert answer.problem == expected, wrong


async def test_a_feed_has_the_same_filter(lake: Lake, platform: Platform) -> None:
    text = "lower(data.name) = 'z*' AND data.at > 2026-01-31T11:45:00Z AND name = '*/one' AND revision > 0"
    query = {"after_revision": "1", "filter": text}
    token = {"authorization": f"Bearer {platform.token()}"}
    async with (
        aiohttp.ClientSession(platform.rest, headers=token) as session,
        session.get(f"{lake.path}:watch", params=query) as feed,
    ):
        async for line in feed.content:
            message = json.loads(line)
            if "units" in message:
                break
    names = [change["entity"]["name"] for unit in message["units"]["units"] for change in unit["changes"]]
    assert [name.rsplit("/", 1)[1] for name in names] == ["one"]
