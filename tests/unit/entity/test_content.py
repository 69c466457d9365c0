"""Merging, canonical form, and what a type makes of content."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from strandline.entity.v1 import entity_pb2

from services.entity.content import CompiledType, canonical, merge
from services.entity.index_keys import parse_index
from services.entity.list_queries import Position
from services.entity.lists import decode_position, encode_position
from services.entity.model import EntityType, Index, IndexState, encode_entity, encode_type
from services.entity.mutations import Kind, Mutation, fingerprint
from services.entity.schemas import field_types
from services.runtime import wire
from services.runtime.errors import InvalidArgument
from services.runtime.masks import EVERYTHING, parse_mask

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, UTC)


def a_type(schema: dict[str, Any], *fields: list[str], unique: bool = False) -> CompiledType:
    types = field_types(schema)
    indexes = tuple(
        Index(number, tuple(names), parse_index(names, unique=unique, field_types=types), IndexState.READY)
        for number, names in enumerate(fields, 1)
    )
    return CompiledType(EntityType("buoy", 1, 1, 2, schema, indexes, 7, NOW, NOW))


@pytest.mark.parametrize(
    ("current", "content", "mask", "expected"),
    [
        ({"a": 1, "b": 2}, {"a": 3}, [("a",)], {"a": 3, "b": 2}),
        ({"a": 1, "b": 2}, {}, [("a",)], {"b": 2}),
        ({"a": {"x": 1, "y": 2}}, {"a": {"x": 3}}, [("a", "x")], {"a": {"x": 3, "y": 2}}),
        ({"a": {"x": 1, "y": 2}}, {}, [("a", "x")], {"a": {"y": 2}}),
        ({"a": 1}, {"a": {"x": 3}}, [("a", "x")], {"a": {"x": 3}}),
        ({"a": 1}, {}, [("a", "x"), ("b", "c")], {"a": 1}),
        ({}, {"a": {"b": {"c": None}}}, [("a", "b", "c")], {"a": {"b": {"c": None}}}),
    ],
)
def test_a_mask_takes_what_it_names(current: Any, content: Any, mask: Any, expected: Any) -> None:
    before = canonical(current)
    assert merge(current, content, mask) == expected
    assert canonical(current) == before


def test_the_canonical_form_knows_true_from_one_and_not_one_order_from_another() -> None:
    assert canonical({"a": 1, "b": {"c": 1, "d": 2}}) == canonical({"b": {"d": 2, "c": 1}, "a": 1})
    assert canonical({"a": 1}) != canonical({"a": True})


def test_fingerprints_differ_when_anything_asked_for_differs() -> None:
    base = Mutation(Kind.UPDATE, "namespaces/n/types/t/entities/e", ("t", "e"), "f", {"a": 1}, b'{"a":1}')  # type: ignore[arg-type]  # a plain tuple does
    others = [
        base._replace(kind=Kind.CREATE),
        base._replace(name="namespaces/n/types/t/entities/f"),
        base._replace(json=b'{"a":2}'),
        base._replace(mask=(("a",),)),
        base._replace(mask=EVERYTHING),
        base._replace(etag='"1"'),
        base._replace(allow_missing=True),
    ]
    prints = {fingerprint([mutation]) for mutation in (base, *others)} | {fingerprint([base, base])}
    assert len(prints) == len(others) + 2
    assert fingerprint([base._replace(field="elsewhere")]) == fingerprint([base])


def test_masks_are_paths_in_data() -> None:
    assert parse_mask(["data.a.`odd key`"], "m") == (("a", "odd key"),)
    assert parse_mask(["*"], "m") == parse_mask(["data"], "m") == EVERYTHING
    assert parse_mask([], "m") == ()
    assert parse_mask(["data." + "a" * 4091], "m")
    for wrong in (["a"], ["*", "data.a"], ["data.a "], ["data.`"], ["data." + "a" * 4092]):
        with pytest.raises(InvalidArgument):
            parse_mask(wrong, "m")


def test_an_encoded_entity_is_what_its_proto_says() -> None:
    raw = encode_entity(
        "namespaces/n/types/t/entities/e",
        "t",
        uid="u",
        struct=wire.encode_struct({"a": 1}),
        revision=5,
        create_time=NOW,
        update_time=NOW,
        expire_time=NOW,
        delete_time=NOW,
        created_by="ann",
        updated_by="bob",
    )
    entity = entity_pb2.Entity.FromString(raw)
    assert (entity.name, entity.type, entity.uid, entity.etag, entity.revision) == (
        "namespaces/n/types/t/entities/e",
        "t",
        "u",
        '"5"',
        5,
    )
    assert entity.create_time.ToDatetime(UTC) == entity.update_time.ToDatetime(UTC) == NOW
    assert entity.delete_time.ToDatetime(UTC) == entity.expire_time.ToDatetime(UTC) == NOW
    assert (entity.created_by, entity.updated_by) == ("ann", "bob")
    assert entity.SerializeToString(deterministic=True) == raw


def test_an_encoded_type_is_what_its_proto_says() -> None:
    compiled = a_type({"type": "object"}, ["data.a", "data.b desc"], unique=True)
    type_ = entity_pb2.EntityType.FromString(encode_type("n", compiled.type))
    assert (type_.name, type_.etag, type_.schema_version) == ("namespaces/n/types/buoy", '"7"', 1)
    (index,) = type_.indexes
    assert (list(index.fields), index.unique, index.state) == (["data.a", "data.b desc"], True, index.READY)


def test_content_is_rendered_with_its_entries() -> None:
    compiled = a_type({"type": "object", "properties": {"a": {}}}, ["data.a"], unique=True)
    rendered = compiled.render({"a": 5}, b'{"a":5}', "entity.data")
    assert len(rendered.entries) == len(rendered.unique) == 1
    assert compiled.render({}, b"{}", "entity.data").unique == ()
    assert len(compiled.render({}, b"{}", "entity.data").entries) == 1
    with pytest.raises(InvalidArgument, match="does not fit"):
        compiled.render({"b": 5}, b'{"b":5}', "entity.data")


@pytest.mark.parametrize("position", [Position(None, b"", "e1"), Position(2**40, b"\x00\xff" * 900, "x" * 128)])
def test_positions_survive_their_token(position: Position) -> None:
    assert decode_position(encode_position(position)) == position
