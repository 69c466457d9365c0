"""Plans: several sources into one set of entities, from the files to the bytes that are imported."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
from strandline_cli.main import app
from strandline_cli.plan_command import PlanRefused, run_plan
from strandline_cli.unify.run import Unified
from typer.testing import CliRunner

from tests.postgres import postgres  # noqa: F401  (a fixture)

AIRPORTS = Path(__file__).parents[2] / "docs" / "plans" / "airports.yaml"


def write_plan(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def entities(unified: Unified) -> dict[str, dict[str, Any]]:
    return {row["id"]: row["data"] for row in lines(unified.entities)}


HARBOURS = """\
    type: harbour
    sources:
      - name: ours
        files: {rows: ours.csv}
        sql: SELECT * FROM read_csv($rows, all_varchar = true)
        key: code
      - name: theirs
        files: {rows: theirs.jsonl}
        sql: SELECT * FROM read_json($rows, format = 'newline_delimited')
        key: ref
    match: [{exact: code}, {normalized: [name, country]}]
    omit: [ref]
    id: ["{ours.code}", "t-{theirs.ref}"]
"""


def harbours(folder: Path, theirs: Sequence[Mapping[str, object]], plan: str = HARBOURS) -> Path:
    (folder / "ours.csv").write_text("code,name,country,depth\nA1,Zürich  Enge,CH,4\nA2,Genève,CH,\nA3,Oslo,NO,9\n")
    (folder / "theirs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in theirs))
    return write_plan(folder, plan)


def test_rules_are_tried_in_order_and_fields_keep_their_source(tmp_path: Path) -> None:
    theirs: list[dict[str, Any]] = [
        {"ref": 1, "code": "A2", "name": "Geneva", "country": "CH", "depth": "5"},
        {"ref": 2, "code": None, "name": "ZURICH-ENGE", "country": "ch", "depth": "6"},
        {"ref": 3, "code": None, "name": "Bergen", "country": "NO", "depth": "7"},
    ]
    unified = run_plan(harbours(tmp_path, theirs), None, tmp_path / "out")
    ours = {"code": "ours", "name": "ours", "country": "ours"}
    assert entities(unified) == {
        "A1": {
            "code": "A1",
            "name": "Zürich  Enge",
            "country": "CH",
            "depth": "4",
            "_sources": ours | {"depth": "ours"},
        },
        "A2": {"code": "A2", "name": "Genève", "country": "CH", "depth": "5", "_sources": ours | {"depth": "theirs"}},
        "A3": {"code": "A3", "name": "Oslo", "country": "NO", "depth": "9", "_sources": ours | {"depth": "ours"}},
        "t-3": {
            "name": "Bergen",
            "country": "NO",
            "depth": "7",
            "_sources": dict.fromkeys(("name", "country", "depth"), "theirs"),
        },
    }
    assert unified.lines[1] == "theirs: 3 rows = 1 exact code + 1 normalized name, country + 1 new"


TWINS: list[dict[str, Any]] = [
    {"ref": 1, "code": "A2", "name": "Geneva", "country": "CH", "depth": "5"},
    {"ref": 2, "code": "A2", "name": "Genf", "country": "CH", "depth": "6"},
    {"ref": 3, "code": None, "name": "Oslo", "country": "NO", "depth": "7"},
]


def test_what_is_ambiguous_is_left_out_until_somebody_decides(tmp_path: Path) -> None:
    plan = harbours(tmp_path, TWINS)
    unified = run_plan(plan, None, tmp_path / "out")
    review = lines(unified.review)
    assert [(item["source"], item["key"], item["why"]) for item in review] == [
        ("theirs", "1", "exact code"),
        ("theirs", "2", "exact code"),
    ]
    assert review[0]["row"]["name"] == "Geneva"
    (candidate,) = review[0]["candidates"]
    assert (candidate["decision"], candidate["rows"]["ours"]["name"]) == ("ours:A2", "Genève")
    assert entities(unified)["A2"]["_sources"] == dict.fromkeys(("code", "name", "country"), "ours")
    assert sorted(entities(unified)) == ["A1", "A2", "A3"]

    decisions = tmp_path / "decisions.jsonl"
    review[0]["decision"], review[1]["decision"] = "ours:A2", "new"
    decisions.write_text("".join(json.dumps(item) + "\n" for item in review))
    unified = run_plan(plan, decisions, tmp_path / "out")
    assert lines(unified.review) == []
    assert entities(unified)["A2"]["depth"] == "5"
    assert sorted(entities(unified)) == ["A1", "A2", "A3", "t-2"]

    review[1]["decision"] = "skip"
    decisions.write_text("".join(json.dumps(item) + "\n" for item in review))
    assert sorted(entities(run_plan(plan, decisions, tmp_path / "out"))) == ["A1", "A2", "A3"]


def test_nothing_is_replaced_while_rows_are_left_out(tmp_path: Path) -> None:
    plan = harbours(tmp_path, TWINS)
    refused = CliRunner().invoke(app, ["import", "demo", "--plan", str(plan), "--mode", "replace-set"])
    assert (refused.exit_code, "decide about them first" in refused.stderr) == (1, True)


@pytest.mark.parametrize(
    ("decisions", "said"),
    [
        (["ours:A9", None], "decisions.jsonl, line 1: ours:A9, which is no row of an earlier source"),
        (["ours:A2", "ours:A2"], "decisions.jsonl, line 2: makes one thing of two rows of theirs, with .* line 1"),
        (["maybe", None], 'a decision is "source:key" of a candidate, "new" or "skip"'),
    ],
)
def test_decisions_that_cannot_be_followed_are_refused(tmp_path: Path, decisions: list[str | None], said: str) -> None:
    plan = harbours(tmp_path, TWINS)
    review = lines(run_plan(plan, None, tmp_path / "out").review)
    file = tmp_path / "decisions.jsonl"
    decided = [item | {"decision": what} for item, what in zip(review, decisions, strict=True)]
    file.write_text("".join(json.dumps(item) + "\n" for item in decided))
    with pytest.raises(PlanRefused, match=said):
        run_plan(plan, file, tmp_path / "out")
    with pytest.raises(PlanRefused, match="another name"):
        run_plan(plan, tmp_path / "out" / "review.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"key": "77"}, "line 1: there is no row theirs:77"),
        ({"source": "ours", "key": "A1"}, "line 1: ours:A1 is no row of a source after the first"),
        ({"source": "others"}, "line 1: others:1 is no row"),
    ],
)
def test_a_decision_about_a_row_that_is_not_there_is_refused(tmp_path: Path, row: dict[str, str], said: str) -> None:
    plan = harbours(tmp_path, TWINS)
    review = lines(run_plan(plan, None, tmp_path / "out").review)
    file = tmp_path / "decisions.jsonl"
    file.write_text(json.dumps(review[0] | {"decision": "new"} | row))
    with pytest.raises(PlanRefused, match=said):
        run_plan(plan, file, tmp_path / "out")


def test_a_decision_for_what_was_no_candidate_is_followed_and_said(tmp_path: Path) -> None:
    plan = harbours(tmp_path, TWINS)
    review = lines(run_plan(plan, None, tmp_path / "out").review)
    file = tmp_path / "decisions.jsonl"
    # A key that was written as a number is the key all the same.
    file.write_text(json.dumps(review[0] | {"decision": "ours:A1", "key": 1}))
    unified = run_plan(plan, file, tmp_path / "out")
    assert unified.lines[-1] == "decisions.jsonl, line 1: theirs:1 is ours:A1, none of its candidates"


BUOYS = """\
    type: buoy
    sources:
      - name: a
        sql: >-
          SELECT * FROM (VALUES ('1', 47.0, 8.0, 'Alpha', 2), ('2', 0.0, 0.0, 'Beta', 1),
          ('3', NULL, NULL, 'Delta', NULL)) t (k, lat, lon, name, seen)
        key: k
      - name: b
        sql: >-
          SELECT * FROM (VALUES ('1', 47.005, 8.0, 'Aleph', 3), ('2', 0.003, 0.0, 'Bet', 1),
          ('3', 0.004, 0.0, 'Vav', 1), ('4', 30.0, 30.0, 'Betta', 1), ('5', 50.0, 50.0, 'Gimel', 9),
          ('6', 10.0, 10.0, 'Deltah', 4)) t (k, lat, lon, name, seen)
        key: k
    match:
      - nearest: {latitude: lat, longitude: lon, within_km: 2, margin_km: 0.5}
      - similar: {field: name, threshold: 0.9}
    merge:
      - {fields: [lat, lon], prefer: [b], tolerance: 0.004}
      - {fields: name, all: true}
      - {fields: seen, newest: seen}
    omit: [k]
    id: ["a{a.k}", "b{b.k}"]
"""


def test_positions_match_within_their_margin_and_values_are_preferred_kept_or_taken_from_the_newest(
    tmp_path: Path,
) -> None:
    unified = run_plan(write_plan(tmp_path, BUOYS), None, None)
    found = entities(unified)
    assert found["a1"] == {
        "lat": 47.005,
        "lon": 8.0,
        "name": ["Alpha", "Aleph"],
        "seen": 3,
        "_sources": {"lat": "b", "lon": "b", "name": ["a", "b"], "seen": "b"},
    }
    # Two rows lie about equally near to the second buoy. Until that is decided nobody knows whether the one with the
    # similar name is the same.
    assert [(item["key"], item["why"], item["candidates"][0]["decision"]) for item in lines(unified.review)] == [
        ("2", "nearest within 2 km", "a:2"),
        ("3", "nearest within 2 km", "a:2"),
        ("4", "similar name", "a:2"),
    ]
    assert found["a2"]["name"] == ["Beta"]
    assert found["a3"]["name"] == ["Delta", "Deltah"]
    assert sorted(found) == ["a1", "a2", "a3", "b5"]
    assert {item["id"]: item["values"] for item in lines(unified.conflicts)} == {
        "a1": {"a": {"lat": 47.0, "lon": 8.0}, "b": {"lat": 47.005, "lon": 8.0}},
    }


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = write_plan(tmp_path, BUOYS)
    first, second = (run_plan(plan, None, tmp_path / name) for name in ("one", "two"))
    for name in ("entities", "review", "conflicts"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes()


def test_csv_json_lines_and_parquet_are_read_also_packed(tmp_path: Path) -> None:
    (tmp_path / "a.csv.xz").write_bytes(lzma.compress(b"k,v\n1,007\n"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"k": "2", "v": "x"}\n'))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(b'{"k": "3", "v": "y"}\n'))
    duckdb.execute(f"COPY (SELECT '4' AS k, 'z' AS v) TO '{tmp_path}/d.parquet'")
    plan = write_plan(
        tmp_path,
        """\
        type: thing
        sources:
          - {name: a, files: {f: a.csv.xz}, key: k, sql: "SELECT * FROM read_csv($f, all_varchar = true)"}
          - {name: b, files: {f: b.jsonl.gz}, key: k, sql: "SELECT * FROM read_json($f)"}
          - {name: c, files: {f: c.jsonl.xz}, key: k, sql: "SELECT * FROM read_json($f)"}
          - {name: d, files: {f: d.parquet}, key: k, sql: "SELECT * FROM read_parquet($f)"}
        sources_field: from
        id: ["{a.k}", "{b.k}", "{c.k}", "{d.k}"]
        """,
    )
    found = entities(run_plan(plan, None, None))
    assert {key: data["v"] for key, data in found.items()} == {"1": "007", "2": "x", "3": "y", "4": "z"}
    assert found["4"]["from"] == {"k": "d", "v": "d"}


async def test_a_select_on_postgresql_keeps_its_types(tmp_path: Path, postgres: str, monkeypatch: Any) -> None:  # noqa: F811
    monkeypatch.setenv("HARBOUR_DATABASE", postgres)
    plan = write_plan(
        tmp_path,
        """\
        type: thing
        sources:
          - name: pg
            postgresql: ${HARBOUR_DATABASE}
            key: k
            sql: >-
              SELECT '007' AS k, 1::int AS n, 2.5::numeric AS d, true AS b, NULL::text AS nothing, '' AS empty,
              E'a "quoted",\\nline' AS t, DATE '2026-01-02' AS day;
        id: "{pg.k}"
        """,
    )
    data = entities(run_plan(plan, None, None))["007"]
    del data["_sources"]
    text = 'a "quoted",\nline'
    assert data == {"k": "007", "n": 1, "d": 2.5, "b": True, "empty": "", "t": text, "day": "2026-01-02"}
    plan.write_text(plan.read_text().replace("SELECT '007'", "SELECT nowhere, '007'"))
    with pytest.raises(PlanRefused, match=r"sources\[0\]\.sql: .*nowhere"):
        run_plan(plan, None, None)
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        await connection.execute("CREATE SEQUENCE plan_writes")
    plan.write_text(plan.read_text().replace("SELECT nowhere, '007'", "SELECT nextval('plan_writes')::text"))
    with pytest.raises(PlanRefused, match="read-only transaction"):
        run_plan(plan, None, None)


def test_every_type_of_a_column_has_a_form_in_json(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("code,at,on\na,2024-01-01T00:00:00Z,2024-02-03\nb,2024-01-01T02:00:00+02:00,\n")
    plan = write_plan(
        tmp_path,
        """\
        type: thing
        sources:
          - {name: f, files: {f: f.csv}, key: code, sql: "SELECT * FROM read_csv($f)"}
          - name: t
            key: code
            sql: >-
              SELECT 'c' AS code, TIMESTAMPTZ '2024-01-01 00:00:00.5+01' AS half, TIMESTAMPTZ 'infinity' AS ever,
              TIMESTAMP '2024-01-01 12:00:00' AS local, TIME '10:00:00' AS time, 1.50::DECIMAL(10, 2) AS price,
              [DATE '2024-01-01'] AS days, {'x': 1} AS inner, MAP {'k': 1} AS map, 'NaN'::DOUBLE AS nothing,
              '2c3f0d7c-6b5e-4b0e-9a52-5f6d7c0a1b2c'::UUID AS uuid, INTERVAL 1 HOUR AS span
        sources_field: from
        id: ["{f.code}", "{t.code}"]
        """,
    )
    found = entities(run_plan(plan, None, None))
    for data in found.values():
        del data["from"]
    assert found == {
        "a": {"code": "a", "at": "2024-01-01T00:00:00Z", "on": "2024-02-03"},
        "b": {"code": "b", "at": "2024-01-01T00:00:00Z"},
        "c": {
            "code": "c",
            "half": "2023-12-31T23:00:00.500000Z",
            "local": "2024-01-01T12:00:00",
            "time": "10:00:00",
            "price": 1.5,
            "days": ["2024-01-01"],
            "inner": {"x": 1},
            "map": {"k": 1},
            "uuid": "2c3f0d7c-6b5e-4b0e-9a52-5f6d7c0a1b2c",
            "span": "1:00:00",
        },
    }


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("'x'::BLOB", "holds bytes"),
        ("12345678901234567890123::HUGEINT", "more than JSON has numbers for"),
        ("[TIMESTAMPTZ '2024-01-01 00:00:00Z']", "cast the moments"),
    ],
)
def test_a_column_that_has_no_form_in_json_is_refused(tmp_path: Path, value: str, said: str) -> None:
    plan = f'type: t\nsources: [{{name: a, key: k, sql: "SELECT 1 AS k, {value} AS v"}}]\nid: "{{a.k}}"\n'
    with pytest.raises(PlanRefused, match=said):
        run_plan(write_plan(tmp_path, plan), None, None)


def test_the_newest_of_moments_and_of_other_text_is_not_guessed(tmp_path: Path) -> None:
    plan = write_plan(
        tmp_path,
        """\
        type: t
        sources:
          - {name: a, key: k, sql: "SELECT 1 AS k, 5 AS seen"}
          - {name: b, key: k, sql: "SELECT 1 AS k, DATE '2024-01-01' AS seen"}
        match: [{exact: k}]
        merge: [{fields: seen, newest: seen}]
        id: "{a.k}"
        """,
    )
    with pytest.raises(PlanRefused, match="newest: the sources have seen in different types"):
        run_plan(plan, None, None)


GOOD: Mapping[str, str] = {
    "type": "thing",
    "sources": "[{name: a, key: k, sql: 'SELECT 1 AS k, 2 AS v'}]",
    "id": "'{a.k}'",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sorces": "[]"}, "unknown key 'sorces'"),
        ({"id": None}, "the key 'id' is missing"),
        ({"type": "Bad Name"}, "type: 'Bad Name' must match"),
        ({"type": "no"}, "type: YAML takes it for False: write it in quotes"),
        ({"namespace": "a/b"}, "namespace: 'a/b' must match"),
        ({"mode": "replace"}, "mode: must be one of insert, upsert, replace-set"),
        ({"sources": "[]"}, "sources: must be a list that is not empty"),
        ({"sources": "[{name: a, key: k, sql: 'SELEC 1'}]"}, r"sources\[0\].sql: Parser Error"),
        ({"sources": "[{name: a, key: k, sql: 'SELECT 1 AS k; SELECT 2'}]"}, "must be one SELECT"),
        ({"sources": "[{name: a, key: k, sql: 'DROP TABLE x'}]"}, "must be one SELECT"),
        ({"sources": "[{name: a, key: k, sql: 'SELECT * FROM read_csv($x)'}]"}, r"\$x is none of the files"),
        ({"sources": "[{name: a, key: z, sql: 'SELECT 1 AS k'}]"}, r"sources\[0\].key: there is no column 'z': k"),
        ({"sources": "[{name: a, key: k, sql: 'SELECT NULL AS k'}]"}, "k is null in a row"),
        ({"sources": "[{name: a, key: k, sql: 'SELECT unnest([1, 1]) AS k'}]"}, "'1' comes 2 times"),
        ({"sources": "[{name: a, key: k, files: {f: no.csv}, sql: 'SELECT 1'}]"}, r"sources\[0\].files.f: there is no"),
        ({"sources": "[{name: a, key: k, files: {f: '${NO_SUCH}/x'}, sql: x}]"}, "the environment has no NO_SUCH"),
        ({"match": "[{same: v}]"}, r"match\[0\]: unknown key 'same'"),
        ({"match": "[{exact: z}]"}, r"match\[0\]: the source a has no column 'z': k, v"),
        ({"match": "[{nearest: {latitude: v, longitude: v, within_km: far}}]"}, "within_km: must be a number"),
        ({"merge": "[{fields: z}]"}, r"merge\[0\]: no source has a column 'z'"),
        ({"merge": "[{fields: v, prefer: [b]}]"}, r"merge\[0\].prefer: there is no source 'b'"),
        ({"omit": "[z]"}, "omit: no source has a column 'z'"),
        ({"id": "'{b.k}'"}, "id: there is no source 'b'"),
        ({"id": "'{a.z}'"}, "id: the source a has no column 'z'"),
        ({"id": "x"}, "id: 'x' has no placeholder"),
        ({"sources": "[{name: a, key: k, sql: 'SELECT unnest([1, 2]) AS k, 3 AS v'}]", "id": "'{a.v}'"}, "the id '3'"),
    ],
)
def test_a_wrong_plan_is_refused_with_the_place_and_the_reason(
    tmp_path: Path, changes: Mapping[str, str | None], said: str
) -> None:
    plan = "\n".join(f"{key}: {value}" for key, value in {**GOOD, **changes}.items() if value is not None)
    with pytest.raises(PlanRefused, match=said):
        run_plan(write_plan(tmp_path, plan), None, None)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM 'https://example.com/x.parquet'",
        "SELECT * FROM postgres_scan('host=127.0.0.1', 'public', 't')",
    ],
)
def test_a_plan_reads_only_the_files_that_it_names(tmp_path: Path, query: str) -> None:
    plan = f'type: t\nsources: [{{name: a, key: k, sql: "{query}"}}]\nid: "{{a.k}}"\n'
    with pytest.raises(PlanRefused, match=r"sources\[0\].sql: (Permission|Catalog) Error"):
        run_plan(write_plan(tmp_path, plan), None, None)


@pytest.mark.skipif("STRANDLINE_DATA" not in os.environ, reason="STRANDLINE_DATA does not name the real data")
def test_two_real_sources_of_airports_match_by_their_icao_code(tmp_path: Path) -> None:
    unified = run_plan(AIRPORTS, None, tmp_path)
    assert unified.lines == (
        "ourairports: 41,337 rows = 41,337 new",
        "openflights: 7,698 rows = 6,932 exact ident + 766 new",
    )
    assert (unified.entity_count, unified.review_count, unified.conflict_count) == (42_103, 0, 24)
    both = [
        row
        for row in lines(unified.entities)
        if not row["id"].startswith("openflights-") and "openflights" in row["data"]["sources"].values()
    ]
    assert len(both) == 6_932
    found = {row["id"]: row["data"] for row in lines(unified.entities)}
    disagreeing = {found[item["id"]]["ident"] for item in lines(unified.conflicts)}
    assert {"BGTL", "KDEN", "NZSP", "UAAT"} <= disagreeing
    for item in lines(unified.conflicts):
        ours, theirs = item["values"]["ourairports"], item["values"]["openflights"]
        assert max(abs(ours[key] - theirs[key]) for key in ("latitude_deg", "longitude_deg")) > 0.05
