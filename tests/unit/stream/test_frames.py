"""Requests as WebSocket frames: what is one, and what is none."""

from __future__ import annotations

import json

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest

from services.stream.frames import Misfit, parse_frame

NAMES = st.sampled_from(["create", "cancel", "progress", "refresh", "watchId", "watch_id", "watch", "now", "afterTime"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON.map(json.dumps) | st.text(max_size=30))
def test_any_frame_is_a_request_or_refused_as_an_invalid_argument(text: str) -> None:
    read = parse_frame(text)
    if isinstance(read, Misfit):
        assert read.error.reason in ("INVALID_FIELD", "UNKNOWN_FIELD")
        assert read.error.violations
        assert "google" not in read.error.message
    else:
        assert parse_frame(json_format.MessageToJson(read)) == read


MISFITS = {
    '{"create": {"watchId": "a", "watch": {"since": 1}}}': ("a", "create.watch.since"),
    '{"create": {"watchId": "a", "watch": {"types": "buoy"}}}': ("a", "create.watch.types"),
    '{"create": {"watchId": "a", "watch": {"types": ["buoy", 7]}}}': ("a", "create.watch.types[1]"),
    '{"create": {"watchId": "a", "watch": {"readMask": [null]}}}': ("a", "create.watch.read_mask[0]"),
    '{"create": {"watchId": "a", "watch": {"now": "true"}}}': ("a", "create.watch.now"),
    '{"create": {"watchId": "a", "watch": {"afterRevision": "x"}}}': ("a", "create.watch.after_revision"),
    '{"create": {"watchId": "a", "watch": {"afterRevision": 1e400}}}': ("a", "create.watch.after_revision"),
    '{"create": {"watchId": "a", "watch": {"afterTime": "today"}}}': ("a", "create.watch.after_time"),
    '{"create": {"watchId": "a", "watch": {"progressInterval": "1h"}}}': ("a", "create.watch.progress_interval"),
    '{"create": {"watchId": "a", "watch": {"now": true, "snapshot": true}}}': ("a", "create.watch.snapshot"),
    '{"create": {"watchId": "a", "watch": {"after_revision": 1, "afterRevision": 2}}}': (
        "a",
        "create.watch.after_revision",
    ),
    '{"create": {"watchId": "a", "watch": 7}}': ("a", "create.watch"),
    '{"create": {"watch_id": "a", "watch": []}}': ("a", "create.watch"),
    '{"cancel": {"watchId": "a", "why": ""}}': ("a", "cancel.why"),
    '{"create": {"watchId": 7, "watch": {}}}': ("", "create.watch_id"),
    '{"create": {"watchId": "a", "watch_id": "b"}}': ("", "create.watch_id"),
    '{"create": {"watchId": "a", "watch_id": null}}': ("", "create.watch_id"),
    '{"create": "a"}': ("", "create"),
    '{"subscribe": {}}': ("", "subscribe"),
    '{"cancel": {"watchId": "a"}, "progress": {"watchId": "a"}}': ("", "progress"),
    '{"cancel": {"watchId": "a", "watchId": "b"}}': ("", "watchId"),
    "[1]": ("", "request"),
    "{": ("", "request"),
    "[" * 60_000: ("", "request"),
}


@pytest.mark.parametrize(("text", "expected"), MISFITS.items(), ids=[text[:60] for text in MISFITS])
def test_what_misfits_is_named_by_its_path_with_the_watch_that_it_is_about(
    text: str, expected: tuple[str, str]
) -> None:
    misfit = parse_frame(text)
    assert isinstance(misfit, Misfit)
    assert (misfit.watch_id, misfit.error.violations[0].field) == expected


def test_names_may_be_written_in_both_ways() -> None:
    expected = WatchManyRequest(cancel=WatchManyRequest.Cancel(watch_id="a"))
    assert parse_frame('{"cancel": {"watchId": "a"}}') == parse_frame('{"cancel": {"watch_id": "a"}}') == expected
