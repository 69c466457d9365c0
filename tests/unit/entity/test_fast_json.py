"""The fast way of reading JSON agrees with the slow one on everything."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.entity.fast_json import parse_json
from services.runtime import wire
from services.runtime.errors import Error

numbers = st.one_of(st.integers(-(2**60), 2**60), st.floats(), st.sampled_from([5.0, -0.0, 2.0**53, 2**53 - 1]))
texts = st.one_of(st.text(max_size=5), st.sampled_from([":", "a:b", '"', "\\", "\u0000", "\\u003a", "ä"]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


def outcome(parse: Any, raw: bytes) -> Any:
    """The value with its types, or the refusal."""
    try:
        return repr(parse(raw, "data_json"))
    except Error as failure:
        return failure.reason, failure.message, failure.violations


@given(value=st.dictionaries(texts, values, max_size=4), escaped=st.booleans(), spaces=st.booleans())
def test_both_ways_give_the_same(value: dict[str, Any], escaped: bool, spaces: bool) -> None:
    raw = json.dumps(value, ensure_ascii=escaped, indent=1 if spaces else None).encode(errors="surrogatepass")
    assert outcome(parse_json, raw) == outcome(wire.parse_json, raw)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1, "a": 2}',
        b'{"a":":","a":1}',
        b'{"a": 1, "a" : ":"}',
        b'{"a":1,"a":"\\u003a"}',
        b'{"x":[{"a":1,"a":2}]}',
        b'{"x":{"a":"b:c","a":"d"}}',
    ],
)
def test_a_key_written_twice_is_always_found(raw: bytes) -> None:
    with pytest.raises(Error, match="'a' twice"):
        parse_json(raw, "data_json")


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b"null", b'{"a":1}x', b"\xff", b'{"a":' * 33 + b"1" + b"}" * 33])
def test_what_is_refused_is_refused_in_the_same_words(raw: bytes) -> None:
    assert outcome(parse_json, raw) == outcome(wire.parse_json, raw)
    assert isinstance(outcome(parse_json, raw), tuple)
