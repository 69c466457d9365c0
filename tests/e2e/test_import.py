"""All real entities in through the public API, every row accounted for, and queries that say what plain Python says."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from .local_platform import Platform
from .real_data import ENTITY_TYPES, INDEXES, State, entities_file, needs_data, read_entities
from .rest import Rest

ROWS = 135_105


@pytest.fixture(scope="module")
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    made = Rest(platform.rest, platform.token())
    yield made
    await made.close()


async def new_namespace(rest: Rest, types: Iterable[str]) -> str:
    """A namespace with some of the real types and their indexes."""
    namespace = f"import-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {"massChangeGuard": "OFF"}, params={"namespace_id": namespace})
    for name in types:
        body = {"schema": {"type": "object", "properties": ENTITY_TYPES[name]}, "indexes": INDEXES[name]}
        await rest.ok("POST", f"/v1/namespaces/{namespace}/types", body, params={"type_id": name})
    return namespace


@pytest.fixture(scope="module")
async def imported(platform: Platform, rest: Rest) -> str:
    """A namespace with all real entities, imported by the command."""
    namespace = await new_namespace(rest, ENTITY_TYPES)
    done = platform.run("import", namespace, str(entities_file()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ROWS:,} rows read = {ROWS:,} inserted + 0 updated + 0 unchanged + 0 rejected" in done.stdout
    return namespace


@pytest.fixture(scope="module")
def entities() -> State:
    return read_entities()


def of_type(entities: State, kind: str) -> list[tuple[str, dict[str, Any]]]:
    return [(identifier, data) for (found, identifier), data in entities.items() if found == kind]


async def listed(rest: Rest, namespace: str, kind: str, **arguments: str) -> list[tuple[str, dict[str, Any]]]:
    """Everything that a list returns, page by page."""
    found, token = [], ""
    while True:
        params = {"page_size": "1000", **arguments} | ({"page_token": token} if token else {})
        page = await rest.ok("GET", f"/v1/namespaces/{namespace}/types/{kind}/entities", params=params)
        found += [(entity["name"].rsplit("/", 1)[1], entity["data"]) for entity in page["entities"]]
        token = page["nextPageToken"]
        if not token:
            return found


@needs_data
@pytest.mark.timeout(300)
async def test_every_entity_can_be_read_back_as_it_was_in_the_file(rest: Rest, imported: str, entities: State) -> None:
    for kind in ENTITY_TYPES:
        assert dict(await listed(rest, imported, kind)) == dict(of_type(entities, kind)), kind


QUERIES: list[tuple[str, str, str, Callable[[dict[str, Any]], bool], Callable[[dict[str, Any]], Any]]] = [
    ("country", 'data.code = "CH"', "", lambda d: d["code"] == "CH", lambda d: ()),
    (
        "region",
        'data.iso_country = "FR"',
        "data.name",
        lambda d: d["iso_country"] == "FR",
        lambda d: d["name"].encode(),
    ),
    (
        "airport",
        "data.runway_count >= 4",
        "data.runway_count desc, data.ident",
        lambda d: d["runway_count"] >= 4,
        lambda d: (-d["runway_count"], d["ident"].encode()),
    ),
    (
        "navaid",
        'data.iso_country = "US" AND data.frequency_khz > 100000 AND NOT data.power = "HIGH"',
        "data.frequency_khz desc",
        lambda d: d["iso_country"] == "US" and d["frequency_khz"] > 100000 and d.get("power") != "HIGH",
        lambda d: -d["frequency_khz"],
    ),
    (
        "navaid",
        'data.type = "VOR" AND (data.iso_country = "DE" OR data.iso_country = "AT")',
        "data.name",
        lambda d: d["type"] == "VOR" and d["iso_country"] in ("DE", "AT"),
        lambda d: d["name"].encode(),
    ),
    (
        "runway",
        'data.surface = "CON" AND data.length_ft >= 12000 AND data.lighted = true',
        "data.length_ft desc",
        lambda d: d.get("surface") == "CON" and d.get("length_ft", 0) >= 12000 and d["lighted"],
        lambda d: -d["length_ft"],
    ),
    (
        "airport_frequency",
        'data.type = "TWR" AND data.frequency_mhz < 119 AND data.description != "TWR"',
        "data.frequency_mhz",
        lambda d: d["type"] == "TWR" and d["frequency_mhz"] < 119 and d.get("description", "TWR") != "TWR",
        lambda d: d["frequency_mhz"],
    ),
    # Neither an index nor an order is needed: a walk in the order of ids, with everything as a residual.
    ("airport", "NOT data.runway_count = 1", "", lambda d: d["runway_count"] != 1, lambda d: ()),
]


@needs_data
@pytest.mark.parametrize("query", QUERIES, ids=[f"{kind}: {text}" for kind, text, *_ in QUERIES])
async def test_a_query_says_what_plain_python_says(
    rest: Rest, imported: str, entities: State, query: tuple[Any, ...]
) -> None:
    kind, text, order, matches, key = query
    expected = [(identifier, data) for identifier, data in of_type(entities, kind) if matches(data)]
    assert expected
    found = await listed(rest, imported, kind, filter=text, order_by=order)
    # Equal keys are ordered by id.
    assert found == sorted(expected, key=lambda row: (key(row[1]), row[0].encode()))


async def test_rejected_rows_are_named_with_line_reason_and_pointer(
    platform: Platform, rest: Rest, tmp_path: Path
) -> None:
    namespace = await new_namespace(rest, ["country"])
    rows = [
        {"type": "country", "id": "1", "data": {"code": "AA", "name": "A"}},
        {"type": "country", "id": "2", "data": {"code": 7}},
        {"type": "country", "id": "bad id", "data": {"code": "CC"}},
        {"type": "planet", "id": "3", "data": {}},
        {"type": "country", "id": "4", "data": {"code": "AA"}},
    ]
    file, rejects = tmp_path / "rows.jsonl", tmp_path / "rejects.jsonl"
    surrogate = '{"type": "country", "id": "5", "data": {"name": "\\ud800"}}'
    file.write_text("\n".join([*map(json.dumps, rows), "no json", surrogate]))
    done = platform.run("import", namespace, str(file), "--rejects", str(rejects))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "7 rows read = 1 inserted + 0 updated + 0 unchanged + 6 rejected" in done.stdout
    told = {record["line"]: record for record in map(json.loads, rejects.read_text().splitlines())}
    assert {line: record["reason"] for line, record in told.items()} == {
        2: "SCHEMA_VIOLATION",
        3: "INVALID_FIELD",
        4: "NOT_FOUND",
        5: "UNIQUE_VIOLATION",
        6: "ROW_INVALID",
        7: "INVALID_FIELD",
    }
    assert "/code" in told[2]["message"]
    assert told[2]["data"] == {"code": 7}
    assert (told[6]["raw"], told[7]["raw"]) == ("no json", surrogate)


async def test_a_csv_file_takes_its_types_from_the_schema(platform: Platform, rest: Rest, tmp_path: Path) -> None:
    namespace = await new_namespace(rest, ["airport"])
    file = tmp_path / "airports.csv"
    file.write_text('id,ident,runway_count,latitude_deg\n1,"LSZH",3,47.5\n2,"0042",1,\n3,LSGG,many,46.2\n')
    assert platform.run("import", namespace, str(file)).returncode == 1
    done = platform.run("import", namespace, str(file), "--type", "airport", "--id", "id")
    # The column of the id is no property of the schema, so it is not part of the data.
    assert "3 rows read = 2 inserted + 0 updated + 0 unchanged + 1 rejected" in done.stdout, done.stdout
    assert "1 SCHEMA_VIOLATION, first in line 4: /runway_count" in done.stdout
    # One that the schema does name is.
    file.write_text('ident,runway_count,latitude_deg\n"LSZB",3,47.5\n"0043",1,\nLSGG,many,46.2\n')
    done = platform.run("import", namespace, str(file), "--type", "airport", "--id", "ident")
    assert "3 rows read = 2 inserted + 0 updated + 0 unchanged + 1 rejected" in done.stdout, done.stdout
    assert dict(await listed(rest, namespace, "airport")) == {
        "1": {"ident": "LSZH", "runway_count": 3, "latitude_deg": 47.5},
        "2": {"ident": "0042", "runway_count": 1},
        "LSZB": {"ident": "LSZB", "runway_count": 3, "latitude_deg": 47.5},
        "0043": {"ident": "0043", "runway_count": 1},
    }


async def test_an_import_into_a_namespace_that_is_not_there_says_so(platform: Platform, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"type": "country", "id": "1", "data": {}}\n')
    done = platform.run("import", "no-such-namespace", str(file))
    assert done.returncode == 1
    assert "NOT_FOUND" in done.stderr
    assert "Traceback" not in done.stderr


def rows_file(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def country(identifier: int, **data: Any) -> dict[str, Any]:
    return {"type": "country", "id": str(identifier), "data": data}


async def test_a_dry_run_tells_the_changes_and_makes_none(platform: Platform, rest: Rest, tmp_path: Path) -> None:
    namespace = await new_namespace(rest, ["country"])
    file = rows_file(tmp_path / "rows.jsonl", [country(1, name="A"), country(2, name="B")])
    assert platform.run("import", namespace, str(file), "--mode", "insert").returncode == 0
    rows_file(file, [country(1, name="A"), country(2, name="C", code="CC"), country(3)])
    changes = tmp_path / "changes.jsonl"
    done = platform.run("import", namespace, str(file), "--dry-run", "--changes", str(changes))
    assert "3 rows read = 1 inserted + 1 updated + 1 unchanged + 0 rejected (dry run" in done.stdout
    assert [json.loads(line) for line in changes.read_text().splitlines()] == [
        {
            "line": 2,
            "type": "country",
            "id": "2",
            "outcome": "UPDATED",
            "changes": [{"pointer": "/code", "after": "CC"}, {"pointer": "/name", "before": "B", "after": "C"}],
        },
        {"line": 3, "type": "country", "id": "3", "outcome": "CREATED", "changes": []},
    ]
    assert dict(await listed(rest, namespace, "country")) == {"1": {"name": "A"}, "2": {"name": "B"}}


async def test_a_dry_run_of_a_replaced_set_tells_what_would_be_deleted_and_whether_that_would_be_refused(
    platform: Platform, rest: Rest, tmp_path: Path
) -> None:
    namespace = await new_namespace(rest, ["airport"])
    await rest.ok("PATCH", f"/v1/namespaces/{namespace}", {"massChangeGuard": "ON"})
    airports = [{"type": "airport", "id": str(n), "data": {"runway_count": n}} for n in range(3)]
    file = rows_file(tmp_path / "rows.jsonl", airports)
    assert platform.run("import", namespace, str(file)).returncode == 0
    changes = tmp_path / "changes.jsonl"
    arguments = ("--mode", "replace-set", "--replace", "airport", "--dry-run", "--changes", str(changes))
    rows_file(file, [airports[0] | {"data": {"runway_count": 7}}, airports[2]])
    done = platform.run("import", namespace, str(file), *arguments)
    assert "1 of 3 entities would be deleted" in done.stdout, done.stdout + done.stderr
    assert "would be refused" not in done.stdout
    updated = {"pointer": "/runway_count", "before": 0, "after": 7}
    told = changes.read_text()
    assert [json.loads(line) for line in told.splitlines()] == [
        {"line": 1, "type": "airport", "id": "0", "outcome": "UPDATED", "changes": [updated]},
        {"line": None, "type": "airport", "id": "1", "outcome": "DELETED", "changes": []},
    ]
    assert "7.0" not in told
    rows_file(file, [])
    done = platform.run("import", namespace, str(file), *arguments)
    assert "That would be refused until it is confirmed" in done.stdout, done.stdout + done.stderr
    assert len(await listed(rest, namespace, "airport")) == 3


async def test_replacing_a_set_deletes_what_the_file_lacks_but_most_of_it_only_when_confirmed(
    platform: Platform, rest: Rest, tmp_path: Path
) -> None:
    namespace = await new_namespace(rest, ["country"])
    await rest.ok("PATCH", f"/v1/namespaces/{namespace}", {"massChangeGuard": "ON"})
    file = rows_file(tmp_path / "rows.jsonl", (country(n) for n in range(2500)))
    assert platform.run("import", namespace, str(file)).returncode == 0
    rows_file(file, (country(n) for n in range(2400)))
    done = platform.run("import", namespace, str(file), "--mode", "replace-set", "--replace", "country")
    assert "100 of 2,500 entities were missing, 100 deleted" in done.stdout, done.stdout + done.stderr
    rows_file(file, (country(n) for n in range(100)))
    refused = platform.run("import", namespace, str(file), "--mode", "replace-set", "--import-id", "most")
    assert refused.returncode == 1
    assert "would delete 2300 of 2400 entities, of country" in refused.stderr
    assert len(await listed(rest, namespace, "country")) == 2400
    operation = refused.stderr.split("--confirm ")[1].strip()
    arguments = ("--mode", "replace-set", "--import-id", "most", "--resume", "--confirm", operation)
    done = platform.run("import", namespace, str(file), *arguments)
    assert "2,300 of 2,400 entities were missing, 2,300 deleted" in done.stdout, done.stdout + done.stderr
    assert len(await listed(rest, namespace, "country")) == 100


async def test_a_file_that_is_not_the_one_that_was_begun_is_not_resumed(
    platform: Platform, rest: Rest, tmp_path: Path
) -> None:
    namespace = await new_namespace(rest, ["country"])
    file = rows_file(tmp_path / "rows.jsonl", [country(1), country(2)])
    assert platform.run("import", namespace, str(file), "--import-id", "one").returncode == 0
    rows_file(file, [country(1)])
    other = platform.run("import", namespace, str(file), "--import-id", "one", "--resume")
    assert (other.returncode, "the file has fewer" in other.stderr) == (1, True), other.stderr
    # One that was killed before its first chunk arrived just begins.
    early = platform.run("import", namespace, str(file), "--import-id", "none", "--resume")
    assert (early.returncode, "1 row read = 0 inserted" in early.stdout) == (0, True), early.stderr
    nowhere = platform.run("import", "no-such-namespace", str(file), "--import-id", "none", "--resume")
    assert (nowhere.returncode, "NOT_FOUND" in nowhere.stderr) == (1, True), nowhere.stderr
    unnamed = platform.run("import", namespace, str(file), "--resume")
    assert (unnamed.returncode, "--import-id" in unnamed.stderr) == (1, True), unnamed.stderr


async def test_an_import_through_rest(rest: Rest) -> None:
    namespace = await new_namespace(rest, ["country"])
    rows = b'{"type": "country", "id": "1", "data": {"name": "A"}}\n\n{"type": "country"}\n'
    body = {"importId": "web", "rows": base64.b64encode(rows).decode(), "finish": True}
    answer = await rest("POST", f"/v1/namespaces/{namespace}:import", body)
    assert answer.status == 200, answer
    account = {"read": "2", "inserted": "1", "updated": "0", "unchanged": "0", "rejected": "1", "deleted": "0"}
    assert answer.json["chunk"] == account
    assert answer.json["rows"][0]["line"] == "3"
    state = await rest.ok("GET", f"/v1/namespaces/{namespace}/imports/web")
    assert (state["state"], state["mode"], state["nextOffset"], state["account"]) == (
        "FINISHED",
        "UPSERT",
        "3",
        account,
    )
    rejections = await rest.ok("GET", f"/v1/namespaces/{namespace}/imports/web/rejections")
    assert [row["line"] for row in rejections["rows"]] == ["3"]
    late = await rest("POST", f"/v1/namespaces/{namespace}:import", {"importId": "web", "offset": "3", "rows": "e30K"})
    assert late.problem == (400, "IMPORT_FINISHED")


async def test_a_plan_is_carried_out_and_imported(platform: Platform, rest: Rest, tmp_path: Path) -> None:
    namespace = await new_namespace(rest, ["country"])
    path = f"/v1/namespaces/{namespace}/types/country"
    properties = {**ENTITY_TYPES["country"], "from": {"type": "object"}}
    await rest.ok("PATCH", path, {"schema": {"type": "object", "properties": properties}})
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        """
        type: country
        mode: insert
        sources:
          - {name: a, key: code, sql: "SELECT * FROM (VALUES ('CH', 'Schweiz'), ('FR', NULL)) t (code, name)"}
          - {name: b, key: code, sql: "SELECT * FROM (VALUES ('FR', 'France'), ('DE', 'Germany')) t (code, name)"}
        match: [{exact: code}]
        sources_field: from
        id: ["{a.code}", "{b.code}"]
        """
    )
    arguments = ("import", namespace, "--plan", str(plan), "--out", str(tmp_path / "out"))
    done = platform.run(*arguments)
    assert "b: 2 rows = 1 exact code + 1 new" in done.stdout, done.stdout + done.stderr
    assert "3 rows read = 3 inserted + 0 updated + 0 unchanged + 0 rejected" in done.stdout
    assert dict(await listed(rest, namespace, "country")) == {
        "CH": {"code": "CH", "name": "Schweiz", "from": {"code": "a", "name": "a"}},
        "DE": {"code": "DE", "name": "Germany", "from": {"code": "b", "name": "b"}},
        "FR": {"code": "FR", "name": "France", "from": {"code": "a", "name": "b"}},
    }
    again = platform.run(*arguments, "--mode", "upsert", "--dry-run")
    assert "3 rows read = 0 inserted + 0 updated + 3 unchanged + 0 rejected" in again.stdout, again.stderr
    plan.write_text(plan.read_text().replace("exact: code", "exact: cod"))
    wrong = platform.run(*arguments)
    assert (wrong.returncode, "match[0]: the source a has no column 'cod': code, name" in wrong.stderr) == (1, True)
    neither = platform.run("import", namespace)
    assert (neither.returncode, "say what to import" in neither.stderr) == (1, True)
