"""Commands that cannot be meant are refused in one line, before anything is asked or changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from strandline_cli.main import app
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
