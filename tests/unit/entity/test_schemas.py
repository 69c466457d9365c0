"""Which schemas are accepted, and what they say about fields."""

from __future__ import annotations

import time
from typing import Any

import pytest

from services.entity.schemas import check_schema, compile_schema, field_types, violation_error
from services.runtime.errors import InvalidArgument

TEXT = {"type": "string"}
NODE = {
    "type": "object",
    "properties": {"next": {"$ref": "#/$defs/node"}, "value": {"type": ["number", "null"]}},
}


def closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def doubling(levels: int) -> dict[str, Any]:
    """A schema that tries 2^levels alternatives for one value."""
    defs: dict[str, Any] = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {**closed(a={"$ref": "#/$defs/d0"}), "$defs": {**defs, f"d{levels}": TEXT}}


def test_a_recursive_schema_is_accepted() -> None:
    check_schema({**closed(first={"$ref": "#/$defs/node"}), "$defs": {"node": NODE}}, "type.schema")


def test_a_union_of_twenty_kinds_is_accepted() -> None:
    kinds = [closed(kind={"const": n}, value={"type": "number"}) for n in range(20)]
    check_schema(closed(item={"oneOf": kinds}, items={"type": "array", "items": {"oneOf": kinds}}), "type.schema")


@pytest.mark.parametrize(
    "schema",
    [
        doubling(12),
        doubling(60),
        # The same through nesting: each level of the data doubles the work.
        {
            **closed(a={"$ref": "#/$defs/n"}),
            "$defs": {"n": {"properties": {"a": {"anyOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}]}}}},
        },
        # The same through a keyword of older drafts, which the validator still applies.
        {
            "type": "object",
            "dependencies": {"a": {"anyOf": [{"$ref": "#/$defs/d1"}] * 2}},
            "$defs": {
                **{
                    f"d{n}": {"dependencies": {"a": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2}}}
                    for n in range(1, 22)
                },
                "d22": False,
            },
        },
        {"type": "object", "dependencies": {"a": {"$ref": "#"}}},
        {**closed(), "$ref": "#"},
        {
            **closed(),
            "allOf": [{"$ref": "#/$defs/x"}],
            "$defs": {"x": {"$ref": "#/$defs/y"}, "y": {"$ref": "#/$defs/x"}},
        },
        closed(a={"$dynamicRef": "#a"}),
        closed(a={"$id": "https://example.com/a", "type": "string"}),
    ],
)
def test_a_schema_that_could_hold_up_the_validator_is_refused_at_once(schema: dict[str, Any]) -> None:
    started = time.process_time()
    with pytest.raises(InvalidArgument):
        check_schema(schema, "type.schema")
    assert time.process_time() - started < 10  # it takes a millisecond; to follow every path takes hours


def test_the_largest_cost_that_is_accepted_is_bearable() -> None:
    schema = doubling(7)
    check_schema(schema, "type.schema")
    validator = compile_schema(schema)
    started = time.process_time()
    assert not validator.is_valid({"a": list(range(20_000))})
    assert time.process_time() - started < 10  # it takes a millisecond


def test_a_schema_is_closed_at_its_top_unless_it_says_otherwise() -> None:
    assert not compile_schema(closed(a=TEXT)).is_valid({"b": 1})
    assert compile_schema({**closed(a=TEXT), "additionalProperties": True}).is_valid({"b": 1})
    assert compile_schema({**closed(a=TEXT), "patternProperties": {"^x": {}}}).is_valid({"x1": 1})
    assert compile_schema(closed(a={"type": "object"})).is_valid({"a": {"b": 1}})


def test_violations_are_counted_to_a_hundred_and_kept_short() -> None:
    schema = closed(a={"type": "array", "items": {"type": "integer"}})
    failure = violation_error(compile_schema(schema), {"a": ["x" * 5000] * 500}, "entity.data")
    assert len(failure.violations) == 100
    assert failure.violations[7].pointer == "/a/7"
    assert max(len(violation.message) for violation in failure.violations) <= 300


def test_a_pointer_escapes_its_keys() -> None:
    failure = violation_error(compile_schema(closed()), {"a/b~c": 1}, "entity.data")
    assert failure.violations[0].pointer == "/a~1b~0c"


def test_field_types_are_read_through_references() -> None:
    schema = {
        **closed(name=TEXT, tags={"type": "array", "items": TEXT}, first={"$ref": "#/$defs/node"}, any={}),
        "$defs": {"node": NODE},
    }
    types = field_types(schema)
    assert types[("name",)] == {"string"}
    assert types[("tags",)] == {"array"}
    assert types[("tags", "[]")] == {"string"}
    assert types[("first", "next", "value")] == {"number", "null"}
    assert ("any",) not in types
