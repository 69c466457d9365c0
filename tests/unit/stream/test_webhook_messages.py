"""What a webhook's receiver gets."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.stream.webhook_messages import change_message, message_id, trial_message

NAME = "namespaces/tides/subscriptions/orders"
UID = "0192f0a0-0000-7000-8000-000000000001"


def unit(revision: int, kind: feed_pb2.Change.Kind.ValueType) -> feed_pb2.Unit:
    entity = entity_pb2.Entity(name="namespaces/tides/types/buoy/entities/b1", type="buoy", etag=f'"{revision}"')
    entity.data.update({"depth": 5})
    change = feed_pb2.Change(kind=kind, entity=entity)
    return feed_pb2.Unit(revision=revision, commit_time=Timestamp(seconds=0), actor="ann", changes=[change])


def test_a_body_is_the_message_of_a_feed_with_its_type_and_time_beside_it() -> None:
    message = change_message(NAME, UID, "00c0ffee", unit(42, feed_pb2.Change.UPDATED), 3)
    body = json.loads(message.body)
    assert (message.revision, message.index) == (42, 3)
    assert {key: body.pop(key) for key in ("type", "timestamp", "subscription", "index")} == {
        "type": "change.updated",
        "timestamp": "1970-01-01T00:00:00Z",
        "subscription": NAME,
        "index": 3,
    }
    feed = json_format.ParseDict(body, feed_pb2.WatchResponse())
    assert (feed.after_revision, feed.revision, feed.epoch) == (41, 42, "00c0ffee")
    assert list(feed.units.units) == [unit(42, feed_pb2.Change.UPDATED)]


@given(st.integers(1, 2**62), st.integers(0, 499))
def test_a_message_is_the_same_each_time_it_is_made(revision: int, index: int) -> None:
    made = [change_message(NAME, UID, "00c0ffee", unit(revision, feed_pb2.Change.CREATED), index) for _ in range(2)]
    assert made[0] == made[1]


@given(st.tuples(st.integers(0, 99), st.integers(0, 99)), st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_different_changes_have_different_ids_without_a_dot(one: tuple[int, int], other: tuple[int, int]) -> None:
    ids = {message_id(UID, "00c0ffee", *one), message_id(UID, "00c0ffee", *other)}
    assert len(ids) == len({one, other})
    assert not any("." in id for id in ids)


def test_another_subscription_or_life_of_the_log_has_other_ids() -> None:
    assert len({message_id("a", "00c0ffee", 1, 0), message_id("b", "00c0ffee", 1, 0), message_id("a", "0", 1, 0)}) == 3


def test_a_test_says_what_it_is_and_nothing_more() -> None:
    message = trial_message(NAME, "1", datetime(2026, 11, 22, tzinfo=UTC))
    assert (message.id, message.revision) == ("msg_1", 0)
    assert json.loads(message.body) == {
        "type": "webhook.test",
        "timestamp": "2026-11-22T00:00:00.000Z",
        "subscription": NAME,
    }
