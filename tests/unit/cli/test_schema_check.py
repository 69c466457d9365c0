"""`strandline schema check`: two files, one answer, no server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from strandline_cli.main import app
from typer.testing import CliRunner

A = {"type": "object", "properties": {"a": {"type": "string"}}}
AB = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}


def check(folder: Path, old: Any, new: Any, *options: str) -> tuple[int, Any]:
    """Exit code, and the answer if there is one. A text is written as it is."""
    paths = []
    for name, schema in (("old.json", old), ("new.json", new)):
        paths.append(folder / name)
        paths[-1].write_text(schema if isinstance(schema, str) else json.dumps(schema))
    result = CliRunner().invoke(app, ["schema", "check", *map(str, paths), *options])
    return result.exit_code, json.loads(result.stdout) if result.stdout else result.stderr


def test_a_property_may_be_added_to_a_type_and_not_removed(tmp_path: Path) -> None:
    assert check(tmp_path, A, AB) == (0, {"compatible": True, "differences": []})
    code, answer = check(tmp_path, AB, A, "--mode", "BACKWARD")
    assert (code, answer["compatible"]) == (1, False)
    (difference,) = answer["differences"]
    assert list(difference) == ["rule", "path", "message"]
    assert (difference["rule"], difference["path"]) == ("PROPERTY_REMOVED_FROM_CLOSED", "/properties/b")


def test_the_mode_decides(tmp_path: Path) -> None:
    assert check(tmp_path, AB, A, "--mode", "FORWARD")[0] == 0
    assert check(tmp_path, AB, A, "--mode", "full")[0] == 1
    assert check(tmp_path, AB, A, "--mode", "NONE")[0] == 0


def test_schemas_are_closed_as_types_are_unless_they_are_to_be_taken_as_written(tmp_path: Path) -> None:
    code, answer = check(tmp_path, A, AB, "--as-written")
    assert (code, answer["differences"][0]["rule"]) == (1, "PROPERTY_ADDED_TO_OPEN")
    legacy = {"$schema": "http://json-schema.org/draft-07/schema#"}
    assert check(tmp_path, {**legacy, **A}, {**legacy, **AB})[1] == answer


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ("{", "no JSON"),
        ('{"type": NaN}', "NaN"),
        ("[" * 100_000, "no JSON"),
        ({"type": "thing"}, "/type"),
        ({"type": "object", "$ref": "https://example.com/schema"}, "/$ref"),
        ("true", "/type"),
        ({"type": "string"}, "/type"),
        ('{"type": "object", "properties": {"a": {}, "a": false}}', "the key 'a' stands twice"),
    ],
)
def test_a_file_without_a_schema_is_named_and_ends_with_2(tmp_path: Path, new: Any, said: str) -> None:
    code, text = check(tmp_path, A, new)
    assert code == 2
    assert "new.json" in text
    assert said in text


def test_what_no_type_could_have_may_be_checked_as_it_is_written(tmp_path: Path) -> None:
    for schema in ("true", {"type": "string"}, '{"type": "object", "type": "object"}'):
        assert check(tmp_path, schema, schema, "--as-written")[0] == 0


def test_a_missing_file_and_an_unknown_mode_end_with_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["schema", "check", str(tmp_path / "no"), str(tmp_path / "no")])
    assert (result.exit_code, "no: No such file" in result.stderr) == (2, True)
    assert check(tmp_path, A, A, "--mode", "SIDEWAYS")[0] == 2
