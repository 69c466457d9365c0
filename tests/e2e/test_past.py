"""The past through the edge, as REST."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from .local_platform import Platform
from .rest import Rest

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "at": {"type": "object"}, "t": {"type": "string"}}}


class Bay:
    """A namespace with one type, and an entity with a past."""

    def __init__(self, rest: Rest, path: str) -> None:
        self.rest = rest
        self.path = path
        self.entities = f"{path}/types/buoy/entities"
        self.one = f"{self.entities}/one"

    async def get(self, path: str, **params: Any) -> Any:
        return await self.rest.ok("GET", path, params={key: str(value) for key, value in params.items()})


@pytest.fixture
async def bay(platform: Platform) -> AsyncIterator[Bay]:
    """At 2 there is {n: 1}, at 3 {n: 2}, at 4 {n: 2, at}, and another entity at 5."""
    rest = Rest(platform.rest, platform.token())
    namespace = f"past-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {}, params={"namespace_id": namespace})
    made = Bay(rest, f"/v1/namespaces/{namespace}")
    await rest.ok("POST", f"{made.path}/types", {"schema": SCHEMA}, params={"type_id": "buoy"})
    await rest.ok("POST", made.entities, {"data": {"n": 1}}, params={"entity_id": "one"})
    await rest.ok("PATCH", made.one, {"data": {"n": 2}}, params={"request_id": "second"})
    await rest.ok("PATCH", made.one, {"data": {"at": {"lat": 5}}})
    await rest.ok("POST", made.entities, {"data": {"n": 9}}, params={"entity_id": "two"})
    yield made
    await rest.close()


async def test_reads_as_of_a_revision_and_as_of_a_time(bay: Bay) -> None:
    answer = await bay.rest("GET", bay.one, params={"as_of_revision": "2"})
    assert (answer.json["data"], answer.position[1]) == ({"n": 1}, 2)
    moment = await bay.get(f"{bay.path}:lookupRevision", revision=3)
    assert (moment["revision"], moment["headRevision"], moment["horizonRevision"]) == ("3", "5", "0")
    assert (await bay.get(bay.one, as_of_time=moment["commitTime"]))["data"] == {"n": 2}
    found = await bay.get(f"{bay.path}:lookupRevision", time=moment["commitTime"])
    assert found == moment
    assert (await bay.get(f"{bay.path}:lookupRevision", revision=0))["revision"] == "0"
    listed = await bay.get(bay.entities, as_of_revision=4, filter="data.n > 1")
    assert [(entity["data"], listed["revision"]) for entity in listed["entities"]] == [
        ({"n": 2, "at": {"lat": 5}}, "4")
    ]
    for moments in ({"asOfRevision": "3"}, {"asOfTime": moment["commitTime"]}):
        body = {"ids": ["one", "two"], **moments}
        batch = await bay.rest.ok("POST", f"{bay.entities}:batchGet", body)
        assert (batch["revision"], batch["missingIds"]) == ("3", ["two"])


async def test_the_versions_of_an_entity_newest_first(bay: Bay) -> None:
    first = await bay.get(f"{bay.one}:listRevisions", page_size=2)
    rest = await bay.get(f"{bay.one}:listRevisions", page_size=2, page_token=first["nextPageToken"])
    found = [*first["revisions"], *rest["revisions"]]
    assert [(version["revision"], version["kind"]) for version in found] == [
        ("4", "UPDATED"),
        ("3", "UPDATED"),
        ("2", "CREATED"),
    ]
    assert (found[1]["requestId"], found[1]["entity"]["data"]) == ("second", {"n": 2})
    assert found[2]["actor"] == found[2]["entity"]["createdBy"]
    assert (first["revision"], rest["nextPageToken"]) == ("5", "")


async def test_a_rollback_answers_with_the_entity_and_can_be_repeated(bay: Bay) -> None:
    for _ in range(2):
        answer = await bay.rest("POST", f"{bay.one}:rollback", {"toRevision": "2", "requestId": "back"})
        assert (answer.status, answer.json["data"], answer.position[1]) == (200, {"n": 1}, 6)
    refused = await bay.rest("POST", f"{bay.one}:rollback", {"toRevision": "3"}, headers={"if-match": '"2"'})
    assert refused.problem == (412, "ETAG_MISMATCH")


async def test_the_difference_of_an_entity_and_of_everything(bay: Bay) -> None:
    diff = await bay.get(f"{bay.one}:diff", from_revision=2, to_revision=4)
    assert (diff["kind"], diff["fromRevision"], diff["toRevision"]) == ("UPDATED", "2", "4")
    assert diff["changes"] == [{"pointer": "/at", "after": {"lat": 5}}, {"pointer": "/n", "before": 1, "after": 2}]
    page = await bay.get(f"{bay.path}:diff", from_revision=2, types="buoy")
    assert [(diff["name"].rsplit("/", 1)[1], diff["kind"]) for diff in page["diffs"]] == [
        ("one", "UPDATED"),
        ("two", "CREATED"),
    ]
    assert (page["revision"], page["nextPageToken"]) == ("5", "")


async def test_an_export_holds_types_and_entities_of_one_revision(bay: Bay) -> None:
    entities, types, token = [], [], ""
    while True:
        params = {"revision": "4"} | ({"page_token": token} if token else {})
        page = await bay.get(f"{bay.path}:export", **params)
        assert page["revision"] == "4"
        types += page["types"]
        entities += page["entities"]
        if not (token := page["nextPageToken"]):
            break
    assert [type_["schema"]["properties"].keys() for type_ in types] == [SCHEMA["properties"].keys()]  # type: ignore[attr-defined]
    assert [entity["data"] for entity in entities] == [{"n": 2, "at": {"lat": 5}}]


@pytest.mark.parametrize(
    ("method", "path", "params", "problem"),
    [
        ("GET", "/types/buoy/entities/one", {"as_of_revision": "99"}, (400, "FUTURE_REVISION")),
        ("GET", "/types/buoy/entities/one", {"as_of_time": "9999-01-01T00:00:00Z"}, (400, "FUTURE_REVISION")),
        ("GET", "/types/buoy/entities/one", {"as_of_time": "yesterday"}, (400, "INVALID_FIELD")),
        ("GET", "/types/buoy/entities/one", {"as_of_revision": "-1"}, (400, "INVALID_FIELD")),
        ("GET", "/types/buoy/entities/one", {"as_of_revision": "1"}, (404, "NOT_FOUND")),
        ("GET", "/types/buoy/entities", {"as_of_revision": "2", "order_by": "data.n"}, (400, "INVALID_FIELD")),
        ("GET", "/types/buoy/entities/none:listRevisions", {}, (404, "NOT_FOUND")),
        ("GET", "/types/buoy/entities/one:listRevisions", {"page_token": "x"}, (400, "PAGE_TOKEN_INVALID")),
        ("GET", "/types/buoy/entities/one:diff", {"from_revision": "4", "to_revision": "3"}, (400, "INVALID_FIELD")),
        ("GET", ":lookupRevision", {}, (400, "INVALID_FIELD")),
        ("GET", ":lookupRevision", {"revision": "1", "time": "2026-01-01T00:00:00Z"}, (400, "INVALID_FIELD")),
        ("GET", ":diff", {"from_revision": "99"}, (400, "FUTURE_REVISION")),
        ("GET", ":export", {"revision": "99"}, (400, "FUTURE_REVISION")),
        ("POST", "/types/buoy/entities/one:rollback", {"toRevision": "1"}, (404, "NOT_FOUND")),
        ("POST", "/types/buoy/entities/one:rollback", {}, (400, "INVALID_FIELD")),
    ],
)
async def test_a_question_that_has_no_answer_says_why(
    bay: Bay, method: str, path: str, params: dict[str, str], problem: tuple[int, str]
) -> None:
    body, query = (params, None) if method == "POST" else (None, params)
    assert (await bay.rest(method, bay.path + path, body, params=query)).problem == problem
