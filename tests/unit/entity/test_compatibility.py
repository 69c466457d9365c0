"""Which schemas may follow which, what the differences are called, and where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.entity.compatibility import RULES, Comparison, Mode, NotASchema, absent_fields, as_type
from services.entity.evolution import judge
from services.entity.schemas import check_schema
from services.runtime.errors import FailedPrecondition

TEXT = {"type": "string"}
DOCS = Path(__file__).parents[3] / "docs" / "schemas.md"


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def closed(**properties: Any) -> dict[str, Any]:
    return {**obj(**properties), "additionalProperties": False}


def rules(old: Any, new: Any, mode: Mode = Mode.BACKWARD) -> list[tuple[str, str]]:
    return [(one.rule, one.path) for one in Comparison([old], new).differences(mode)]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (TEXT, {"type": "integer"}, [("TYPE_NARROWED", "/type")]),
        ({"type": "number"}, {"type": "integer"}, [("TYPE_NARROWED", "/type")]),
        ({"type": ["string", "null"]}, TEXT, [("TYPE_NARROWED", "/type")]),
        ({"enum": [1, 2]}, {"enum": [1]}, [("ENUM_NARROWED", "/enum")]),
        ({"enum": [1, 2]}, {"const": 1}, [("CONST_CHANGED", "/const")]),
        ({"minimum": 1}, {"minimum": 2}, [("MINIMUM_RAISED", "/minimum")]),
        ({"minimum": 1}, {"exclusiveMinimum": 1}, [("MINIMUM_RAISED", "/exclusiveMinimum")]),
        ({"maximum": 2}, {"maximum": 1}, [("MAXIMUM_LOWERED", "/maximum")]),
        ({"multipleOf": 2}, {"multipleOf": 4}, [("MULTIPLE_OF_NARROWED", "/multipleOf")]),
        ({"minLength": 1}, {"minLength": 2}, [("MIN_LENGTH_RAISED", "/minLength")]),
        ({"maxLength": 2}, {"maxLength": 1}, [("MAX_LENGTH_LOWERED", "/maxLength")]),
        ({"pattern": "a"}, {"pattern": "^a"}, [("PATTERN_CHANGED", "/pattern")]),
        ({"minItems": 1}, {"minItems": 2}, [("MIN_ITEMS_RAISED", "/minItems")]),
        ({"maxItems": 2}, {"maxItems": 1}, [("MAX_ITEMS_LOWERED", "/maxItems")]),
        ({}, {"uniqueItems": True}, [("UNIQUE_ITEMS_ADDED", "/uniqueItems")]),
        ({}, {"items": TEXT}, [("ITEMS_NARROWED", "/items")]),
        ({}, {"prefixItems": [TEXT]}, [("ITEMS_NARROWED", "/prefixItems/0")]),
        ({"items": {"type": "number"}}, {"items": {"type": "integer"}}, [("TYPE_NARROWED", "/items/type")]),
        ({"contains": {}}, {"contains": TEXT}, [("CONTAINS_NARROWED", "/contains")]),
        ({}, {"contains": TEXT, "minContains": 0, "maxContains": 2}, [("CONTAINS_NARROWED", "/maxContains")]),
        (closed(a=TEXT), closed(), [("PROPERTY_REMOVED_FROM_CLOSED", "/properties/a")]),
        (obj(), obj(a=TEXT), [("PROPERTY_ADDED_TO_OPEN", "/properties/a")]),
        (obj(), closed(), [("ADDITIONAL_PROPERTIES_NARROWED", "/additionalProperties")]),
        ({}, {"patternProperties": {"^a": TEXT}}, [("PATTERN_PROPERTIES_NARROWED", "/patternProperties/^a")]),
        ({}, {"propertyNames": {"maxLength": 3}}, [("PROPERTY_NAMES_NARROWED", "/propertyNames")]),
        (obj(a=TEXT), {**obj(a=TEXT), "required": ["a"]}, [("REQUIRED_ADDED", "/required")]),
        ({}, {"minProperties": 1}, [("MIN_PROPERTIES_RAISED", "/minProperties")]),
        ({"maxProperties": 2}, {"maxProperties": 1}, [("MAX_PROPERTIES_LOWERED", "/maxProperties")]),
        ({}, {"dependentRequired": {"a": ["b"]}}, [("DEPENDENT_REQUIRED_ADDED", "/dependentRequired/a")]),
        ({}, {"dependentSchemas": {"a": {"maxProperties": 1}}}, [("DEPENDENT_SCHEMA_NARROWED", "/dependentSchemas/a")]),
        ({"anyOf": [TEXT, {"type": "null"}]}, {"anyOf": [TEXT]}, [("ANY_OF_NARROWED", "/anyOf")]),
        ({"maxLength": 3}, {"oneOf": [TEXT, {"maxLength": 3}]}, [("ONE_OF_NARROWED", "/oneOf")]),
        ({}, {"not": TEXT}, [("NOT_EXTENDED", "/not")]),
        ({}, {"if": TEXT, "then": {"maxLength": 1}}, [("CONDITION_NARROWED", "/then")]),
        (closed(a=TEXT), closed(a=False), [("NOTHING_ALLOWED", "/properties/a")]),
        (
            obj(**{"a/b": TEXT}),
            obj(**{"a/b": {"maxLength": 1}}),
            [("MAX_LENGTH_LOWERED", "/properties/a~1b/maxLength")],
        ),
    ],
)
def test_each_narrowing_has_a_name_and_a_place(old: Any, new: Any, expected: list[tuple[str, str]]) -> None:
    assert rules(old, new) == expected
    assert {rule for rule, _ in expected} <= set(RULES)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"type": "integer"}, {"type": "number"}),
        (closed(a=TEXT), closed(a=TEXT, b=TEXT)),
        (closed(a=TEXT), {**obj(a=TEXT), "additionalProperties": TEXT}),
        ({"enum": [1, "a"]}, {"type": ["integer", "string"]}),
        ({"const": 5}, {"multipleOf": 2.5, "minimum": 5.0}),
        ({"type": "integer", "minimum": 1, "maximum": 3}, {"enum": [3, 2, 1.0]}),
        ({"multipleOf": 0.2}, {"multipleOf": 0.1}),
        ({"allOf": [TEXT, {"maxLength": 3}]}, {"type": "string", "maxLength": 4}),
        ({"type": ["string", "null"]}, {"anyOf": [{"type": "null"}, TEXT]}),
        ({"anyOf": [closed(k={"const": 1}), closed(k={"const": 2})]}, {"anyOf": [closed(k={"enum": [1, 2]})]}),
        ({"type": "object", "required": ["k"], "oneOf": [obj(k={"const": n}) for n in range(3)]},
         {"type": "object", "required": ["k"], "oneOf": [obj(k={"const": n}) for n in range(4)]}),
        ({"not": {"type": ["string", "null"]}}, {"not": TEXT}),
        ({"if": TEXT, "then": {"maxLength": 2}, "else": {"minimum": 2}}, {"if": TEXT, "then": {"maxLength": 3}}),
        ({"if": TEXT, "then": False, "else": {"type": "number"}}, {"type": "number"}),
        ({"items": TEXT}, {"prefixItems": [{"type": ["string", "null"]}], "items": TEXT}),
        ({"prefixItems": [TEXT], "items": False}, {"maxItems": 1}),
        ({"contains": {"const": 1}, "minContains": 2}, {"contains": {"type": "integer"}}),
        ({"minItems": 2, "items": TEXT}, {"contains": TEXT, "minContains": 2}),
        ({"patternProperties": {"^a": TEXT}, "additionalProperties": False}, {"propertyNames": {"pattern": "^a"}}),
        ({"properties": {"ab": {"type": "integer"}}, "additionalProperties": False},
         {"patternProperties": {"^a": {"type": "number"}}, "additionalProperties": False}),
        ({"dependentRequired": {"a": ["b"]}, "required": ["a"]}, {"required": ["b"]}),
        ({"allOf": [obj(a=TEXT)], "unevaluatedProperties": False}, 
         {"unevaluatedProperties": False, "properties": {"a": {}, "b": {}}}),
        ({"$ref": "#/$defs/a", "$defs": {"a": TEXT}}, TEXT),
        ({"format": "date"}, {"format": "time"}),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, {"type": "null"}),
    ],
)  # fmt: skip
def test_what_allows_all_that_was_allowed_is_compatible(old: Any, new: Any) -> None:
    assert rules(old, new) == []


def node(**value: Any) -> dict[str, Any]:
    return {"$ref": "#/$defs/n", "$defs": {"n": obj(next={"$ref": "#/$defs/n"}, value=value)}}


def test_recursive_schemas_are_compared_by_assuming_what_is_being_shown() -> None:
    assert rules(node(type="integer"), node(type="number")) == []
    assert rules(node(type="number"), node(type="integer")) == [("TYPE_NARROWED", "/$defs/n/properties/value/type")]
    unrolled = obj(next=obj(next={"$ref": "#"}, value={"type": "integer"}), value={"type": "integer"})
    assert rules(node(type="integer"), unrolled) == []


def test_a_schema_that_no_finite_value_meets_is_within_every_other() -> None:
    endless = {"type": "object", "required": ["next"], "properties": {"next": {"$ref": "#"}}}
    assert rules(endless, {"type": "null"}) == []


OLD = obj(a=TEXT, b=obj(c=TEXT))


def refusal(mode: Mode, versions: list[dict[str, Any]], schema: dict[str, Any]) -> FailedPrecondition | None:
    return judge(len(versions), versions, schema, mode, ()).refusal


@pytest.mark.parametrize(
    ("mode", "new", "places"),
    [
        (Mode.BACKWARD, {**OLD, "title": "A buoy"}, []),
        (Mode.BACKWARD, obj(**OLD["properties"], d=TEXT), []),
        (Mode.BACKWARD, {**obj(**OLD["properties"], d=TEXT), "required": ["d"]}, ["/required"]),
        (Mode.BACKWARD, obj(a=TEXT), ["/properties/b"]),
        (Mode.BACKWARD, obj(a=TEXT, b=obj(c=TEXT, d=TEXT)), ["/properties/b/properties/d"]),
        (Mode.FORWARD, obj(**OLD["properties"], d=TEXT), ["/properties/d"]),
        (Mode.FORWARD, obj(a=TEXT), []),
        (Mode.FORWARD, {**OLD, "required": ["a"]}, []),
        (Mode.FULL, obj(**OLD["properties"], d=TEXT), ["/properties/d"]),
        (Mode.FULL, {**OLD, "description": "x"}, []),
        (Mode.NONE, {"type": "object", "minProperties": 9}, []),
    ],
)
def test_a_type_is_closed_and_keeps_what_its_mode_promises(mode: Mode, new: dict[str, Any], places: list[str]) -> None:
    failure = refusal(mode, [OLD], new)
    if failure is None:
        assert places == []
        return
    assert failure.reason == "INCOMPATIBLE_SCHEMA"
    assert [violation.pointer for violation in failure.violations] == places


def test_a_refusal_says_the_rule_and_which_modes_would_allow_the_change() -> None:
    failure = refusal(Mode.BACKWARD, [OLD], obj(a=TEXT))
    assert failure is not None
    assert failure.metadata == {
        "rule": "PROPERTY_REMOVED_FROM_CLOSED",
        "allowed_by": "NONE, FORWARD, FORWARD_TRANSITIVE",
    }
    assert "FORWARD" in failure.message
    assert failure.violations[0].message.startswith("PROPERTY_REMOVED_FROM_CLOSED: ")


def test_transitive_looks_at_all_versions() -> None:
    versions = [obj(a=TEXT), obj(a=TEXT, b={"type": "integer"}), obj(a=TEXT)]
    assert refusal(Mode.BACKWARD, versions, obj(a=TEXT, b=TEXT)) is None
    assert refusal(Mode.BACKWARD_TRANSITIVE, versions, obj(a=TEXT, b=TEXT)) is not None


@pytest.mark.parametrize(
    ("schema", "path", "there"),
    [
        (OLD, ("a",), True),
        (OLD, ("b", "c"), True),
        (OLD, ("c",), False),
        (OLD, ("a", "c"), False),
        (OLD, ("b", "z"), True),
        (obj(b=closed(c=TEXT)), ("b", "z"), False),
        (obj(ports={"type": "array", "items": closed(size=TEXT)}), ("ports", "size"), True),
        (obj(ports={"type": "array", "items": closed(size=TEXT)}), ("ports", "depth"), False),
        ({**OLD, "additionalProperties": True}, ("z",), True),
        ({**obj(), "patternProperties": {"^x": TEXT}}, ("x1",), True),
        (obj(n={"$ref": "#/$defs/n"}) | {"$defs": {"n": closed(n={"$ref": "#/$defs/n"})}}, ("n", "n", "n"), True),
        (obj(a=False), ("a",), False),
    ],
)
def test_which_fields_data_may_have_is_read_from_the_schema(schema: Any, path: tuple[str, ...], there: bool) -> None:
    assert absent_fields(as_type(schema), [path]) == (set() if there else {path})


def test_a_judgement_names_the_fields_that_go_and_whether_entities_may_be_invalid() -> None:
    fields = [("a",), ("b", "c"), ("d",)]
    found = judge(1, [OLD], obj(a=TEXT, d=TEXT), Mode.NONE, fields)
    assert (found.refusal, found.keeps_old, found.removed) == (None, False, frozenset({("b", "c")}))
    assert judge(1, [OLD], obj(**OLD["properties"], d=TEXT), Mode.NONE, fields).keeps_old


DRAFT_07 = {"$schema": "http://json-schema.org/draft-07/schema#"}


def test_draft_07_is_translated() -> None:
    old = {
        **DRAFT_07,
        "items": [TEXT],
        "additionalItems": {"$ref": "#/definitions/n", "minimum": 9},
        "definitions": {"n": {"type": "number", "minimum": 2, "exclusiveMinimum": True}},
        "dependencies": {"a": ["b"], "c": {"required": ["d"]}},
    }
    new = {
        "prefixItems": [TEXT],
        "items": {"type": "number", "exclusiveMinimum": 2},
        "dependentRequired": {"a": ["b"]},
        "dependentSchemas": {"c": {"required": ["d"]}},
    }
    assert rules(old, new, Mode.FULL) == []
    assert rules(old, {**new, "items": {"type": "integer"}}) == [("TYPE_NARROWED", "/items/type")]
    assert rules({**DRAFT_07}, {**DRAFT_07, "items": [TEXT]}) == [("ITEMS_NARROWED", "/items/0")]


def test_draft_07_is_taken_as_written_and_2020_12_as_a_type() -> None:
    assert as_type(obj()) == closed()
    assert as_type({**DRAFT_07, **obj()}) == {**DRAFT_07, **obj()}
    assert as_type({"unevaluatedProperties": True, **obj()}) == {"unevaluatedProperties": True, **obj()}


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        (5, ""),
        ({"type": "thing"}, "/type"),
        ({"properties": []}, "/properties"),
        ({"items": [TEXT]}, "/items"),
        ({"minLength": -1}, "/minLength"),
        ({"required": [1]}, "/required"),
        ({"anyOf": []}, "/anyOf"),
        ({"properties": {"a": 1}}, "/properties/a"),
        ({"$ref": "https://example.com/x"}, "/$ref"),
        ({"$ref": "#/$defs/x"}, "/$ref"),
        ({"$dynamicRef": "#x"}, "/$dynamicRef"),
        ({"allOf": [{"$ref": "#"}]}, "/allOf/0"),
        ({"$schema": "https://example.com/other"}, "/$schema"),
        (json.loads('{"not":' * 300 + "{}" + "}" * 300), ""),
        ({"enum": json.loads("[" * 900 + "]" * 900)}, ""),
    ],
)
def test_what_is_no_schema_is_refused_with_its_place(schema: Any, pointer: str) -> None:
    with pytest.raises(NotASchema) as raised:
        Comparison([], schema)
    assert raised.value.pointer == pointer


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "dependencies": {"a": ["b"], "b": {"required": ["c"]}, "c": True}},
        {"type": "object", "properties": {"a": {"$recursiveRef": "#"}, "b": {"$anchor": "b"}}},
        {"$id": "https://example.com/a", "type": "object", "properties": {"a": {"$ref": "#/$defs/a~1b%25"}},
         "$defs": {"a/b%": {"type": ["integer", "number"], "enum": [], "minimum": -1e300, "maxLength": 1e300}}},
        {"type": "object", "properties": {"a": {"$ref": "#/allOf/0"}}, "allOf": [{"minProperties": 0.0}],
         "unknown": {"type": "nothing"}, "examples": [{"$ref": 5}], "default": {"type": 1}},
        {"type": "object", "if": True, "then": {}, "else": False, "minContains": 3, "additionalItems": 5},
    ],
)  # fmt: skip
def test_whatever_a_type_may_be_declared_with_can_be_compared(schema: dict[str, Any]) -> None:
    check_schema(schema, "type.schema")
    assert Comparison([as_type(schema)], as_type(schema)).differences(Mode.FULL) == []


def test_every_rule_is_documented() -> None:
    text = DOCS.read_text()
    assert [rule for rule in RULES if f"`{rule}`" not in text] == []
