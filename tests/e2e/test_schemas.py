"""A schema through its life, from outside: asked about, checked against what is stored, changed, refused."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from strandline.entity.v1 import entity_pb2
from strandline_cli.home import Home
from strandline_cli.platform import Running

from .local_platform import Platform
from .rest import Rest

ENTITIES = 30_000
BUOY: dict[str, Any] = {"type": "object", "properties": {"country": {"type": "string"}, "depth": {"type": "number"}}}
SHORT: dict[str, Any] = {"type": "object", "properties": {"country": {"type": "string", "maxLength": 2}}}


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    client = Rest(platform.rest, platform.token())
    yield client
    await client.close()


@pytest.fixture
async def namespace(rest: Rest) -> str:
    name = f"schemas-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {"massChangeGuard": "OFF"}, params={"namespace_id": name})
    return name


def create(namespace: str, number: int) -> entity_pb2.Mutation:
    name = f"namespaces/{namespace}/types/buoy/entities/b{number:05}"
    content = json.dumps({"country": "Nowhere" if number % 1000 == 999 else "CH"}).encode()
    return entity_pb2.Mutation(create=entity_pb2.CreateMutation(name=name, data_json=content))


async def finished(rest: Rest, name: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            operation = await rest.ok("GET", f"/v1/{name}")
            if operation["done"]:
                return operation
            await asyncio.sleep(0.05)


async def test_a_question_its_refusal_and_the_change_are_the_same_answer(rest: Rest, namespace: str) -> None:
    types = f"/v1/namespaces/{namespace}/types"
    await rest.ok("POST", types, {"schema": BUOY}, params={"type_id": "buoy"})
    asked = await rest.ok("POST", f"{types}/buoy:checkCompatibility", {"schema": SHORT})
    assert asked["compatible"] is False
    assert asked["allowedBy"] == ["NONE", "FORWARD", "FORWARD_TRANSITIVE"]
    places = [(one["rule"], one["path"]) for one in asked["differences"]]
    refused = await rest("PATCH", f"{types}/buoy", {"schema": SHORT})
    assert refused.problem == (400, "INCOMPATIBLE_SCHEMA")
    said = [(one["message"].partition(":")[0], one["pointer"]) for one in refused.json["violations"]]
    assert said == places
    assert refused.json["metadata"]["allowed_by"] == "NONE, FORWARD, FORWARD_TRANSITIVE"
    wider = {**BUOY, "properties": {**BUOY["properties"], "colour": {"type": "string"}}}
    assert (await rest.ok("POST", f"{types}/buoy:checkCompatibility", {"schema": wider}))["compatible"] is True
    assert (await rest.ok("PATCH", f"{types}/buoy", {"schema": wider}))["schemaVersion"] == "2"
    versions = await rest.ok("GET", f"{types}/buoy/versions")
    assert [one["schema"] for one in versions["versions"]] == [BUOY, wider]


@pytest.mark.timeout(300)
async def test_a_validation_that_is_killed_goes_on_and_counts_every_entity_once(
    platform: Platform, rest: Rest, namespace: str
) -> None:
    types = f"/v1/namespaces/{namespace}/types"
    await rest.ok("POST", types, {"schema": BUOY, "compatibility": "NONE"}, params={"type_id": "buoy"})
    async with Running.in_home(Home(platform.home)).client() as client:
        for start in range(0, ENTITIES, 500):
            await client.batch_write(namespace, [create(namespace, n) for n in range(start, start + 500)])
    begun = await rest.ok("POST", f"{types}/buoy:validateEntities", {"schema": SHORT})
    await asyncio.to_thread(platform.kill, "entity")
    await asyncio.to_thread(platform.wait_until_ready)
    operation = await finished(rest, begun["name"])
    result = operation["validation"]
    assert (result["examined"], result["invalid"], len(result["sample"])) == (str(ENTITIES), "30", 10)
    assert result["sample"][0] == {
        "name": f"namespaces/{namespace}/types/buoy/entities/b00999",
        "pointer": "/country",
        "message": "the value is longer than 2 characters",
    }
    changed = await rest("PATCH", f"{types}/buoy", {"schema": SHORT})
    assert changed.status == 200
    again = await finished(rest, changed.headers["strandline-operation"])
    assert again["validation"]["invalid"] == "30"


def test_two_files_are_compared_with_no_server_and_nothing_started(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "strandline"), "schema", "check"]
    for name, schema in (("old", BUOY), ("new", SHORT)):
        (tmp_path / f"{name}.json").write_text(json.dumps(schema))
    done = subprocess.run(
        [*command, "old.json", "new.json", "--mode", "BACKWARD"],
        cwd=tmp_path,
        env={"STRANDLINE_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["compatible"], list(answer["differences"][0])) == (
        1,
        False,
        ["rule", "path", "message"],
    )
    assert not (tmp_path / "home").exists()
