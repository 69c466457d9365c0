"""One table from error to gRPC code, complete and readable on the other side."""

from __future__ import annotations

import psycopg
import pytest
from google.rpc import error_details_pb2

from services.runtime import errors, rpc


@pytest.mark.parametrize("kind", errors.Error.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_error_has_the_grpc_code_of_its_name(kind: type[errors.Error]) -> None:
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in kind.__name__).strip("_")
    assert rpc.STATUS[kind].name == words.upper()


def test_an_error_travels_with_reason_metadata_and_violations() -> None:
    error = errors.InvalidArgument(
        "SCHEMA_VIOLATION",
        "the content does not match",
        violations=[errors.Violation("data", "is no number", "/population")],
        limit="7",
    )
    status = rpc.status_of(error, "/here")
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert (info.reason, info.domain, dict(info.metadata)) == ("SCHEMA_VIOLATION", "strandline", {"limit": "7"})
    assert [(v.field, v.description) for v in request.field_violations] == [("/population", "is no number")]


def test_what_is_no_error_of_ours_leaves_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    status = rpc.status_of(RuntimeError("secret of the house"), "/here")
    assert (status.code, status.message) == (13, "internal error")
    assert "secret of the house" in caplog.text


def test_a_lost_database_can_be_retried() -> None:
    assert isinstance(rpc.translate(psycopg.OperationalError("gone")), errors.Unavailable)
