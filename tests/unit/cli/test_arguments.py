"""Commands that cannot be meant are refused in one line, before anything is asked or changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from strandline_cli.main import app
from strandline_cli.type_files import TypeFileError, read_types
from typer.testing import CliRunner


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, in which nothing runs."""
    monkeypatch.setenv("STRANDLINE_HOME", str(tmp_path / "home"))


def refused(*arguments: str) -> str:
    """What is said of *arguments*, which are refused with exit code 2."""
    done = CliRunner().invoke(app, list(arguments))
    assert (done.exit_code, type(done.exception)) == (2, SystemExit), done.output
    return done.stderr


def test_changes_are_those_of_a_dry_run(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("")
    assert "--dry-run" in refused("import", "demo", str(file), "--changes", str(tmp_path / "changes.jsonl"))
    assert not (tmp_path / "changes.jsonl").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--port", "99999"],
        ["up", "--port", "-1"],
        ["export", "a b", "x.nd"],
        ["export", "demo", "x.nd", "--types", "Bad Name"],
        ["declare", "a b", "FILE"],
        ["import", "imp/types/x?a=", "FILE"],
        ["import", "demo", "FILE", "--type", "q&type_id=zz"],
        ["import", "demo", "FILE", "--mode", "replace-set", "--replace", "x y"],
        ["import", "demo", "FILE", "--import-id", "../x"],
        ["watch", "d\u00e9mo"],
    ],
    ids=" ".join,
)
def test_what_is_no_name_and_no_port_is_not_asked_for(tmp_path: Path, arguments: list[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("")
    said = refused(*(str(file) if argument == "FILE" else argument for argument in arguments))
    assert "must match" in said or "--port" in said


def test_a_type_file_whose_type_is_no_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "types.jsonl"
    file.write_text('{"type": "q&type_id=zz", "schema": {}}\n')
    with pytest.raises(TypeFileError, match="line 1: the type 'q&type_id=zz' must match"):
        read_types(file)
