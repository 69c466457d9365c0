"""Which fields of a subscription an update takes over."""

from __future__ import annotations

import pytest
from strandline.stream.v1 import subscription_pb2 as pb

from services.runtime.errors import InvalidArgument
from services.stream.definitions import FIELDS, fields_of

ASKED = pb.Subscription(name="namespaces/tides/subscriptions/orders", etag='"1"', types=["buoy"], max_in_flight=7)


def test_without_a_mask_an_update_takes_what_is_present_and_an_owner_chooses() -> None:
    assert fields_of([], ASKED) == {"types", "max_in_flight"}


def test_a_mask_names_fields_in_both_spellings_whether_they_are_present_or_not() -> None:
    assert fields_of(["ackDeadline", "max_in_flight", "filter"], ASKED) == {"ack_deadline", "max_in_flight", "filter"}


def test_an_asterisk_is_every_field_whatever_stands_beside_it() -> None:
    assert fields_of(["types", "*"], ASKED) == FIELDS


@pytest.mark.parametrize("path", ["state", "name", "push.endpoint", "", "x" * 1000])
def test_a_mask_of_what_no_owner_chooses_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        fields_of(["types", path], ASKED)
    assert raised.value.violations[0].field == "update_mask"
    assert len(raised.value.message) < 300
