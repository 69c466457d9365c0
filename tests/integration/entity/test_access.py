"""Who gets in, and what malformed requests get."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.rpc.v1 import access_pb2

from services.runtime.database import Statement
from tests.integration.entity.conftest import Replica, Shore, error_info, pointers, reason, refusal


async def test_a_stranger_learns_nothing(replica: Replica, shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {})
    stranger = replica.member(shore.namespace, 0)
    for call in (stranger.get("b1"), stranger.page(), stranger.create("b2", {}), stranger.get_type()):
        assert await reason(call) == "NOT_FOUND"


async def test_a_viewer_reads_and_does_not_write(replica: Replica, shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1})
    viewer = replica.member(shore.namespace, access_pb2.Access.VIEWER)
    assert (await viewer.get("b1")).data["a"] == 1
    for call in (viewer.create("b2", {}), viewer.delete("b1"), viewer.transact(viewer.deleting("b1"))):
        assert await reason(call) == "ROLE_INSUFFICIENT"


async def test_an_editor_does_not_declare_types(replica: Replica, shore: Shore) -> None:
    editor = replica.member(shore.namespace, access_pb2.Access.EDITOR)
    assert await reason(editor.declare()) == "ROLE_INSUFFICIENT"


async def test_without_a_token_nobody_gets_in(shore: Shore) -> None:
    request = pb.GetEntityRequest(name=shore.name("b1"))
    assert await reason(shore.replica.entities.GetEntity(request)) == "TOKEN_MISSING"
    forged = (("authorization", "Bearer e30.e30.e30"),)
    assert await reason(shore.replica.entities.GetEntity(request, metadata=forged)) == "TOKEN_INVALID"


async def test_one_namespace_does_not_see_another(replica: Replica, shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    await shore.create("b1", {"n": 1})
    mine, other = shore.namespace.id, replica.shore()
    await other.declare(indexes=[{"fields": ["data.n"]}])
    assert await other.list_ids(order_by="data.n") == []
    for table in ("types", "entities", "index_entries", "units", "versions", "requests"):
        count = Statement("SELECT count(*) FROM a_table WHERE namespace = %s".replace("a_table", table), (mine,))
        assert await replica.service.database.read(other.namespace.id, count) == [[(0,)]]
        assert await replica.service.database.read(mine, count) != [[(0,)]]


@pytest.mark.parametrize(
    "entity_id", ["-x", "a b", "a/b", "ä", "x" * 129, "a\n", ".hidden", "a:b"], ids=lambda text: repr(text[:10])
)
async def test_a_malformed_id_is_refused(shore: Shore, entity_id: str) -> None:
    await shore.declare()
    assert await reason(shore.create(entity_id, {})) == "INVALID_FIELD"
    assert await reason(shore.get(entity_id)) == "INVALID_FIELD"
    assert await shore.head() == 1


async def test_an_entity_over_256_kib_is_refused(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"t": "x" * 261_000})
    for data in ({"t": "x" * 263_000}, {"t": "x" * 262_000}):
        failure = await refusal(shore.create("b2", data))
        assert error_info(failure).reason == "ENTITY_TOO_LARGE"
        assert error_info(failure).metadata["limit"] == str(256 * 1024)
        assert pointers(failure) == ["entity.data"]
    failure = await refusal(shore.update("b1", {"u": "x" * 2000}))
    assert (error_info(failure).reason, pointers(failure)) == ("ENTITY_TOO_LARGE", ["entity.data"])
    assert await shore.head() == 2


async def test_the_largest_entity_that_fits_can_be_deleted_and_brought_back(shore: Shore) -> None:
    """Deleted it takes more: the time of that is in it."""
    await shore.declare()
    size = (await shore.create("a1", {"t": "x" * 261_000})).entity.ByteSize()
    made = (await shore.create("b1", {"t": "x" * (261_000 + 256 * 1024 - size)})).entity
    assert made.ByteSize() == 256 * 1024
    deleted = (await shore.delete("b1")).entity
    assert deleted.ByteSize() > 256 * 1024
    assert await shore.get("b1") == deleted
    back = (await shore.undelete("b1")).entity
    assert await shore.get("b1") == back
    assert deleted.data == back.data == made.data


@pytest.mark.parametrize("value", [2.0**53, -(2.0**53), 1e300, float("nan"), float("inf")])
async def test_a_number_that_cannot_be_kept_is_refused(shore: Shore, value: float) -> None:
    await shore.declare()
    failure = await refusal(shore.create("b1", {"deep": {"list": [1, value]}}))
    assert error_info(failure).reason == "INVALID_FIELD"
    assert pointers(failure) == ["/deep/list/1"]


@pytest.mark.parametrize(
    "mask", [["country"], ["data."], ["data..a"], ["*", "data.a"], ["data.a,data.b"], ["data.`a"], ["etag"]]
)
async def test_a_malformed_mask_is_refused(shore: Shore, mask: list[str]) -> None:
    await shore.declare()
    await shore.create("b1", {"a": 1})
    assert await reason(shore.update("b1", {"a": 2}, update_mask=mask)) == "INVALID_FIELD"


@pytest.mark.parametrize("request_id", ["x" * 65, "a b", "ä"])
async def test_a_malformed_request_id_is_refused(shore: Shore, request_id: str) -> None:
    await shore.declare()
    assert await reason(shore.create("b1", {}, request_id=request_id)) == "INVALID_FIELD"


async def test_data_is_required(shore: Shore) -> None:
    await shore.declare()
    request = pb.CreateEntityRequest(parent=f"{shore.parent}/types/buoy", entity_id="b1")
    request.entity.SetInParent()
    call = shore.replica.entities.CreateEntity(request, metadata=shore.metadata())
    assert await reason(call) == "INVALID_FIELD"


async def test_a_pattern_cannot_hold_up_the_service(shore: Shore) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    await shore.declare(schema=schema)
    assert await reason(shore.create("b1", {"a": "a" * 50_000 + "!"})) == "SCHEMA_VIOLATION"


async def test_a_refusal_shows_nothing_from_inside(shore: Shore) -> None:
    await shore.declare(schema={"type": "object", "properties": {"a": {"type": "integer"}}})
    failure = await refusal(shore.create("b1", {"a": "x" * 10_000}))
    assert failure.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(failure.details() or "") < 500


async def test_every_value_comes_back_as_it_went_in(shore: Shore) -> None:
    await shore.declare()
    data = {
        "": "empty key",
        "ключ": "ä\U0001f30a",
        "nested": {"list": [[], {}, [1, [2.5, None]], "", False]},
        "small": 5e-324,
        "large": 1.7976931348623157e308 / 3 + 0.0,
        "max": 2**53 - 1,
        "min": -(2**53 - 1),
        "zero": -0.0,
    }
    del data["large"]
    await shore.create("b1", data)
    await shore.update("b1", {"more": 1})  # written from what is stored
    assert json_format.MessageToDict((await shore.get("b1")).data) == {**data, "zero": 0, "more": 1}
