"""Export and import of a namespace, by the command: equal states, also through a kill and while writes go on."""

from __future__ import annotations

import asyncio
import gzip
import json
import lzma
import re
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from .local_platform import Platform
from .real_data import ENTITY_TYPES, INDEXES, entities_file, needs_data
from .rest import Rest

SCHEMA = {"type": "object", "properties": {"n": {"type": "number"}, "text": {"type": "string"}, "more": {}}}
ROWS = 3000
OPEN: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".ndjson": open}


@pytest.fixture(scope="module")
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    made = Rest(platform.rest, platform.token())
    yield made
    await made.close()


async def new_namespace(rest: Rest) -> str:
    namespace = f"export-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {"massChangeGuard": "OFF"}, params={"namespace_id": namespace})
    return namespace


@pytest.fixture(scope="module")
async def filled(rest: Rest) -> str:
    """A namespace with entities of two types, one of which is deleted; 30 MB."""
    namespace = await new_namespace(rest)
    path = f"/v1/namespaces/{namespace}"
    for type_id in ("buoy", "whale"):
        body = {"schema": SCHEMA, "indexes": [{"fields": ["data.n"]}], "compatibility": "FULL"}
        await rest.ok("POST", f"{path}/types", body, params={"type_id": type_id})
    for first in range(0, ROWS, 150):
        writes = [
            {"create": {"name": name(namespace, n), "data": {"n": n / 2, "text": f"ä{n} " * 2000, "more": [None, {}]}}}
            for n in range(first, first + 150)
        ]
        await rest.ok("POST", f"{path}:batchWrite", {"writes": writes})
    await rest.ok("DELETE", f"/v1/{name(namespace, 1)}")
    return namespace


def name(namespace: str, n: int) -> str:
    return f"namespaces/{namespace}/types/{'whale' if n % 3 else 'buoy'}/entities/e{n:05}"


def rows_of(file: Path) -> list[dict[str, Any]]:
    with OPEN[file.suffix](file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def sums(output: str) -> dict[str, str]:
    """What the command printed of count, revision and sums."""
    head = re.search(r"^([\d,]+) entities of \S+ at revision (\d+)", output, re.MULTILINE)
    assert head is not None, output
    found = dict(re.findall(r"^(snapshot|content) +([0-9a-f]{64})$", output, re.MULTILINE))
    return {"count": head[1].replace(",", ""), "revision": head[2], **found}


async def as_it_was(rest: Rest, namespace: str, revision: str) -> list[dict[str, Any]]:
    """The same by lists as of that revision."""
    found = []
    for type_id in ("buoy", "whale"):
        token = ""
        while True:
            params = {"as_of_revision": revision, "page_size": "1000"} | ({"page_token": token} if token else {})
            page = await rest.ok("GET", f"/v1/namespaces/{namespace}/types/{type_id}/entities", params=params)
            for entity in page["entities"]:
                found.append({"type": type_id, "id": entity["name"].rsplit("/", 1)[1], "data": entity["data"]})
            if not (token := page["nextPageToken"]):
                break
    return found


async def test_an_exported_namespace_is_equal_when_it_is_imported_elsewhere(
    platform: Platform, rest: Rest, filled: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.ndjson"
    first = platform.run("export", filled, str(file))
    assert first.returncode == 0, first.stderr
    assert len(rows_of(file)) == ROWS - 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.ndjson", "all.ndjson.types"]
    other = await new_namespace(rest)
    declared = platform.run("declare", other, f"{file}.types")
    assert declared.stdout == "declared: buoy, whale; there already: none\n"
    for type_id in ("buoy", "whale"):
        made = await rest.ok("GET", f"/v1/namespaces/{other}/types/{type_id}")
        there = await rest.ok("GET", f"/v1/namespaces/{filled}/types/{type_id}")
        assert (made["schema"], made["compatibility"]) == (there["schema"], "FULL")
        assert [index["fields"] for index in made["indexes"]] == [["data.n"]]
    assert platform.run("declare", other, f"{file}.types").stdout == "declared: none; there already: buoy, whale\n"
    assert platform.run("import", other, str(file)).returncode == 0
    for suffix in (".ndjson", ".gz"):
        again = tmp_path / f"again{suffix}"
        second = platform.run("export", other, str(again))
        assert rows_of(again) == rows_of(file)
        assert sums(second.stdout)["content"] == sums(first.stdout)["content"]
        assert sums(second.stdout)["snapshot"] != sums(first.stdout)["snapshot"]  # it covers names and revisions


async def test_types_that_refer_to_each_other_and_rows_that_refer_to_later_ones_come_over(
    platform: Platform, rest: Rest, tmp_path: Path
) -> None:
    namespace, other, file = await new_namespace(rest), await new_namespace(rest), tmp_path / "all.ndjson"
    path = f"/v1/namespaces/{namespace}/types"
    text = {"type": "string"}
    for type_id, field, target in (("port", "main_quay", "quay"), ("quay", "port", "port")):
        schema = {"type": "object", "properties": {field: text, "next": text}}
        await rest.ok("POST", path, {"schema": schema}, params={"type_id": type_id})
        if target == "port":
            references = [{"field": "data.port", "type": "port"}, {"field": "data.next", "type": "quay"}]
            await rest.ok("PATCH", f"{path}/quay", {"references": references})
    await rest.ok("PATCH", f"{path}/port", {"references": [{"field": "data.main_quay", "type": "quay"}]})
    content = {"port/p": {"main_quay": "a"}, "quay/a": {"port": "p", "next": "b"}, "quay/b": {"port": "p"}}
    mutations = [
        {"create": {"name": f"namespaces/{namespace}/types/{key.replace('/', '/entities/')}", "data": data}}
        for key, data in content.items()
    ]
    await rest.ok("POST", f"/v1/namespaces/{namespace}:transact", {"mutations": mutations})
    first = platform.run("export", namespace, str(file))
    assert platform.run("declare", other, f"{file}.types", "--no-references").stdout == (
        "declared: port, quay; there already: none\n"
    )
    assert platform.run("import", other, str(file)).returncode == 0
    assert platform.run("declare", other, f"{file}.types").stdout == (
        "declared: none; there already: port, quay\nreferences added: port, quay\n"
    )
    for type_id in ("port", "quay"):
        there = await rest.ok("GET", f"{path}/{type_id}")
        made = await until_ready(rest, f"/v1/namespaces/{other}/types/{type_id}")
        assert made["references"] == there["references"]
    assert (
        sums(platform.run("export", other, str(tmp_path / "again")).stdout)["content"] == sums(first.stdout)["content"]
    )
    refused = await rest("DELETE", f"/v1/namespaces/{other}/types/quay/entities/a")
    assert refused.problem == (400, "REFERENCED")


async def until_ready(rest: Rest, path: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            type_ = await rest.ok("GET", path)
            if all(reference["state"] == "READY" for reference in type_["references"]):
                return type_
            await asyncio.sleep(0.1)


async def test_the_sum_of_an_export_is_that_of_a_feeds_snapshot(
    platform: Platform, filled: str, tmp_path: Path
) -> None:
    file = tmp_path / "some.xz"
    done = platform.run("export", filled, str(file), "--types", "buoy")
    assert {row["type"] for row in rows_of(file)} == {"buoy"}
    async with asyncio.timeout(30):
        snapshot = await snapshot_done(platform, filled)
    assert {"count": sums(done.stdout)["count"], "hash": sums(done.stdout)["snapshot"]} == snapshot


async def snapshot_done(platform: Platform, namespace: str) -> Any:
    """The ``SnapshotDone`` of a feed of buoys."""
    rest = Rest(platform.rest, platform.token())
    url = f"/v1/namespaces/{namespace}:watch"
    try:
        async with rest._session.get(url, params={"snapshot": "true", "types": "buoy"}) as response:
            pending = b""
            async for chunk in response.content.iter_any():
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    if "snapshotDone" in (message := json.loads(line)):
                        return message["snapshotDone"]
    finally:
        await rest.close()


async def test_a_killed_export_goes_on_and_shows_one_revision_although_writes_go_on(
    platform: Platform, rest: Rest, filled: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.gz"
    journal = tmp_path / "all.gz.journal"
    deadline = time.monotonic() + 60
    while True:
        await kill_half_way(platform.begin("export", filled, str(file)), journal)
        if not file.exists():
            break
        file.unlink()  # it was over before it could be disturbed
        assert time.monotonic() < deadline
    for n in range(0, ROWS, 50):
        if n % 100:
            await rest.ok("PATCH", f"/v1/{name(filled, n)}", {"data": {"n": -1}})
        else:
            await rest.ok("DELETE", f"/v1/{name(filled, n)}")
    platform.kill("entity")
    refused = platform.run("export", filled, str(file), "--resume", "--types", "buoy")
    assert refused.returncode == 1
    assert "all.gz.journal is of" in refused.stderr
    done = platform.run("export", filled, str(file), "--resume")
    assert done.returncode == 0, done.stderr
    found = rows_of(file)
    assert len(found) == ROWS - 1 == int(sums(done.stdout)["count"])
    assert found == await as_it_was(rest, filled, sums(done.stdout)["revision"])
    assert not any(row["data"]["n"] == -1 for row in found)
    later = platform.run("export", filled, str(tmp_path / "then.ndjson"), "--revision", sums(done.stdout)["revision"])
    assert sums(later.stdout) == sums(done.stdout)
    nothing = platform.run("export", filled, str(file), "--resume")
    assert (nothing.returncode, "nothing to resume" in nothing.stderr) == (1, True)


async def kill_half_way(exporting: subprocess.Popen[bytes], journal: Path) -> None:
    """``kill -9`` the command when its journal is there, if it has not ended by then."""
    while exporting.poll() is None:
        if journal.exists():
            exporting.kill()
        await asyncio.sleep(0.005)


async def test_an_export_that_is_refused_says_why(platform: Platform, filled: str, tmp_path: Path) -> None:
    for arguments, reason in ((("no-such-namespace",), "NOT_FOUND"), ((filled, "--revision", "99999999"), "FUTURE")):
        done = platform.run("export", arguments[0], str(tmp_path / "x.ndjson"), *arguments[1:])
        assert done.returncode == 1
        assert reason in done.stderr
        assert "Traceback" not in done.stderr
    bad = tmp_path / "bad.types"
    bad.write_text('{"type": "buoy"}\n')
    declared = platform.run("declare", filled, str(bad))
    assert (declared.returncode, "line 1" in declared.stderr) == (1, True)


@needs_data
@pytest.mark.timeout(600)
async def test_the_real_entities_are_equal_when_they_are_imported_elsewhere(
    platform: Platform, rest: Rest, tmp_path: Path
) -> None:
    first, second = await new_namespace(rest), await new_namespace(rest)
    for type_id, properties in ENTITY_TYPES.items():
        body = {"schema": {"type": "object", "properties": properties}, "indexes": INDEXES[type_id]}
        await rest.ok("POST", f"/v1/namespaces/{first}/types", body, params={"type_id": type_id})
    assert platform.run("import", first, str(entities_file()), timeout=240).returncode == 0
    file = tmp_path / "real.ndjson.gz"
    exported = platform.run("export", first, str(file), timeout=120)
    assert sums(exported.stdout)["count"] == "135105"
    assert platform.run("declare", second, f"{file}.types").returncode == 0
    assert platform.run("import", second, str(file), timeout=240).returncode == 0
    again = platform.run("export", second, str(tmp_path / "again.ndjson"), timeout=120)
    assert sums(again.stdout)["content"] == sums(exported.stdout)["content"]
