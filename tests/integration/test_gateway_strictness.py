"""Bodies and queries that the edge refuses before a service sees them."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from strandline.entity.v1 import entity_service_pb2
from strandline.stream.v1 import subscription_service_pb2

from tests.gateway_stack import Stack, stack

__all__ = ["stack"]

ENTITIES = "/v1/namespaces/demo/types/port/entities"
BATCH = "/v1/namespaces/demo:batchWrite"


@pytest.fixture(autouse=True)
def answers(stack: Stack) -> None:
    async def create(request: Any, _context: Any) -> Any:
        return entity_service_pb2.CreateEntityResponse(entity=request.entity)

    async def update(request: Any, _context: Any) -> Any:
        return entity_service_pb2.UpdateEntityResponse(entity=request.entity)

    async def write(request: Any, _context: Any) -> Any:
        return entity_service_pb2.BatchWriteResponse(revision=len(request.writes))

    stack.answers["EntityService.CreateEntity"] = create
    stack.answers["EntityService.UpdateEntity"] = update
    stack.answers["EntityService.BatchWrite"] = write
    stack.seen.clear()


@pytest.mark.parametrize(
    ("body", "reason", "pointer"),
    [
        pytest.param('{"nope": 1}', "UNKNOWN_FIELD", "/nope", id="unknown field"),
        pytest.param('{"data": {}, "data": {}}', "INVALID_FIELD", "/data", id="field twice"),
        pytest.param('{"createTime": null, "create_time": null}', "INVALID_FIELD", "/create_time", id="two spellings"),
        pytest.param('{"data": {"a": 1, "b": {"a": 1, "a": 2}}}', "INVALID_FIELD", "/data/b/a", id="key twice"),
        pytest.param('{"data": {"a": 1, "\\u0061": 2}}', "INVALID_FIELD", "/data/a", id="key twice, one escaped"),
        pytest.param('{"data": {"😀": 1, "\\ud83d\\ude00": 2}}', "INVALID_FIELD", "/data/😀", id="surrogates"),
        pytest.param('{"data": {}} {}', "INVALID_FIELD", "", id="trailing garbage"),
        pytest.param('{"data": {"a": NaN}}', "INVALID_FIELD", "/data/a", id="NaN"),
        pytest.param('{"data": {"a": -Infinity}}', "INVALID_FIELD", "/data/a", id="infinity"),
        pytest.param('{"data": {"a": 01}}', "INVALID_FIELD", "/data/a", id="leading zero"),
        pytest.param('{"data": {"a": 1.}}', "INVALID_FIELD", "/data/a", id="no digit after the point"),
        pytest.param('{"data": {"a": [1, tru]}}', "INVALID_FIELD", "/data/a/1", id="broken word"),
        pytest.param('{"data": {"a": "\\x"}}', "INVALID_FIELD", "/data/a", id="broken escape"),
        pytest.param('{"data": {"a": "x\ny"}}', "INVALID_FIELD", "/data/a", id="line break in a string"),
        pytest.param('{"data": {"a": 1,}}', "INVALID_FIELD", "/data", id="comma at the end"),
        pytest.param("{'data': {}}", "INVALID_FIELD", "", id="single quotes"),
        pytest.param('{"data": {"a": 1}', "INVALID_FIELD", "/data", id="cut off"),
        pytest.param('{"data": "text"}', "INVALID_FIELD", "/data", id="wrong kind"),
        pytest.param('{"revision": {}}', "INVALID_FIELD", "/revision", id="object for a number"),
        pytest.param("[]", "INVALID_FIELD", "", id="not an object"),
        pytest.param('{"a/b~\\"": 1}', "UNKNOWN_FIELD", '/a~1b~0"', id="pointer is escaped"),
        pytest.param('{"data": ' + '{"a": ' * 33 + "1" + "}" * 34, "INVALID_FIELD", None, id="33 levels of data"),
        pytest.param("[" * 10_000, "INVALID_FIELD", "", id="10,000 arrays"),
        pytest.param('{"data": {"a": ' + "[" * 10_000, "INVALID_FIELD", None, id="10,000 arrays in data"),
    ],
)
async def test_a_bad_body_is_refused_and_the_place_named(
    stack: Stack, body: str, reason: str, pointer: str | None
) -> None:
    reply = await stack.call("POST", ENTITIES, body)
    assert (reply.status, reply.reason) == (400, reason)
    [violation] = reply.json["violations"]
    assert set(violation) == {"field", "pointer", "message"}
    assert violation["message"] in reply.json["detail"]
    assert pointer is None or violation["pointer"].replace("\\u0061", "a") == pointer
    assert "EntityService.CreateEntity" not in stack.seen


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"data": {"a": 1e400}}', id="beyond double"),
        pytest.param('{"revision": "abc"}', id="not a number"),
        pytest.param('{"create_time": "yesterday"}', id="not a time"),
        pytest.param('{"data": {"a": "\\ud800"}}', id="half a character"),
        pytest.param(b'{"data": {"a": "\xff"}}', id="not UTF-8"),
        pytest.param(b'{"data": {"\xff\xfe": 1, "\xff\xfe": 1}}', id="key twice, not UTF-8"),
    ],
)
async def test_a_bad_value_is_an_invalid_field(stack: Stack, body: Any) -> None:
    reply = await stack.call("POST", ENTITIES, body)
    assert (reply.status, reply.reason) == (400, "INVALID_FIELD")
    assert "EntityService.CreateEntity" not in stack.seen


TIMES = {
    "2024-02-29T23:59:59.123456789Z": True,
    "2000-02-29T00:00:00+23:59": True,
    "0001-01-01T00:00:00Z": True,
    "9999-12-31T23:59:59.9-00:00": True,
    "0001-01-01T23:59:00+23:59": True,
    "0001-01-02T00:00:00+23:59": True,
    "0001-01-01T00:00:00-23:59": True,
    "9999-12-31T00:00:59-23:59": True,
    "9999-12-31T23:59:59+23:59": True,
    "0001-01-01T23:58:59+23:59": False,
    "0001-01-01T00:00:00+00:01": False,
    "9999-12-31T00:01:00-23:59": False,
    "9999-12-31T23:59:00-00:01": False,
    "1900-02-29T00:00:00Z": False,
    "2026-13-01T00:00:00Z": False,
    "2026-04-31T00:00:00Z": False,
    "2026-01-00T00:00:00Z": False,
    "2026-01-01T24:00:00Z": False,
    "2026-01-01T00:00:60Z": False,
    "2026-01-01T00:00:00.1234567890Z": False,
    "2026-01-01T00:00:00.1.2Z": False,
    "2026-01-01T00:00:00.Z": False,
    "2026-01-01T00:00:00": False,
    "2026-01-01T00:00:00+24:00": False,
    "2026-01-01T00:00:00z": False,
    "0000-01-01T00:00:00Z": False,
    "": False,
}
DURATIONS = {
    "0s": True,
    "-2.5s": True,
    "0.123456789s": True,
    "315576000000s": True,
    "315576000001s": False,
    "1h": False,
    "60": False,
    "1.2.3s": False,
    "1.s": False,
    ".5s": False,
    "1e3s": False,
    "0.1234567890s": False,
    "99999999999999999999s": False,
    "": False,
}


@pytest.mark.parametrize(("text", "is_time"), TIMES.items(), ids=TIMES)
async def test_a_time_is_one_or_its_field_is_named(stack: Stack, text: str, is_time: bool) -> None:
    reply = await stack.call("POST", ENTITIES, {"expireTime": text})
    assert reply.status == (200 if is_time else 400), reply
    if not is_time:
        assert reply.reason == "INVALID_FIELD"
        assert [each["pointer"] for each in reply.json["violations"]] == ["/expireTime"]


@pytest.mark.parametrize(("text", "is_duration"), DURATIONS.items(), ids=DURATIONS)
async def test_a_duration_is_one_or_its_field_is_named(stack: Stack, text: str, is_duration: bool) -> None:
    stack.answers["SubscriptionService.CreateSubscription"] = create_subscription
    reply = await stack.call("POST", "/v1/namespaces/demo/subscriptions", {"retryPolicy": {"minBackoff": text}})
    assert reply.status == (200 if is_duration else 400), reply
    if not is_duration:
        assert reply.reason == "INVALID_FIELD"
        assert [each["pointer"] for each in reply.json["violations"]] == ["/retryPolicy/minBackoff"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"data": ' + '{"a": ' * 31 + "{}" + "}" * 32, id="32 levels of data"),
        pytest.param('{"data": {"a": "\\"\\\\\\n\\u00e9", "\\"": [], "": {}}}', id="escapes"),
        pytest.param(' \n{ "data" :\t{ "a" : [ 1 , -0.5e+3 , true , null ] } }\r\n', id="white space"),
        pytest.param('{"name": "n", "createTime": "2026-11-22T00:00:00Z", "revision": 7, "data": {}}', id="a copy"),
    ],
)
async def test_good_json_passes(stack: Stack, body: str) -> None:
    reply = await stack.call("POST", ENTITIES, body)
    assert reply.status == 200
    assert reply.json["data"] == json.loads(body)["data"]


async def test_an_unknown_field_deep_in_a_batch_is_pointed_at(stack: Stack) -> None:
    writes = [{"create": {"name": "a", "dataJson": "e30="}}, {"update": {"name": "b", "data": {"any": 1}, "foo": 1}}]
    reply = await stack.call("POST", BATCH, {"writes": writes})
    assert (reply.status, reply.reason) == (400, "UNKNOWN_FIELD")
    assert reply.json["violations"][0]["pointer"] == "/writes/1/update/foo"


async def test_a_field_that_the_path_binds_is_unknown_in_the_body(stack: Stack) -> None:
    reply = await stack.call("POST", BATCH, {"parent": "namespaces/other", "writes": []})
    assert (reply.status, reply.reason) == (400, "UNKNOWN_FIELD")


async def test_a_name_in_the_body_must_be_the_one_of_the_path(stack: Stack) -> None:
    name = "namespaces/demo/types/port/entities/kiel"
    assert (await stack.call("PATCH", f"/v1/{name}", {"name": name, "data": {}})).status == 200
    reply = await stack.call("PATCH", f"/v1/{name}", {"name": f"{name}2", "data": {}})
    assert (reply.status, reply.reason) == (400, "INVALID_FIELD")


@pytest.mark.parametrize(
    ("query", "reason", "field"),
    [
        ("nope=1", "UNKNOWN_FIELD", "nope"),
        ("entity_id=a&n%6Fpe=1", "UNKNOWN_FIELD", "nope"),
        ("parent=namespaces/other", "UNKNOWN_FIELD", "parent"),
        ("entity.etag=x", "UNKNOWN_FIELD", "entity.etag"),
        ("entity_id=a&entityId=b", "INVALID_FIELD", "entityId"),
        ("validate_only=maybe", "INVALID_FIELD", "validate_only"),
    ],
)
async def test_a_bad_query_parameter_is_named(stack: Stack, query: str, reason: str, field: str) -> None:
    reply = await stack.call("POST", f"{ENTITIES}?{query}", {"data": {}})
    assert (reply.status, reply.reason) == (400, reason)
    [violation] = reply.json["violations"]
    assert violation["pointer"] is None
    assert violation["field"] == field


async def test_parameters_that_exclude_each_other_are_named(stack: Stack) -> None:
    reply = await stack.call("GET", "/v1/namespaces/demo:lookupRevision?revision=2&time=2100-01-01T00:00:00Z")
    assert (reply.status, reply.reason) == (400, "INVALID_FIELD")
    assert reply.json["violations"] == [{"field": "time", "pointer": None, "message": "excludes revision"}]


async def test_a_parameter_that_is_no_text_is_still_refused_in_good_json(stack: Stack) -> None:
    reply = await stack.call("GET", f"{ENTITIES}?%22%5C%0a%ff=1")
    assert (reply.status, reply.reason) == (400, "UNKNOWN_FIELD")
    assert reply.json["violations"][0]["field"] == "????"


async def test_a_body_must_be_json_by_its_type(stack: Stack) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp"):
        reply = await stack.call("POST", ENTITIES, '{"data": {}}', content_type=content_type)
        assert (reply.status, reply.reason) == (415, "UNSUPPORTED_MEDIA_TYPE")
    reply = await stack.call("POST", ENTITIES, '{"data": {}}', content_type="application/json; charset=utf-8")
    assert reply.status == 200


async def test_a_method_without_a_body_refuses_one(stack: Stack) -> None:
    for method in ("GET", "DELETE"):
        reply = await stack.call(method, f"{ENTITIES}/kiel", "{}")
        assert (reply.status, reply.reason) == (400, "INVALID_FIELD")


async def test_three_megabytes_of_base64_are_checked_in_passing(stack: Stack) -> None:
    data = base64.b64encode(b"x" * 4600).decode()
    body = json.dumps({"writes": [{"create": {"name": f"n{n}", "dataJson": data}} for n in range(500)]})
    async with asyncio.timeout(30):  # about 0.05; a cost that grows with the square takes minutes
        assert (await stack.call("POST", BATCH, body)).json["revision"] == "500"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param('"' + "\\n" * 1_500_000 + '"', id="escapes"),
        pytest.param('"' + '\\"' * 1_500_000 + '"', id="escaped quotes"),
        pytest.param("[" + ",".join(["[]"] * 300_000) + "]", id="small arrays"),
        pytest.param("{" + ",".join(f'"{n}\\u0061":1' for n in range(100_000)) + "}", id="escaped keys"),
    ],
)
async def test_no_body_within_the_limit_keeps_the_edge_busy_for_long(stack: Stack, value: str) -> None:
    async with asyncio.timeout(30):  # a cost that grows with the square takes minutes
        reply = await stack.call("POST", BATCH, f'{{"writes":[{{"create":{{"name":"n","data":{{"a":{value}}}}}}}]}}')
    assert reply.status == 200


@pytest.mark.parametrize("field", ["ackDeadline", "createTime", "maxInFlight", "state", "uid"])
@pytest.mark.parametrize("text", ["1" * 3_000_000, "-" + "1." * 1_500_000, "2026-01-01T00:00:00" + "." * 3_000_000])
async def test_no_scalar_keeps_the_edge_busy_however_long_it_is(stack: Stack, field: str, text: str) -> None:
    stack.answers["SubscriptionService.CreateSubscription"] = create_subscription
    # A cost that grows with the square takes hours.
    async with asyncio.timeout(30):
        reply = await stack.call("POST", "/v1/namespaces/demo/subscriptions", {field: text})
    assert reply.status in (200, 400)


@pytest.mark.parametrize("data", ["e" * 2_900_000, "-" * 2_900_000, "e " * 1_450_000], ids=["one", "other", "spaces"])
async def test_no_base64_keeps_the_edge_busy_to_say_that_it_is_none(stack: Stack, data: str) -> None:
    # A cost that grows with the square takes hours.
    async with asyncio.timeout(30):
        reply = await stack.call("POST", BATCH, {"writes": [{"create": {"dataJson": f"{data}!"}}]})
    assert [each["message"] for each in reply.json["violations"]] == ["must be base64"]


async def create_subscription(request: Any, _context: Any) -> Any:
    """Answer with what was asked for."""
    return subscription_service_pb2.CreateSubscriptionResponse(subscription=request.subscription)
