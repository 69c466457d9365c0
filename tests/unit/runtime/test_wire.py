"""The hand-written encoding says the same as protobuf's own, and the rules for JSON hold in both forms."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.runtime import wire
from services.runtime.errors import InvalidArgument

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
numbers = st.integers(-wire.MAX_INTEGER, wire.MAX_INTEGER) | st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda number: abs(number) <= wire.MAX_INTEGER
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
objects = st.dictionaries(texts, values, max_size=6)


def plain(value: Any) -> Any:
    """*value* with numbers as the contract prints them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value == int(value) else value


@given(objects)
def test_a_struct_reads_back_as_what_was_encoded(value: dict[str, Any]) -> None:
    struct = Struct.FromString(wire.encode_struct(value))
    assert struct == json_format.ParseDict(value, Struct())
    assert wire.decode_struct(struct) == plain(value)


@pytest.mark.parametrize("key_length", [0, 1, 63, 64, 113, 114, 120, 121, 127, 128, 300])
def test_lengths_on_both_sides_of_a_byte_are_encoded_alike(key_length: int) -> None:
    key = "k" * key_length
    for item in ["x" * length for length in range(140)] + ["é" * 60, "x" * 20_000, 0.5, 7, True, None, [1], {"a": "b"}]:
        assert Struct.FromString(wire.encode_struct({key: item})) == json_format.ParseDict({key: item}, Struct())


@given(objects)
def test_json_and_struct_have_one_meaning(value: dict[str, Any]) -> None:
    assert wire.parse_json(json.dumps(value).encode()) == wire.decode_struct(
        Struct.FromString(wire.encode_struct(value))
    )


@given(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1)))  # noqa: DTZ001  (made aware below)
def test_a_timestamp_is_exact_to_the_microsecond(moment: datetime) -> None:
    aware = moment.replace(tzinfo=UTC)
    encoded = wire.timestamp(2, aware)
    assert Timestamp.FromString(encoded[2:]).ToDatetime(tzinfo=UTC) == aware


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "must be a JSON object"),
        (b'{"a":1,"a":2}', "has the key 'a' twice"),
        (b'{"a":{"b":1,"b":2}}', "has the key 'b' twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":1} x', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid JSON"),
        (b'{"a":9007199254740992}', "beyond 2^53 - 1"),
        (b'{"a":-9007199254740992.0}', "beyond 2^53 - 1"),
        (b'{"a":1e400}', "not finite"),
        (b'{"a":"\\u0000"}', "U+0000"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32 deep"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
    ],
)
def test_json_that_breaks_a_rule_is_refused_with_the_rule(raw: bytes, says: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        wire.parse_json(raw)
    assert refused.value.reason == "INVALID_FIELD"
    assert says in refused.value.message


def test_a_violation_points_at_the_value() -> None:
    with pytest.raises(InvalidArgument) as refused:
        wire.parse_json(b'{"a/b":[1,{"c~":1e17}]}')
    assert refused.value.violations[0].pointer == "/a~1b/1/c~0"


def test_five_is_five_however_it_is_written() -> None:
    assert wire.parse_json(b'{"a":5.0,"b":5,"c":5e0}') == {"a": 5, "b": 5, "c": 5}
    assert all(isinstance(number, int) for number in wire.parse_json(b'{"a":5.0}').values())


@pytest.mark.parametrize("key", ["\x00", "a\x00", "\ud800"])
def test_a_key_that_cannot_be_kept_is_refused_like_a_value(key: str) -> None:
    for raw in (json.dumps({key: 1}), json.dumps({"a": [{key: 1}]})):
        with pytest.raises(InvalidArgument) as refused:
            wire.parse_json(raw.encode())
        assert refused.value.reason == "INVALID_FIELD"
    if key != "\ud800":  # protobuf holds no surrogates
        struct = Struct()
        struct["outer"] = {key: 1}
        with pytest.raises(InvalidArgument):
            wire.decode_struct(struct)
