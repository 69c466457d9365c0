"""The checker against generated documents: what it calls compatible is, and it always answers."""

from __future__ import annotations

import itertools
from random import Random
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.entity.compatibility import MAX_STEPS, Comparison, Mode, NotASchema
from services.entity.schemas import compile_schema, rules_out
from services.runtime.filters.paths import reached
from tests.unit.entity.random_schemas import NAMES, Documents, Schemas

TEXT = {"type": "string"}
CLOSED = {"type": "object", "additionalProperties": False}
RANDOM = st.randoms(use_true_random=False)
BOUNDED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def compiled(schema: dict[str, Any]) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema, pattern_options=jsonschema_rs.RegexOptions(), offline=True)


@BOUNDED
@given(RANDOM)
@example(Random(145837))
def test_what_was_valid_stays_valid_when_the_checker_says_so(random: Random) -> None:
    schemas, documents = Schemas(random), Documents(random)
    old = schemas.schema()
    new = schemas.changed(old) if random.random() < 0.85 else schemas.schema()
    try:
        differences = Comparison([old], new).differences(Mode.BACKWARD)
    except NotASchema:
        return  # a reference that leads back to itself for the same value; types may not have one either
    if differences:
        return
    before, after = compiled(old), compiled(new)
    for _ in range(40):
        document = documents.near(old, old)
        assert after.is_valid(document) or not before.is_valid(document), (old, new, document)


@BOUNDED
@given(RANDOM)
def test_a_schema_is_compatible_with_itself(random: Random) -> None:
    schema = Schemas(random).schema()
    try:
        comparison = Comparison([schema], schema)
    except NotASchema:
        return
    assert comparison.differences(Mode.FULL) == []


@BOUNDED
@given(RANDOM)
def test_no_valid_data_has_anything_where_the_schema_rules_it_out(random: Random) -> None:
    schema = {**Schemas(random).schema(), "type": "object"}
    try:
        Comparison([], schema)
    except NotASchema:
        return
    ruled_out = [
        path for length in (1, 2) for path in itertools.product(NAMES, repeat=length) if rules_out(schema, path)
    ]
    validator, documents = compile_schema(schema), Documents(random)
    for _ in range(40):
        document = documents.near(schema, schema)
        if isinstance(document, dict) and validator.is_valid(document):
            assert not [path for path in ruled_out if list(reached(document, path))], (schema, document)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({}, ("b",)),
        ({"additionalProperties": {"type": "string"}}, ("b", "c")),
        ({"unevaluatedProperties": False}, ("b",)),
        ({"properties": {"b": False}}, ("b",)),
        ({"properties": {"b": {"type": ["string", "null"]}}}, ("b", "c")),
        ({"properties": {"b": {"$ref": "#/$defs/b"}}, "$defs": {"b": CLOSED}}, ("b", "c")),
        ({"properties": {"b": {"type": "array", "items": {"type": "string"}}}}, ("b", "c")),
        ({"additionalProperties": True, "allOf": [{"additionalProperties": False}]}, ("b",)),
    ],
)
def test_a_closed_schema_rules_out_what_it_does_not_name(schema: dict[str, Any], path: tuple[str, ...]) -> None:
    assert rules_out({"type": "object", **schema}, path)


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"additionalProperties": True}, ("b",)),
        ({"patternProperties": {"^b": {}}}, ("b",)),
        ({"unevaluatedProperties": False, "allOf": [{"properties": {"b": {}}}]}, ("b",)),
        ({"properties": {"b": {"type": "object"}}}, ("b", "c")),
        ({"properties": {"b": {"items": {"type": "object"}}}}, ("b", "c")),
        ({"properties": {"b": {"prefixItems": [{}], "items": False}}}, ("b", "c")),
        ({"properties": {"b": {"$ref": "#"}}}, ("b", "b", "b")),
    ],
)
def test_what_may_be_there_is_not_ruled_out(schema: dict[str, Any], path: tuple[str, ...]) -> None:
    assert not rules_out({"type": "object", **schema}, path)


def test_a_type_may_become_open_but_not_closed_again() -> None:
    closed: dict[str, Any] = {"type": "object", "properties": {"a": {}}}
    assert not compile_schema(closed).is_valid({"b": 1})
    opened = {**closed, "additionalProperties": True}
    assert not Comparison([{**closed, "additionalProperties": False}], opened).differences(Mode.BACKWARD)
    assert Comparison([opened], {**closed, "additionalProperties": False}).differences(Mode.BACKWARD)


def product(groups: int, width: int, offset: int) -> dict[str, Any]:
    """*width* to the power of *groups* combinations."""
    groups_ = [[{"required": [f"a{group}_{place + offset}"]} for place in range(width)] for group in range(groups)]
    return {"allOf": [{"anyOf": alternatives} for alternatives in groups_]}


def maze(size: int, ends: list[str]) -> dict[str, Any]:
    """Definitions that lead to each other in many ways."""
    defs: dict[str, Any] = {}
    for place in range(size):
        defs[f"d{place}"] = {
            "anyOf": [
                {"properties": {name: {"$ref": f"#/$defs/d{(place * step + 1) % size}"}}, "required": [f"r{place}"]}
                for name, step in (("a", 7), ("b", 3), ("c", 5))
            ]
        }
    defs["d0"]["anyOf"].append({"type": ends})
    return {"$ref": "#/$defs/d1", "$defs": defs}


def chain(length: int, end: dict[str, Any]) -> dict[str, Any]:
    """Each definition has to know what the ones behind it evaluate."""
    defs: dict[str, Any] = {f"d{length}": end}
    for place in range(length):
        following = {"$ref": f"#/$defs/d{place + 1}", "properties": {f"p{place}": {}}}
        defs[f"d{place}"] = {**following, "unevaluatedProperties": TEXT}
    return {"$ref": "#/$defs/d0", "$defs": defs}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (chain(600, {}), chain(600, {"properties": {"z": TEXT}})),
        (product(12, 4, 0), product(12, 4, 1)),
        ({"not": product(8, 6, 0)}, {"not": product(8, 6, 1)}),
        (maze(60, ["null"]), maze(60, ["null", "string"])),
        (maze(60, ["null", "string"]), maze(60, ["null"])),
        (
            {"patternProperties": {f"x{n}": {"maxLength": n} for n in range(60)}, "additionalProperties": {}},
            {"patternProperties": {f"y{n}": {"maxLength": n} for n in range(60)}, "additionalProperties": False},
        ),
        ({"oneOf": [{"maxLength": n} for n in range(300)]}, {"oneOf": [{"minLength": n} for n in range(300)]}),
        ({"enum": [f"v{n}" for n in range(5000)]}, {"enum": [f"v{n}" for n in range(1, 5000)]}),
    ],
    ids=["chain", "product", "negated product", "maze", "maze back", "patterns", "oneOf", "enum"],
)
def test_hostile_schemas_are_answered_within_the_bound_of_steps(old: Any, new: Any) -> None:
    comparison = Comparison([old], new)
    comparison.differences(Mode.FULL_TRANSITIVE)
    # A step goes below zero once, and that ends the comparison.
    assert comparison.steps <= 2 * MAX_STEPS


def test_a_comparison_that_runs_out_of_steps_says_so() -> None:
    comparison = Comparison([product(12, 4, 0)], product(12, 4, 1), max_steps=1000)
    assert "TOO_COMPLEX" in [one.rule for one in comparison.differences(Mode.BACKWARD)]
