"""Bad input through the edge: the contract's reason and status, nothing changed, nothing of the inside shown."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from .rest import Rest

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "depth": {"type": "number", "minimum": 0},
        "moored": {"type": "boolean"},
        "notes": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name"],
}


class Bay:
    """A namespace with one type, and a watchful eye on its revision."""

    def __init__(self, rest: Rest, anonymous: Rest, namespace: str) -> None:
        self.rest = rest
        self.anonymous = anonymous
        self.path = f"/v1/namespaces/{namespace}"
        self.entities = f"{self.path}/types/buoy/entities"
        self.namespace = namespace
        self.moved = 0  # how many revisions the running test means to take

    def name(self, identifier: str) -> str:
        return f"namespaces/{self.namespace}/types/buoy/entities/{identifier}"

    async def revision(self) -> int:
        return (await self.rest("GET", f"{self.path}/types/buoy")).position[1]


@pytest.fixture(scope="module")
async def bay(platform: Any) -> AsyncIterator[Bay]:
    rest, anonymous = Rest(platform.rest, platform.token()), Rest(platform.rest)
    namespace = f"bay-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {}, params={"namespace_id": namespace})
    made = Bay(rest, anonymous, namespace)
    body = {"schema": SCHEMA, "indexes": [{"fields": ["data.depth"]}, {"fields": ["data.name"], "unique": True}]}
    await rest.ok("POST", f"{made.path}/types", body, params={"type_id": "buoy"})
    await rest.ok("POST", made.entities, {"data": {"name": "first", "depth": 3}}, params={"entity_id": "one"})
    yield made
    await rest.close()
    await anonymous.close()


@pytest.fixture(autouse=True)
async def nothing_changes(bay: Bay) -> AsyncIterator[None]:
    """Every test here leaves the revision where it was, unless it says how far it moved it."""
    before = await bay.revision()
    bay.moved = 0
    yield
    assert await bay.revision() == before + bay.moved


async def test_each_violation_of_the_schema_is_named_with_its_pointer(bay: Bay) -> None:
    body = {"data": {"name": "", "depth": -1, "tags": ["a", 7], "colour": "red"}}
    answer = await bay.rest("POST", bay.entities, body)
    assert answer.problem == (400, "SCHEMA_VIOLATION")
    assert {"/name", "/depth", "/tags/1"} <= answer.pointers
    assert "colour" in json.dumps(answer.json["violations"])


async def test_an_unknown_field_of_the_body_is_named(bay: Bay) -> None:
    answer = await bay.rest("POST", bay.entities, {"data": {"name": "x"}, "datta": {}})
    assert answer.problem == (400, "UNKNOWN_FIELD")
    assert "datta" in answer.text


async def test_an_unknown_field_deep_in_a_batch_is_named(bay: Bay) -> None:
    body = {"mutations": [{"create": {"name": bay.name("x"), "data": {"name": "x"}, "allowMising": True}}]}
    answer = await bay.rest("POST", f"{bay.path}:transact", body)
    assert answer.problem == (400, "UNKNOWN_FIELD")
    assert "allowMising" in answer.text


async def test_an_unknown_query_parameter_is_named(bay: Bay) -> None:
    answer = await bay.rest("GET", bay.entities, params={"pagesize": "3"})
    assert answer.problem == (400, "UNKNOWN_FIELD")
    assert "pagesize" in answer.text


@pytest.mark.parametrize(
    "raw",
    [b"{", b"[]", b'{"data":{"name":NaN}}', b'{"data":{"name":"a","name":"b"}}', b'{"data":{"name":"a"}} x', b""],
    ids=["cut off", "no object", "NaN", "key twice", "garbage behind", "empty"],
)
async def test_broken_json_is_refused(bay: Bay, raw: bytes) -> None:
    answer = await bay.rest("POST", bay.entities, raw=raw)
    assert answer.problem == (400, "INVALID_FIELD")


async def test_deep_nesting_is_refused(bay: Bay) -> None:
    answer = await bay.rest("POST", bay.entities, raw=b'{"data":{"name":' + b"[" * 10_000 + b"]" * 10_000 + b"}}")
    assert answer.problem == (400, "INVALID_FIELD")


@pytest.mark.parametrize("identifier", ["-x", "a b", "a" * 129, "ü", "a/b", "..", "' OR 1=1--"])
async def test_a_malformed_id_is_refused(bay: Bay, identifier: str) -> None:
    answer = await bay.rest("POST", bay.entities, {"data": {"name": "x"}}, params={"entity_id": identifier})
    assert answer.problem == (400, "INVALID_FIELD")


async def test_a_negative_page_size_is_refused_and_a_huge_one_is_cut(bay: Bay) -> None:
    assert (await bay.rest("GET", bay.entities, params={"page_size": "-1"})).problem == (400, "INVALID_FIELD")
    assert (await bay.rest("GET", bay.entities, params={"page_size": "1000000000"})).status == 200


async def test_a_tampered_page_token_is_refused(bay: Bay) -> None:
    bay.moved = 2
    for number in range(2):
        await bay.rest.ok("POST", bay.entities, {"data": {"name": f"page {number}"}})
    token = (await bay.rest.ok("GET", bay.entities, params={"page_size": "1"}))["nextPageToken"]
    assert token
    middle = len(token) // 2
    tampered = token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]
    for bad in (tampered, token[:-4], "x", token + "AAAA"):
        answer = await bay.rest("GET", bay.entities, params={"page_size": "1", "page_token": bad})
        assert answer.problem == (400, "PAGE_TOKEN_INVALID")
    elsewhere = {"page_token": token, "filter": "data.depth > 1"}
    assert (await bay.rest("GET", bay.entities, params=elsewhere)).problem == (400, "PAGE_TOKEN_INVALID")


async def test_a_stale_etag_is_refused_and_by_if_match_it_is_412(bay: Bay) -> None:
    one = f"{bay.entities}/one"
    etag = (await bay.rest.ok("GET", one))["etag"]
    stale = '"1"'
    assert etag != stale
    body = {"data": {"depth": 4}}
    answer = await bay.rest("PATCH", one, body, params={"etag": stale})
    assert answer.problem == (409, "ETAG_MISMATCH")
    assert answer.json["metadata"]["etag"] == etag
    assert (await bay.rest("PATCH", one, body, headers={"if-match": stale})).problem == (412, "ETAG_MISMATCH")
    assert (await bay.rest("DELETE", one, params={"etag": stale})).problem == (409, "ETAG_MISMATCH")


async def test_over_500_mutations_are_refused(bay: Bay) -> None:
    create = [{"create": {"name": bay.name(f"n{n}"), "data": {"name": f"n{n}"}}} for n in range(501)]
    assert (await bay.rest("POST", f"{bay.path}:transact", {"mutations": create})).problem == (400, "INVALID_FIELD")
    assert (await bay.rest("POST", f"{bay.path}:batchWrite", {"writes": create})).problem == (400, "INVALID_FIELD")


async def test_one_entity_twice_in_a_unit_is_refused(bay: Bay) -> None:
    twice = [{"create": {"name": bay.name("n"), "data": {"name": f"n{n}"}}} for n in range(2)]
    assert (await bay.rest("POST", f"{bay.path}:transact", {"mutations": twice})).problem == (400, "INVALID_FIELD")


async def test_an_entity_over_256_kib_is_refused(bay: Bay) -> None:
    answer = await bay.rest("POST", bay.entities, {"data": {"name": "x", "notes": "n" * 270_000}})
    assert answer.problem == (400, "ENTITY_TOO_LARGE")
    assert answer.pointers == {"/data"}
    assert answer.json["metadata"]["limit"] == "262144"


async def test_a_unit_over_3_mib_is_refused(bay: Bay) -> None:
    create = [
        {"create": {"name": bay.name(f"n{n}"), "data": {"name": f"n{n}", "notes": "n" * 225_000}}} for n in range(15)
    ]
    answer = await bay.rest("POST", f"{bay.path}:transact", {"mutations": create})
    assert answer.problem == (400, "UNIT_TOO_LARGE")
    assert answer.pointers == {"/mutations"}


async def test_a_body_of_6_mb_is_413(bay: Bay) -> None:
    answer = await bay.rest("POST", bay.entities, {"data": {"name": "x", "notes": "n" * 6_000_000}})
    assert answer.problem == (413, "BODY_TOO_LARGE")


async def test_a_sign_in_body_over_64_kib_is_413(bay: Bay) -> None:
    answer = await bay.anonymous("POST", "/v1/auth:login", raw=b'{"email":"' + b"a" * 65_537 + b'"}')
    assert answer.problem == (413, "BODY_TOO_LARGE")


@pytest.mark.parametrize("number", ["9007199254740992", "-9007199254740993", "1e300"])
async def test_an_integer_beyond_2_to_the_53_is_refused_in_both_forms(bay: Bay, number: str) -> None:
    raw = f'{{"data":{{"name":"x","depth":{number}}}}}'.encode()
    assert (await bay.rest("POST", bay.entities, raw=raw)).problem == (400, "INVALID_FIELD")
    data_json = base64.b64encode(f'{{"name":"x","depth":{number}}}'.encode()).decode()
    body = {"mutations": [{"create": {"name": bay.name("x"), "dataJson": data_json}}]}
    assert (await bay.rest("POST", f"{bay.path}:transact", body)).problem == (400, "INVALID_FIELD")


async def test_data_json_with_a_key_twice_is_refused(bay: Bay) -> None:
    data_json = base64.b64encode(b'{"name":"x","name":"y"}').decode()
    body = {"mutations": [{"create": {"name": bay.name("x"), "dataJson": data_json}}]}
    assert (await bay.rest("POST", f"{bay.path}:transact", body)).problem == (400, "INVALID_FIELD")


async def test_no_token_and_a_bad_token_are_401(bay: Bay) -> None:
    assert (await bay.anonymous("GET", bay.entities)).problem == (401, "TOKEN_MISSING")
    assert (await bay.anonymous("POST", bay.entities, {"data": {"name": "x"}})).problem == (401, "TOKEN_MISSING")
    for value in ("Bearer x", "Bearer a.b.c", "Basic YTpi"):
        answer = await bay.anonymous("GET", bay.entities, headers={"authorization": value})
        assert answer.problem[0] == 401
    watch = await bay.anonymous("GET", f"{bay.path}:watch", params={"now": "true"})
    assert watch.problem == (401, "TOKEN_MISSING")


async def test_a_namespace_that_does_not_exist_looks_like_a_foreign_one(bay: Bay) -> None:
    for method, path in (("GET", ""), ("GET", "/types"), ("GET", "/types/buoy/entities"), ("GET", ":watch?now=true")):
        assert (await bay.rest(method, f"/v1/namespaces/nobodys-bay{path}")).problem == (404, "NOT_FOUND")
    body = {"data": {"name": "x"}}
    answer = await bay.rest("POST", "/v1/namespaces/nobodys-bay/types/buoy/entities", body)
    assert answer.problem == (404, "NOT_FOUND")


async def test_what_needs_an_index_says_which(bay: Bay) -> None:
    answer = await bay.rest("GET", bay.entities, params={"filter": 'data.notes = "x"'})
    assert answer.problem == (400, "INDEX_REQUIRED")
    assert "data.notes" in answer.json["metadata"]["index"]


@pytest.mark.parametrize(
    "wrong", ["data.depth =", "data.depth = 'deep'", "depth = 3", "data.name < 'a*'", "(" * 100, "data.depth = 1 OR"]
)
async def test_a_filter_that_cannot_mean_anything_is_refused(bay: Bay, wrong: str) -> None:
    answer = await bay.rest("GET", bay.entities, params={"filter": wrong})
    assert answer.problem == (400, "INVALID_FIELD")


async def test_a_revision_of_the_future_or_of_another_life_is_refused(bay: Bay) -> None:
    epoch, revision = (await bay.rest("GET", f"{bay.entities}/one")).position
    future = await bay.rest("GET", f"{bay.entities}/one", params={"min_revision": str(revision + 1000)})
    assert future.problem == (400, "FUTURE_REVISION")
    other = {"strandline-min-revision": f"{'0' * 8 if epoch != '0' * 8 else '1' * 8}.1"}
    assert (await bay.rest("GET", f"{bay.entities}/one", headers=other)).problem == (400, "EPOCH_CHANGED")
    watch = f"{bay.path}:watch"
    assert (await bay.rest("GET", watch)).problem == (400, "START_REQUIRED")
    ahead = await bay.rest("GET", watch, params={"after_revision": str(revision + 1000)})
    assert ahead.problem == (400, "FUTURE_REVISION")
    assert int(ahead.json["metadata"]["head_revision"]) >= revision


async def test_internal_headers_of_a_caller_are_worth_nothing(bay: Bay) -> None:
    forged = {"x-user-id": "admin", "x-forwarded-client-cert": "URI=spiffe://strandline.local/ns/default/sa/user"}
    answer = await bay.anonymous("GET", bay.entities, headers=forged)
    assert answer.problem == (401, "TOKEN_MISSING")


async def test_of_two_connections_with_one_stale_etag_one_wins(bay: Bay) -> None:
    bay.moved = 1
    one = f"{bay.entities}/one"
    etag = (await bay.rest.ok("GET", one))["etag"]
    answers = await asyncio.gather(
        *(bay.rest("PATCH", one, {"data": {"depth": 10 + n}}, params={"etag": etag}) for n in range(2))
    )
    assert sorted(answer.status for answer in answers) == [200, 409]


async def test_of_50_concurrent_creates_of_one_id_one_wins(bay: Bay) -> None:
    bay.moved = 1
    identifier = uuid.uuid4().hex
    answers = await asyncio.gather(
        *(
            bay.rest("POST", bay.entities, {"data": {"name": f"{identifier} {n}"}}, params={"entity_id": identifier})
            for n in range(50)
        )
    )
    assert sorted(answer.status for answer in answers) == [200] + [409] * 49
    assert {answer.problem for answer in answers if answer.status == 409} == {(409, "ALREADY_EXISTS")}


async def test_a_unique_value_can_be_had_once(bay: Bay) -> None:
    answer = await bay.rest("POST", bay.entities, {"data": {"name": "first"}})
    assert answer.problem == (409, "UNIQUE_VIOLATION")
    assert "data.name" in answer.json["metadata"]["fields"]


async def test_a_request_sent_twice_is_one_revision_with_the_same_answer(bay: Bay) -> None:
    bay.moved = 1
    request_id = uuid.uuid4().hex
    body = {"data": {"name": request_id}}
    first = await bay.rest("POST", bay.entities, body, params={"request_id": request_id})
    again = await bay.rest("POST", bay.entities, body, params={"request_id": request_id})
    by_header = await bay.rest("POST", bay.entities, body, headers={"idempotency-key": request_id})
    assert first.status == again.status == by_header.status == 200
    assert first.json == again.json == by_header.json
    assert first.position == again.position
    other = await bay.rest("POST", bay.entities, {"data": {"name": "other"}}, params={"request_id": request_id})
    assert other.problem == (400, "REQUEST_ID_REUSED")
    assert [violation["field"] for violation in other.json["violations"]] == ["request_id"]


async def test_validate_only_answers_and_changes_nothing(bay: Bay) -> None:
    answer = await bay.rest("POST", bay.entities, {"data": {"name": "dry"}}, params={"validate_only": "true"})
    assert answer.status == 200
    assert json.loads(answer.text)["data"] == {"name": "dry"}
