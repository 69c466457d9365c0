"""``kill -9`` in the middle of an import, of the service and of the command: nothing lost, nothing counted twice."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from strandline.entity.v1 import import_service_pb2 as pb
from strandline.stream.v1 import feed_pb2
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_client import ApiError, Client, Start

from .local_platform import STRANDLINE, Platform
from .rest import Rest

ROWS = 16_000
KILL_AT = (2000, 7000)
"""Lines taken when something is killed."""


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    client = Rest(platform.rest, platform.token())
    yield client
    await client.close()


@dataclass
class Expected:
    """What a file should come to."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: int = 0

    @property
    def said(self) -> str:
        return (
            f"{ROWS:,} rows read = {self.inserted:,} inserted + {self.updated:,} updated + "
            f"{self.unchanged:,} unchanged + {self.rejected:,} rejected"
        )


def write_file(path: Path) -> tuple[Expected, dict[str, Any]]:
    """Rows that come again, some of them bad; what they come to, and the state that they leave."""
    rng = random.Random(7)
    expected, state = Expected(), dict[str, Any]()
    lines = []
    for number in range(ROWS):
        if rng.random() < 0.02:
            lines.append(rng.choice(['{"type": "ship"', '{"type": "ship", "id": "s1", "data": {"n": "x"}}']))
            expected.rejected += 1
            continue
        ship, data = f"s{rng.randrange(ROWS // 2)}", {"n": rng.randrange(3), "at": number if rng.random() < 0.5 else 0}
        if ship not in state:
            expected.inserted += 1
        elif state[ship] == data:
            expected.unchanged += 1
        else:
            expected.updated += 1
        state[ship] = data
        lines.append(json.dumps({"type": "ship", "id": ship, "data": data}))
    path.write_text("\n".join(lines))
    return expected, state


async def new_namespace(rest: Rest) -> str:
    namespace = f"kills-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {"massChangeGuard": "OFF"}, params={"namespace_id": namespace})
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "at": {"type": "integer"}}}
    body = {"schema": schema, "indexes": [{"fields": ["data.n"]}]}
    await rest.ok("POST", f"/v1/namespaces/{namespace}/types", body, params={"type_id": "ship"})
    return namespace


async def until(client: Client, namespace: str, import_id: str, lines: int) -> pb.Import:
    """The import once it has taken *lines* lines."""
    async with asyncio.timeout(60):
        while True:
            try:
                state = await client.get_import(namespace, import_id)
            except ApiError as failure:
                if failure.reason != "NOT_FOUND":
                    raise
            else:
                account = state.account
                assert account.read == account.inserted + account.updated + account.unchanged + account.rejected
                if state.next_offset >= lines:
                    return state
            await asyncio.sleep(0.02)


def started(platform: Platform, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [STRANDLINE, "import", *arguments],
        env=platform.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def check_story(rest: Rest, client: Client, namespace: str, expected: Expected, state: dict[str, Any]) -> None:
    """The stored state is the file's, and the feed holds one change for each row that changed something."""
    parent = f"namespaces/{namespace}/types/ship"
    stored = {
        entity.name.rsplit("/", 1)[1]: {key: int(value.number_value) for key, value in entity.data.fields.items()}
        async for entity in client.list_entities(parent, page_size=1000)
    }
    assert stored == state
    answer = await rest("GET", f"/v1/{parent}")
    _, head = answer.position
    kinds: dict[int, int] = {}
    async with asyncio.timeout(60):
        async for message in client.feed(namespace, Start(after_revision=0)):  # verifies that nothing is missing
            for unit in message.units.units:
                for change in unit.changes:
                    kinds[change.kind] = kinds.get(change.kind, 0) + 1
            if message.revision >= head:
                break
    change_kinds = feed_pb2.Change
    assert kinds == {
        change_kinds.SCHEMA_CHANGED: 1,
        change_kinds.CREATED: expected.inserted,
        change_kinds.UPDATED: expected.updated,
    }


@pytest.mark.timeout(240)
async def test_the_service_is_killed_and_the_command_goes_on_by_itself(
    platform: Platform, rest: Rest, tmp_path: Path
) -> None:
    expected, state = write_file(tmp_path / "ships.jsonl")
    namespace = await new_namespace(rest)
    async with Running.in_home(Home(platform.home)).client() as client:
        command = started(platform, namespace, str(tmp_path / "ships.jsonl"), "--import-id", "one")
        for lines in KILL_AT:
            taken = await until(client, namespace, "one", lines)
            assert taken.next_offset < ROWS
            await asyncio.to_thread(platform.kill, "entity")
        output, errors = await asyncio.to_thread(command.communicate)
        assert expected.said in output, output + errors
        await check_story(rest, client, namespace, expected, state)


@pytest.mark.timeout(240)
async def test_the_command_is_killed_and_resumed_by_its_id(platform: Platform, rest: Rest, tmp_path: Path) -> None:
    file, rejects = tmp_path / "ships.jsonl", tmp_path / "rejects.jsonl"
    expected, state = write_file(file)
    namespace = await new_namespace(rest)
    arguments = (namespace, str(file), "--import-id", "one", "--rejects", str(rejects))
    async with Running.in_home(Home(platform.home)).client() as client:
        command = started(platform, *arguments)
        for lines in KILL_AT:
            taken = await until(client, namespace, "one", lines)
            assert taken.next_offset < ROWS
            command.kill()
            command.communicate()
            command = started(platform, *arguments, "--resume")
        output, errors = await asyncio.to_thread(command.communicate)
        assert expected.said in output, output + errors
        assert command.returncode == 1  # some rows were rejected
        await check_story(rest, client, namespace, expected, state)
    # Every rejected row of all three runs is told, once.
    told = [json.loads(line)["line"] for line in rejects.read_text().splitlines()]
    assert len(told) == len(set(told)) == expected.rejected
    counts = [int(count.replace(",", "")) for count in re.findall(r"^ +([\d,]+) [A-Z_]+, first in", output, re.M)]
    assert sum(counts) == expected.rejected
