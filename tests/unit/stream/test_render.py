"""Feed JSON must be the JSON of protobuf's own mapping, which is what the edge prints for REST."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from google.protobuf import json_format
from google.protobuf.message import Message
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.stream.render import render_json


def entity(**data: Any) -> entity_pb2.Entity:
    made = entity_pb2.Entity(name="namespaces/n/types/t/entities/e", type="t", etag='"7"', revision=7)
    made.data.update(data)
    made.create_time.FromJsonString("2026-01-02T03:04:05.678901Z")
    return made


def change(**fields: Any) -> feed_pb2.WatchResponse:
    unit = feed_pb2.Unit(revision=2**60, actor="ann", changes=[feed_pb2.Change(**fields)])
    unit.commit_time.FromJsonString("2026-01-02T03:04:05Z")
    return feed_pb2.WatchResponse(after_revision=1, revision=2**60, epoch="00c0ffee", units={"units": [unit]})  # type: ignore[arg-type]


POSITION = "t"
MESSAGES: dict[str, Message] = {
    "nothing set": feed_pb2.WatchResponse(),
    "progress": feed_pb2.WatchResponse(after_revision=3, revision=3, progress=feed_pb2.Progress(head_revision=3)),
    "end": feed_pb2.WatchResponse(end=feed_pb2.End(reason=feed_pb2.End.DRAINING, detail="\u2028 </script> \x01")),
    "an unknown enum value": feed_pb2.WatchResponse(end=feed_pb2.End(reason=77)),  # type: ignore[arg-type]
    "an empty page": feed_pb2.WatchResponse(snapshot_page=feed_pb2.SnapshotPage(resume_token=POSITION)),
    "a change": change(kind=feed_pb2.Change.UPDATED, entity=entity(a=1, b=[None, True, {"c": "d"}]), previous=entity()),
    "a schema": change(
        kind=feed_pb2.Change.SCHEMA_CHANGED,
        type=entity_pb2.EntityType(
            name="namespaces/n/types/t",
            compatibility=entity_pb2.EntityType.FULL_TRANSITIVE,
            indexes=[entity_pb2.Index(fields=["data.a", "data.b desc"], state=entity_pb2.Index.READY)],
        ),
    ),
    "every kind of number": entity(whole=5, minus=-5.0, zero=-0.0, part=0.1, huge=1e300, limit=2**53 - 1, tiny=1e-7),
    "text": entity(text="tide \U0001f30a é ż", key_with_data_in={"snake_case": {"camelCase": 1}}),
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_the_json_equals_protobufs_own_mapping(message: Message) -> None:
    expected = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    assert orjson.loads(render_json(message)) == json.loads(json.dumps(expected))


def test_a_whole_number_is_printed_without_a_point() -> None:
    assert b'"data":{"a":5}' in render_json(entity(a=5.0))


@pytest.mark.parametrize(
    "text",
    [
        "1969-12-31T23:59:59.999999999Z",
        "1970-01-01T00:00:00Z",
        "2026-02-28T12:00:00.120Z",
        "2026-02-28T12:00:00.000120Z",
        "2026-02-28T12:00:00.000000120Z",
        "9999-12-31T23:59:59Z",
    ],
)
def test_times_have_as_many_digits_as_protobuf_prints(text: str) -> None:
    made = entity_pb2.Entity()
    made.update_time.FromJsonString(text)
    assert orjson.loads(render_json(made))["updateTime"] == text == made.update_time.ToJsonString()


def test_a_message_is_one_line() -> None:
    assert b"\n" not in render_json(entity(text="a\nb\r\n"))
