"""The ends of things through the edge: expiry, purge, retention, the deletion of a namespace; with kills between."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest
from strandline.entity.v1 import entity_pb2
from strandline_cli.home import Home
from strandline_cli.platform import Running

from .local_platform import Platform
from .rest import Rest

EXPIRING = 1500
STORED = 10_000
ANY = {"type": "object", "additionalProperties": True}


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    """The administrator's."""
    client = Rest(platform.rest, platform.token())
    yield client
    await client.close()


@pytest.fixture
async def namespace(rest: Rest) -> str:
    """Id of a new namespace with the type `buoy`."""
    made = f"ends-{uuid.uuid4().hex[:8]}"
    await begin(rest, made)
    return made


async def begin(rest: Rest, namespace: str) -> str:
    """The epoch of a new namespace with the type `buoy`."""
    answer = await rest.ok("POST", "/v1/namespaces", {"massChangeGuard": "OFF"}, params={"namespace_id": namespace})
    indexes = [{"fields": ["data.n"]}]
    types = f"/v1/namespaces/{namespace}/types"
    await rest.ok("POST", types, {"schema": ANY, "indexes": indexes}, params={"type_id": "buoy"})
    epoch: str = answer["epoch"]
    return epoch


async def create(platform: Platform, namespace: str, count: int, expire_time: datetime | None = None) -> None:
    """Create b0, b1, ..."""
    parent = f"namespaces/{namespace}/types/buoy/entities"
    async with Running.in_home(Home(platform.home)).client() as client:
        for start in range(0, count, 500):
            writes = []
            for n in range(start, min(start + 500, count)):
                made = entity_pb2.CreateMutation(name=f"{parent}/b{n}", data_json=b'{"n": %d}' % n)
                if expire_time is not None:
                    made.expire_time.FromDatetime(expire_time)
                writes.append(entity_pb2.Mutation(create=made))
            await client.batch_write(namespace, writes)


async def read_feed(rest: Rest, namespace: str, to: int) -> tuple[str, list[Any]]:
    """The feed from the beginning up to the revision *to*: as it came, and its units."""
    text, units, revision, rest_of_line = "", [], 0, b""
    url = f"/v1/namespaces/{namespace}:watch"
    async with rest.stream(url, params={"after_revision": "0"}) as response:
        assert response.status == 200
        while revision < to:
            *lines, rest_of_line = (rest_of_line + await response.content.readany()).split(b"\n")
            for line in lines:
                text += line.decode()
                message = json.loads(line)
                assert int(message["afterRevision"]) == revision
                revision = int(message["revision"])
                units += message.get("units", {}).get("units", [])
    return text, units


async def test_what_is_due_expires_once_each_although_the_service_is_killed(
    platform: Platform, rest: Rest, namespace: str
) -> None:
    entities = f"/v1/namespaces/{namespace}/types/buoy/entities"
    due = datetime.now(UTC) + timedelta(seconds=5)
    await create(platform, namespace, EXPIRING, due)
    await rest.ok("POST", entities, {"data": {"n": 1}, "expireTime": "2999-01-01T00:00:00Z"}, params={"entity_id": "s"})
    late = await rest("POST", entities, {"data": {}, "expireTime": "2001-01-01T00:00:00Z"}, params={"entity_id": "x"})
    assert late.problem == (400, "INVALID_FIELD")
    assert late.json["violations"][0]["field"] == "entity.expire_time"
    cleared = await rest.ok("PATCH", f"{entities}/s", {}, params={"update_mask": "expire_time"})
    assert "expireTime" not in cleared
    await asyncio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
    await asyncio.to_thread(platform.kill, "entity")
    await asyncio.to_thread(platform.wait_until_ready)
    async with asyncio.timeout(60):
        while len((listed := await rest.ok("GET", entities, params={"page_size": "1000"}))["entities"]) > 1:
            pass
    assert listed["entities"][0]["name"].endswith("/s")
    _, units = await read_feed(rest, namespace, int(listed["revision"]))
    expired = [change["entity"] for unit in units for change in unit["changes"] if change["kind"] == "EXPIRED"]
    assert Counter(entity["name"] for entity in expired).keys() == {f"{entities[4:]}/b{n}" for n in range(EXPIRING)}
    assert len(expired) == EXPIRING
    assert {entity["updatedBy"] for entity in expired} == {"service:entity"}
    back = await rest.ok("POST", f"{entities}/b7:undelete", {})
    assert "expireTime" not in back


async def test_a_purged_entity_leaves_its_name_and_nothing_else(rest: Rest, namespace: str) -> None:
    secret = uuid.uuid4().hex
    entities = f"/v1/namespaces/{namespace}/types/buoy/entities"
    await rest.ok("POST", entities, {"data": {"s": secret}}, params={"entity_id": "b1"})
    await rest.ok("POST", entities, {"data": {"s": "public"}}, params={"entity_id": "b2"})
    await read_feed(rest, namespace, 3)
    # From here on the stream service follows the namespace, and keeps what is committed in memory.
    first = await rest.ok("PATCH", f"{entities}/b1", {"data": {"t": secret}})
    before, _ = await read_feed(rest, namespace, 4)
    assert before.count(secret) > 2
    purged = await rest("POST", f"{entities}/b1:purge", {"requestId": "r"})
    assert (purged.status, purged.json["name"]) == (200, first["name"])
    assert (await rest("POST", f"{entities}/b1:purge", {"requestId": "r"})).json == purged.json
    revision = int(purged.json["revision"])
    text, units = await read_feed(rest, namespace, revision)
    assert secret not in text
    assert "public" in text
    (tombstone,) = units[-1]["changes"]
    assert (tombstone["kind"], tombstone["entity"]["uid"]) == ("PURGED", first["uid"])
    assert (await rest("GET", f"{entities}/b1")).problem == (404, "NOT_FOUND")
    past = await rest("GET", f"{entities}/b1", params={"as_of_revision": first["revision"]})
    assert past.problem == (404, "NOT_FOUND")
    revisions = await rest("GET", f"{entities}/b1:listRevisions")
    assert secret not in revisions.text
    assert [one["kind"] for one in revisions.json["revisions"]] == ["PURGED", "DELETED", "UPDATED", "CREATED"]
    exported = await rest("GET", f"/v1/namespaces/{namespace}:export", params={"revision": first["revision"]})
    assert secret not in exported.text
    again = await rest.ok("POST", entities, {"data": {}}, params={"entity_id": "b1"})
    assert again["uid"] != first["uid"]


async def test_retention_is_read_and_chosen(rest: Rest, namespace: str) -> None:
    path = f"/v1/namespaces/{namespace}/retention"
    default = await rest.ok("GET", path)
    assert (default["maxAge"], default["maxLeaseAge"], default["maxRevisions"]) == ("2592000s", "5184000s", "0")
    assert (default["horizonRevision"], default["headRevision"], default["leases"]) == ("0", "1", [])
    short = await rest("PATCH", path, {"maxAge": "3600s"})
    assert short.problem == (400, "INVALID_FIELD")
    assert short.json["violations"][0]["field"] == "retention.max_age"
    chosen = await rest.ok("PATCH", path, {"maxAge": "86400s", "maxRevisions": "1000"})
    assert (chosen["maxAge"], chosen["maxRevisions"]) == ("86400s", "1000")
    assert await rest.ok("GET", path) == chosen


async def test_a_namespace_is_deleted_although_everything_that_does_it_is_killed_and_lives_again_as_new(
    platform: Platform, rest: Rest, namespace: str
) -> None:
    path = f"/v1/namespaces/{namespace}"
    old = (await rest.ok("GET", path))["epoch"]
    await create(platform, namespace, STORED, datetime.now(UTC) + timedelta(hours=1))
    await rest.ok("PATCH", f"{path}/retention", {"maxRevisions": "5"})
    entity = psutil.Process(await asyncio.to_thread(platform.pid, "entity"))
    entity.suspend()
    try:
        await rest.ok("DELETE", path)
    finally:
        entity.kill()  # it was asked to remove everything, and has removed nothing
    await asyncio.to_thread(platform.kill, "user")
    await asyncio.to_thread(platform.wait_until_ready)
    killed = False
    deadline = time.monotonic() + 100
    while (taken := await rest("POST", "/v1/namespaces", {}, params={"namespace_id": namespace})).status != 200:
        assert taken.status in (409, 503), taken
        assert time.monotonic() < deadline, taken
        assert (await rest("GET", path)).status in (404, 503)
        if not killed:  # again, if there is something left to do
            await asyncio.to_thread(platform.kill, "entity")
            await asyncio.to_thread(platform.kill, "user")
            await asyncio.to_thread(platform.wait_until_ready)
        killed = True
        await asyncio.sleep(0.1)
    assert taken.json["epoch"] != old
    types = await rest.ok("GET", f"{path}/types")
    assert types["types"] == []
    retention = await rest.ok("GET", f"{path}/retention")
    assert (retention["maxRevisions"], retention["headRevision"], retention["horizonRevision"]) == ("0", "0", "0")
    changed = await rest("GET", f"{path}:watch", params={"after_revision": "1", "epoch": old})
    assert changed.problem == (400, "EPOCH_CHANGED")
    made = await rest("POST", f"{path}/types", {"schema": ANY}, params={"type_id": "buoy"})
    assert made.position == (taken.json["epoch"], 1)
    assert (await rest.ok("GET", f"{path}/types/buoy/entities", params={"show_deleted": "true"}))["entities"] == []
