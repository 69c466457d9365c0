"""Which fields of a subscription an update takes over."""

from __future__ import annotations

from typing import Any

import pytest
from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from strandline.stream.v1 import subscription_pb2 as pb
from strandline.stream.v1.webhook_pb2 import PushConfig

from services.runtime.errors import InvalidArgument
from services.stream.definitions import FIELDS, OUTPUT, PARTS, fields_of, settled, updated
from services.stream.webhook_policy import DISABLE_AFTER

LONG = Duration(seconds=600)


def subscription(**fields: Any) -> pb.Subscription:
    return pb.Subscription(**fields)


ASKED = pb.Subscription(name="namespaces/tides/subscriptions/orders", etag='"1"', types=["buoy"], max_in_flight=7)


def test_without_a_mask_an_update_takes_what_is_present_and_an_owner_chooses() -> None:
    assert fields_of([], ASKED) == {"types", "max_in_flight"}


def test_a_mask_names_fields_in_both_spellings_whether_they_are_present_or_not() -> None:
    assert fields_of(["ackDeadline", "max_in_flight", "filter"], ASKED) == {"ack_deadline", "max_in_flight", "filter"}


def test_an_asterisk_is_every_field_whatever_stands_beside_it() -> None:
    assert fields_of(["types", "*"], ASKED) == FIELDS


@pytest.mark.parametrize("path", ["state", "start", "name", "push.secret", "push.", "", "x" * 1000])
def test_a_mask_of_what_no_owner_chooses_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        fields_of(["types", path], ASKED)
    assert raised.value.violations[0].field == "update_mask"
    assert len(raised.value.message) < 300


def test_what_only_the_service_sets_is_what_the_protocol_marks_as_output() -> None:
    def marked(message: Descriptor) -> set[str]:
        behavior = field_behavior_pb2.field_behavior
        return {
            field.name
            for field in message.fields
            if field_behavior_pb2.OUTPUT_ONLY in field.GetOptions().Extensions[behavior]
        }

    assert marked(pb.Subscription.DESCRIPTOR) == OUTPUT
    pushed = {f"push.{field.name}" for field in PushConfig.DESCRIPTOR.fields}
    assert {f"push.{name}" for name in marked(PushConfig.DESCRIPTOR)} == pushed - PARTS


@pytest.mark.parametrize("mask", [[], ["*"]])
@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("start", {"start": {"now": True}}),
        ("state", {"state": "STALLED", "max_in_flight": 7}),
        ("lag", {"lag": {}}),
        ("push.state", {"push": {"endpoint": "https://hooks.example.com/", "state": "DISABLED"}}),
    ],
)
def test_what_an_update_cannot_change_is_refused_and_not_passed_over(
    mask: list[str], field: str, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        fields_of(mask, subscription(**wrong))
    assert raised.value.violations[0].field == f"subscription.{field}"


def test_what_was_read_may_be_sent_back_as_a_whole_or_in_part() -> None:
    read = subscription(uid="0192", state="ACTIVE", lag={}, types=["buoy"], push={"state": "ENABLED"})
    assert fields_of([], read) == {"types", "push"}
    assert fields_of(["push"], read) == {"push"}
    # Beside a mask nothing else is looked at.
    assert fields_of(["types"], subscription(start={"now": True}, state="STALLED", push={"state": "ENABLED"}))


HOOK = settled(
    subscription(push={"endpoint": "https://old.example.com/", "disable_after": {"seconds": 60}}, ack_deadline=LONG)
)


@pytest.mark.parametrize(
    ("path", "endpoint", "seconds"),
    [
        ("push", "https://new.example.com/", 120),
        ("push.endpoint", "https://new.example.com/", 60),
        ("push.disableAfter", "https://old.example.com/", 120),
    ],
)
def test_a_part_of_a_webhook_is_changed_alone(path: str, endpoint: str, seconds: int) -> None:
    asked = subscription(push={"endpoint": "https://new.example.com/", "disable_after": {"seconds": 120}})
    changed = pb.Subscription.FromString(settled(updated(HOOK, asked, fields_of([path], asked))))
    assert (changed.push.endpoint, changed.push.disable_after.seconds) == (endpoint, seconds)
    assert changed.ack_deadline == LONG


def test_a_part_that_is_named_and_absent_has_its_default_again_if_there_is_one() -> None:
    nothing = subscription()
    changed = pb.Subscription.FromString(settled(updated(HOOK, nothing, {"push.disable_after"})))
    assert changed.push.disable_after.ToTimedelta() == DISABLE_AFTER
    pulled = settled(subscription())
    for stored, path in ((HOOK, "push.endpoint"), (pulled, "push.disable_after")):
        with pytest.raises(InvalidArgument) as raised:
            settled(updated(stored, nothing, {path}))
        assert raised.value.violations[0].field == "subscription.push.endpoint"


def test_nobody_brings_a_secret() -> None:
    with pytest.raises(InvalidArgument) as raised:
        settled(subscription(push={"endpoint": "https://hooks.example.com/", "secret": "whsec_mine"}))
    assert raised.value.violations[0].field == "subscription.push.secret"
    assert ":rotateSecret" in raised.value.message
