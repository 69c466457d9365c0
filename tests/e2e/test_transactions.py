"""What one transaction can say, through the edge: preconditions, field operations and references."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from strandline.entity.v1 import entity_pb2
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_client.errors import ApiError

from .local_platform import Platform
from .rest import Answer, Rest

ANY = {"type": "object", "additionalProperties": True}
SHIP = {
    "type": "object",
    "properties": {
        "port": {"type": "string"},
        "owner": {"type": ["string", "null"]},
        "calls": {"type": "array", "items": {"type": "string"}},
    },
}
REFERENCES = [
    {"field": "data.port", "type": "port", "onDelete": "CASCADE"},
    {"field": "data.owner", "type": "owner", "onDelete": "SET_NULL"},
    {"field": "data.calls", "type": "port"},
]


class Harbour:
    """A namespace with ports, owners, and ships that refer to them."""

    def __init__(self, rest: Rest, namespace: str) -> None:
        self.rest = rest
        self.namespace = namespace
        self.path = f"/v1/namespaces/{namespace}"

    def name(self, kind: str, entity_id: str) -> str:
        return f"namespaces/{self.namespace}/types/{kind}/entities/{entity_id}"

    def creating(self, kind: str, entity_id: str, **data: Any) -> dict[str, Any]:
        return {"create": {"name": self.name(kind, entity_id), "data": data}}

    def operating(self, entity_id: str, *operations: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"update": {"name": self.name("port", entity_id), "operations": list(operations), **more}}

    async def transact(self, *mutations: dict[str, Any], **more: Any) -> Answer:
        return await self.rest("POST", f"{self.path}:transact", {"mutations": list(mutations), **more})

    async def get(self, kind: str, entity_id: str) -> Any:
        return await self.rest.ok("GET", f"/v1/{self.name(kind, entity_id)}")

    async def delete(self, kind: str, entity_id: str) -> Answer:
        return await self.rest("DELETE", f"/v1/{self.name(kind, entity_id)}")

    async def revision(self) -> int:
        return (await self.rest("GET", f"{self.path}/types/port")).position[1]


@pytest.fixture(scope="module")
async def harbour(platform: Platform) -> AsyncIterator[Harbour]:
    rest = Rest(platform.rest, platform.token())
    namespace = f"harbour-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {}, params={"namespace_id": namespace})
    made = Harbour(rest, namespace)
    for kind, body in (("port", {"schema": ANY}), ("owner", {"schema": ANY})):
        await rest.ok("POST", f"{made.path}/types", body, params={"type_id": kind})
    ship = {"schema": SHIP, "references": REFERENCES}
    await rest.ok("POST", f"{made.path}/types", ship, params={"type_id": "ship"})
    yield made
    await rest.close()


def metadata(answer: Answer) -> dict[str, str]:
    found: dict[str, str] = answer.json["metadata"]
    return found


async def test_a_transaction_whose_precondition_does_not_hold_is_a_conflict(harbour: Harbour) -> None:
    name = harbour.name("port", "stock")
    unset = {"name": name, "exists": False}
    made = await harbour.transact(harbour.creating("port", "stock", left=1), preconditions=[unset])
    assert made.status == 200, made
    left = {"name": name, "filter": "data.left > 0"}
    sell = harbour.operating("stock", {"field": "data.left", "increment": -1})
    assert (await harbour.transact(sell, preconditions=[left])).status == 200
    before = await harbour.revision()
    sold_out = await harbour.transact(sell, preconditions=[{"name": name, "exists": True}, left])
    assert sold_out.problem == (409, "PRECONDITION_FAILED")
    assert metadata(sold_out) == {"precondition": "1", "name": name}
    asserted = await harbour.transact(preconditions=[{"name": name, "etag": made.json["results"][0]["etag"]}])
    assert asserted.problem == (409, "PRECONDITION_FAILED")
    assert (await harbour.transact(preconditions=[{"name": name, "exists": True}])).json["results"] == []
    assert await harbour.revision() == before


async def test_operations_are_computed_by_the_store(harbour: Harbour) -> None:
    await harbour.transact(harbour.creating("port", "busy", visits=1, tags=["deep"], best=3))
    operations: list[dict[str, Any]] = [
        {"field": "data.visits", "increment": 2},
        {"field": "data.best", "maximum": 2.5},
        {"field": "data.least", "minimum": 4},
        {"field": "data.tags", "union": ["deep", "old", 5.0, 5]},
    ]
    assert (await harbour.transact(harbour.operating("busy", *operations, data={"name": "B"}))).status == 200
    expected = {"visits": 3, "best": 3, "least": 4, "tags": ["deep", "old", 5], "name": "B"}
    assert (await harbour.get("port", "busy"))["data"] == expected
    writes = [harbour.operating("busy", {"field": "data.tags", "remove": [5]})] * 2
    answer = await harbour.rest.ok("POST", f"{harbour.path}:batchWrite", {"writes": writes})
    assert [result["outcome"] for result in answer["results"]] == ["UPDATED", "UNCHANGED"]
    wrong = await harbour.transact(harbour.operating("busy", {"field": "data.name", "increment": 1}))
    assert wrong.problem == (400, "INVALID_FIELD")
    assert wrong.pointers == {"/name"}


async def test_an_operation_sent_twice_counts_once(harbour: Harbour) -> None:
    await harbour.transact(harbour.creating("port", "twice"))
    count = harbour.operating("twice", {"field": "data.n", "increment": 1})
    answers = [await harbour.transact(count, requestId="count-once") for _ in range(2)]
    assert answers[0].json == answers[1].json
    assert (await harbour.get("port", "twice"))["data"] == {"n": 1}


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ({"exists": True, "etag": "1"}, "INVALID_FIELD"),
        ({"is": True}, "UNKNOWN_FIELD"),
        ({"filter": "data.n >"}, "INVALID_FIELD"),
        ({"exists": "yes"}, "INVALID_FIELD"),
        ({}, "INVALID_FIELD"),
    ],
)
async def test_a_bad_precondition_is_refused(harbour: Harbour, condition: dict[str, Any], reason: str) -> None:
    before = await harbour.revision()
    name = harbour.name("port", "nobody")
    answer = await harbour.transact(harbour.creating("port", "nobody"), preconditions=[{"name": name, **condition}])
    assert answer.problem == (400, reason)
    assert await harbour.revision() == before


@pytest.mark.parametrize(
    ("operation", "reason"),
    [
        ({}, "INVALID_FIELD"),
        ({"increment": "1x"}, "INVALID_FIELD"),
        ({"increment": 1, "maximum": 1}, "INVALID_FIELD"),
        ({"union": 1}, "INVALID_FIELD"),
        ({"add": 1}, "UNKNOWN_FIELD"),
    ],
)
async def test_a_bad_operation_is_refused(harbour: Harbour, operation: dict[str, Any], reason: str) -> None:
    before = await harbour.revision()
    answer = await harbour.transact(harbour.operating("nobody", {"field": "data.n", **operation}, allowMissing=True))
    assert answer.problem == (400, reason)
    assert await harbour.revision() == before


async def test_a_transaction_of_nothing_is_refused(harbour: Harbour) -> None:
    assert (await harbour.transact()).problem == (400, "INVALID_FIELD")


async def test_a_type_says_what_it_refers_to(harbour: Harbour) -> None:
    ship = await harbour.rest.ok("GET", f"{harbour.path}/types/ship")
    assert ship["references"] == [
        {
            **declared,
            "onDelete": declared.get("onDelete", "RESTRICT"),
            "state": "READY",
            "failure": "",
            "failedNames": [],
        }
        for declared in REFERENCES
    ]
    answer = await harbour.rest("DELETE", f"{harbour.path}/types/owner")
    assert answer.problem == (400, "TYPE_REFERENCED")
    assert metadata(answer) == {"type": "ship"}


async def test_deletions_refuse_clear_and_cascade(harbour: Harbour) -> None:
    missing = await harbour.transact(harbour.creating("ship", "s1", port="p1"))
    assert missing.problem == (400, "REFERENCE_NOT_FOUND")
    assert metadata(missing) == {"type": "port", "field": "data.port", "id": "p1", "mutation": "0"}
    made = await harbour.transact(
        harbour.creating("ship", "s1", port="p1", owner="o1", calls=["p2"]),
        harbour.creating("port", "p1"),
        harbour.creating("port", "p2"),
        harbour.creating("owner", "o1"),
    )
    assert made.status == 200, made
    refused = await harbour.delete("port", "p2")
    assert refused.problem == (400, "REFERENCED")
    assert metadata(refused) == {"type": "ship", "field": "data.calls", "count": "1"}
    cleared = await harbour.delete("owner", "o1")
    assert cleared.status == 200
    ship = await harbour.get("ship", "s1")
    assert ship["data"] == {"port": "p1", "owner": None, "calls": ["p2"]}
    assert int(ship["revision"]) == cleared.position[1]
    assert (await harbour.delete("port", "p1")).status == 200
    assert "deleteTime" in await harbour.get("ship", "s1")
    undelete = await harbour.rest("POST", f"/v1/{harbour.name('ship', 's1')}:undelete", {})
    assert undelete.problem == (400, "REFERENCE_NOT_FOUND")
    assert (await harbour.delete("port", "p2")).status == 200


async def test_a_cascade_beyond_500_is_refused_with_the_count(harbour: Harbour) -> None:
    await harbour.transact(harbour.creating("port", "hub"))
    writes = [harbour.creating("ship", f"many{n}", port="hub") for n in range(501)]
    for start in (0, 500):
        answer = await harbour.rest.ok("POST", f"{harbour.path}:batchWrite", {"writes": writes[start : start + 500]})
        assert all(result["status"]["code"] == 0 for result in answer["results"])
    refused = await harbour.delete("port", "hub")
    assert refused.problem == (400, "CASCADE_TOO_LARGE")
    assert metadata(refused) == {"count": "501"}


async def test_the_client_package_sends_preconditions(platform: Platform, harbour: Harbour) -> None:
    name = harbour.name("port", "by-client")
    create = entity_pb2.Mutation(create=entity_pb2.CreateMutation(name=name, data_json=b"{}"))
    unset = entity_pb2.Precondition(name=name, exists=False)
    async with Running.in_home(Home(platform.home)).client() as client:
        await client.transact(harbour.namespace, [create], preconditions=[unset])
        with pytest.raises(ApiError) as refused:
            await client.transact(harbour.namespace, [create], preconditions=[unset])
    assert refused.value.reason == "PRECONDITION_FAILED"
