"""What a writer and a designer of schemas are told."""

from __future__ import annotations

import pytest

from services.entity.schemas import check_schema, compile_schema, violation_error
from services.runtime.errors import InvalidArgument


@pytest.mark.parametrize("schema", [{"type": "object"}, {"type": "object", "properties": {"c": {"type": "string"}}}])
def test_each_field_that_a_closed_type_does_not_have_is_named(schema: dict[str, object]) -> None:
    error = violation_error(compile_schema(schema), {"a": 5, "b": 1}, "entity.data")
    assert [(violation.pointer, violation.message) for violation in error.violations] == [
        ("/a", "the type does not have this field"),
        ("/b", "the type does not have this field"),
    ]


@pytest.mark.parametrize("reference", ["file:///etc/passwd", "other.json", "https://example.com/schema"])
def test_a_reference_to_the_outside_is_refused_in_our_own_words(reference: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_schema({"type": "object", "properties": {"a": {"$ref": reference}}}, "type.schema")
    assert "may only lead inside the schema" in refused.value.message
    assert "passwd" not in refused.value.message
