"""All real entities in through the public API, every row accounted for, and queries that say what plain Python says."""

from __future__ import annotations

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
    file.write_text("\n".join([*map(json.dumps, rows), "no json"]))
    done = platform.run("import", namespace, str(file), "--rejects", str(rejects))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "6 rows read = 1 inserted + 0 updated + 0 unchanged + 5 rejected" in done.stdout
    told = {record["line"]: record for record in map(json.loads, rejects.read_text().splitlines())}
    assert {line: record["reason"] for line, record in told.items()} == {
        2: "SCHEMA_VIOLATION",
        3: "INVALID_FIELD",
        4: "NOT_FOUND",
        5: "UNIQUE_VIOLATION",
        6: "ROW_INVALID",
    }
    assert "/code" in told[2]["message"]
    assert told[2]["data"] == {"code": 7}


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
