"""What a call takes from its headers, and what it refuses."""

from __future__ import annotations

import pytest

from services.runtime.call import Call, namespace_of
from services.runtime.errors import FailedPrecondition, InvalidArgument


@pytest.mark.parametrize("key", ["a b", "x" * 65, "ü", "a/b"])
def test_an_idempotency_key_is_held_to_the_rules_of_a_request_id(key: str) -> None:
    with pytest.raises(InvalidArgument):
        Call({"idempotency-key": key}).request_id("")


def test_the_field_counts_before_the_header() -> None:
    assert Call({"idempotency-key": "header"}).request_id("field") == "field"
    assert Call({"idempotency-key": "header"}).request_id("") == "header"
    assert Call({}).request_id("") == ""


@pytest.mark.parametrize(
    "name", ["", "namespaces", "namespaces/", "namespaces/a\x00b", "namespaces/A", "x/demo", "namespaces/a"]
)
def test_a_name_without_a_proper_namespace_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        namespace_of(name, "parent")


def test_the_namespace_of_a_name_is_its_second_part() -> None:
    assert namespace_of("namespaces/demo/types/a/entities/b", "name") == "demo"


@pytest.mark.parametrize("header", ["x", "1.", ".1", "e.x", "1" * 20, "-1"])
def test_a_minimum_that_is_no_position_is_refused(header: str) -> None:
    with pytest.raises(InvalidArgument):
        Call({"strandline-min-revision": header}).min_revision(0)


def test_a_minimum_of_the_future_or_of_another_life_is_refused() -> None:
    minimum = Call({"strandline-min-revision": "00c0ffee.7"}).min_revision(3)
    minimum.check(7, "00c0ffee")
    with pytest.raises(FailedPrecondition, match="does not exist yet"):
        minimum.check(6, "00c0ffee")
    with pytest.raises(FailedPrecondition, match="another life"):
        minimum.check(7, "0badcafe")
