"""After a failure: how to go on is said only where that can help."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from strandline_cli.export_command import advice
from strandline_cli.exporter import Files
from strandline_cli.import_command import tell_failure
from strandline_cli.importer import Order
from strandline_cli.words import counted
from strandline_client import ApiError

ORDER = Order(namespace="demo", import_id="i")


def told(failure: ApiError, capsys: pytest.CaptureFixture[str]) -> str:
    tell_failure(failure, ORDER, Path("rows.jsonl"))
    return capsys.readouterr().err


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"])
def test_an_import_that_may_go_on_says_how(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--import-id i --resume" in told(ApiError(code, "", "no"), capsys)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("FAILED_PRECONDITION", "IMPORT_FINISHED"),
        ("FAILED_PRECONDITION", "IMPORT_INCOMPLETE"),
        ("INVALID_ARGUMENT", "INVALID_FIELD"),
        ("INVALID_ARGUMENT", "REQUEST_ID_REUSED"),
        ("NOT_FOUND", "NOT_FOUND"),
    ],
)
def test_an_import_that_would_be_refused_again_is_not_said_to_go_on(
    code: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = told(ApiError(code, reason, "no"), capsys)
    assert (reason in said, "--resume" in said) == (True, False)


def test_an_import_of_another_file_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "i was begun with another file" in told(ApiError("INVALID_ARGUMENT", "REQUEST_ID_REUSED", "no"), capsys)


def test_a_mass_change_says_how_to_confirm_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = told(ApiError("FAILED_PRECONDITION", "MASS_CHANGE_REFUSED", "no", {"operation_id": "op"}), capsys)
    assert "--import-id i --resume --confirm op" in said


@pytest.mark.parametrize("reason", ["PAGE_TOKEN_INVALID", "COMPACTED", "NOT_FOUND"])
def test_an_export_that_cannot_go_on_is_begun_anew(tmp_path: Path, reason: str) -> None:
    files = Files(tmp_path / "x.nd")
    files.journal.write_text("{}")
    assert "egin anew, without --resume" in advice(files, ApiError("X", reason, "no"))
    assert "Go on with the same command and --resume" in advice(files, ApiError("UNAVAILABLE", "OVERLOADED", "no"))


def test_a_file_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    failure = FileNotFoundError(errno.ENOENT, "No such file or directory", "/nowhere/rejects.jsonl")
    tell_failure(failure, ORDER, Path("rows.jsonl"))
    assert capsys.readouterr().err == "/nowhere/rejects.jsonl: No such file or directory\n"


def test_one_thing_is_not_many() -> None:
    assert (counted(1, "row"), counted(0, "row"), counted(2000, "entity", "entities")) == (
        "1 row",
        "0 rows",
        "2,000 entities",
    )
