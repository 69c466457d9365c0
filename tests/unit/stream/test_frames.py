"""Requests as WebSocket frames: what is one, and what is none."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest

from services.runtime.errors import InvalidArgument
from services.stream.frames import parse_frame

NAMES = st.sampled_from(["create", "cancel", "progress", "refresh", "watchId", "watch_id", "watch", "now", "afterTime"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON.map(json.dumps) | st.text(max_size=30))
def test_any_frame_is_a_request_or_refused_as_an_invalid_argument(text: str) -> None:
    refusal = None
    try:
        request = parse_frame(text)
    except InvalidArgument as failure:
        refusal = failure
    if refusal is None:
        assert parse_frame(json_format.MessageToJson(request)) == request
    else:
        assert refusal.reason in ("INVALID_FIELD", "UNKNOWN_FIELD")
        assert "google" not in refusal.message


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_frame('{"create": {"watchId": "a", "watch": {"since": 1}}}')
    assert (refused.value.reason, refused.value.violations[0].field) == ("UNKNOWN_FIELD", "since")


def test_names_may_be_written_in_both_ways() -> None:
    expected = WatchManyRequest(cancel=WatchManyRequest.Cancel(watch_id="a"))
    assert parse_frame('{"cancel": {"watchId": "a"}}') == parse_frame('{"cancel": {"watch_id": "a"}}') == expected
