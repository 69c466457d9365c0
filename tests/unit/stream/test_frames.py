"""Requests as WebSocket frames: what is one, and what is none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest

from services.runtime.rpc import status_of_error
from services.stream.frames import Misfit, parse_frame

NAMES = st.sampled_from(["create", "cancel", "progress", "refresh", "watchId", "watch_id", "watch", "now", "afterTime"])
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=5)  # halves of surrogate pairs as well
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | TEXTS, inner, max_size=3),
    max_leaves=8,
)

# What looks like a number, a duration or a time, and what is no text at all.
TEXTS = st.text(alphabet="0123456789.:+-eTZsx\u0663\ud800\0", max_size=30)
Leaf = tuple[list[str], FieldDescriptor]


def leaves(descriptor: Descriptor, path: Sequence[str] = ()) -> Iterator[Leaf]:
    """The fields of the message at *path*, and of those in it, that hold no message of ours."""
    for field in descriptor.fields:
        here = [*path, field.name]
        if field.message_type and field.message_type.file.package == descriptor.file.package:
            yield from leaves(field.message_type, here)
        else:
            yield here, field


FIELDS = list(leaves(WatchManyRequest.DESCRIPTOR))


def frame(path: Sequence[str], value: object) -> str:
    """A frame with *value* at *path*."""
    for name in reversed(path):
        value = {name: value}
    return json.dumps(value)


@given(JSON.map(json.dumps) | st.text(max_size=30))
def test_any_frame_is_a_request_or_refused_as_an_invalid_argument(text: str) -> None:
    read = parse_frame(text)
    if isinstance(read, Misfit):
        assert read.error.reason in ("INVALID_FIELD", "UNKNOWN_FIELD")
        assert read.error.violations
        assert "google" not in read.error.message
        assert status_of_error(read.error).SerializeToString()
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
    '{"create": {"watchId": "a", "\\ud800": 1}}': ("a", "create.?"),
    '{"\\ud800": 1, "\\ud800": 2}': ("", "?"),
    '{"create": {"watchId": "a", "watch": {"ids": [%s7]}}}' % ('"",' * 1001): ("a", "create.watch.ids"),
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


def test_every_field_says_what_it_must_be() -> None:
    for (*outer, last), field in FIELDS:
        wrong = [{"no": "value"}] if field.is_repeated else {"no": "value"}
        misfit = parse_frame(frame([*outer, last], wrong))
        assert isinstance(misfit, Misfit)
        (violation,) = misfit.error.violations
        assert violation.field.partition("[")[0] == ".".join([*outer, last])
        assert violation.message.startswith("must be ")


@given(st.sampled_from(FIELDS), JSON | TEXTS | st.lists(TEXTS, max_size=2))
def test_whatever_a_field_is_given_is_taken_or_refused(leaf: Leaf, value: object) -> None:
    read = parse_frame(frame(leaf[0], value))
    assert isinstance(read, WatchManyRequest) or read.error.reason in ("INVALID_FIELD", "UNKNOWN_FIELD")


def test_names_may_be_written_in_both_ways() -> None:
    expected = WatchManyRequest(cancel=WatchManyRequest.Cancel(watch_id="a"))
    assert parse_frame('{"cancel": {"watchId": "a"}}') == parse_frame('{"cancel": {"watch_id": "a"}}') == expected
