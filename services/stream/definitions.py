"""What a subscription asks for: checked when it is written, compiled when it is used."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Final

from google.protobuf.duration_pb2 import Duration
from strandline.stream.v1 import subscription_pb2 as pb

from services.runtime.errors import InvalidArgument, invalid_field, within
from services.runtime.filters import parse_filter
from services.runtime.filters.ast import data_paths
from services.runtime.filters.paths import render_path
from services.stream import webhook_policy
from services.stream.checkpoint import Policy
from services.stream.endpoints import Receiver, parse_endpoint
from services.stream.selection import Selection, selection_of

FIELDS: Final = frozenset({"types", "filter", "ids", "ack_deadline", "max_in_flight", "retry_policy", "push"})
"""What an owner chooses."""
_IN_JSON: Final = {"ackDeadline": "ack_deadline", "maxInFlight": "max_in_flight", "retryPolicy": "retry_policy"}
_OF_A_KIND: Final = frozenset({"ack_deadline", "retry_policy"})
"""What is good for workers is not for receivers of webhooks."""
ACK_DEADLINE: Final = timedelta(seconds=10)
MIN_ACK_DEADLINE: Final = timedelta(seconds=1)
MAX_ACK_DEADLINE: Final = timedelta(minutes=10)
MAX_IN_FLIGHT: Final = 100
MAX_ATTEMPTS: Final = 10
MIN_BACKOFF: Final = timedelta(seconds=1)
MAX_BACKOFF: Final = timedelta(minutes=10)
_LONGEST_MIN_BACKOFF: Final = timedelta(hours=1)
_LONGEST_MAX_BACKOFF: Final = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A definition, ready for use; *pushes*: it is a webhook."""

    selection: Selection
    policy: Policy
    pushes: bool


def settled(asked: pb.Subscription, receivers: Sequence[Receiver] = ()) -> bytes:
    """The definition in *asked* with every default filled in, serialized. *receivers*: open to webhooks on loopback.

    Raises:
        InvalidArgument: INVALID_FIELD.
    """
    definition = pb.Subscription(
        types=asked.types, filter=asked.filter, ids=asked.ids, max_in_flight=asked.max_in_flight or MAX_IN_FLIGHT
    )
    try:
        selection_of(asked.types, asked.filter, ids=asked.ids)
    except InvalidArgument as refusal:
        raise within("subscription", refusal) from None
    deadline, shortest, least_of_all = ACK_DEADLINE, MIN_ACK_DEADLINE, timedelta()
    attempts, least, most = MAX_ATTEMPTS, MIN_BACKOFF, MAX_BACKOFF
    if asked.HasField("push"):
        parse_endpoint(asked.push.endpoint, receivers, "subscription.push.endpoint")
        definition.push.endpoint = asked.push.endpoint
        disable_after = asked.push.disable_after
        definition.push.disable_after.FromTimedelta(
            disable_after.ToTimedelta() if asked.push.HasField("disable_after") else webhook_policy.DISABLE_AFTER
        )
        # While a receiver still has time to answer, nobody else may be given the delivery.
        shortest, attempts = ACK_DEADLINE, webhook_policy.MAX_ATTEMPTS
        least, most = webhook_policy.MIN_BACKOFF, webhook_policy.MAX_BACKOFF
        least_of_all = webhook_policy.LEAST_BACKOFF
    if asked.HasField("ack_deadline"):
        deadline = duration(asked.ack_deadline, "subscription.ack_deadline", shortest, MAX_ACK_DEADLINE)
    definition.ack_deadline.FromTimedelta(deadline)
    retry, policy = asked.retry_policy, definition.retry_policy
    where = "subscription.retry_policy"
    if retry.HasField("min_backoff"):
        least = duration(retry.min_backoff, f"{where}.min_backoff", least_of_all, _LONGEST_MIN_BACKOFF)
    if retry.HasField("max_backoff"):
        most = duration(retry.max_backoff, f"{where}.max_backoff", least, _LONGEST_MAX_BACKOFF)
    policy.max_attempts = retry.max_attempts or attempts
    policy.min_backoff.FromTimedelta(least)
    policy.max_backoff.FromTimedelta(max(least, most))
    return definition.SerializeToString(deterministic=True)


def fields_of(update_mask: Iterable[str], asked: pb.Subscription) -> Set[str]:
    """The fields that an update takes over from *asked*: those of *update_mask*, or else those that are present.

    Raises:
        InvalidArgument: INVALID_FIELD.
    """
    present = {field.name for field, _ in asked.ListFields()} & FIELDS
    fields = {_IN_JSON.get(text, text) for text in update_mask} or present
    if "*" in fields:
        return FIELDS
    if unknown := fields - FIELDS:
        known = ", ".join(sorted(FIELDS))
        raise invalid_field("update_mask", f"{min(unknown)[:100]!r} is none of {known}, *")
    return fields


def updated(stored: bytes, asked: pb.Subscription, fields: Collection[str]) -> pb.Subscription:
    """What ``settled`` made, with *fields* as *asked*.

    One that becomes a webhook, or is one no longer, is as if it were made so: what either kind has defaults of its own
    for begins with these, unless it is among *fields*.
    """
    wanted = pb.Subscription.FromString(stored)
    pushed = wanted.HasField("push")
    taken = pb.Subscription()
    taken.CopyFrom(asked)
    for name in {field.name for field in pb.Subscription.DESCRIPTOR.fields} - set(fields):
        taken.ClearField(name)  # type: ignore[arg-type]  # the names are its own
    for name in fields:
        wanted.ClearField(name)  # type: ignore[arg-type]
    wanted.MergeFrom(taken)
    if wanted.HasField("push") != pushed:
        for name in _OF_A_KIND - set(fields):
            wanted.ClearField(name)  # type: ignore[arg-type]
    return wanted


@lru_cache(maxsize=1000)
def compiled(definition: bytes) -> Compiled:
    """What ``settled`` made, compiled."""
    message = pb.Subscription.FromString(definition)
    retry = message.retry_policy
    policy = Policy(
        max_in_flight=message.max_in_flight,
        ack_deadline=message.ack_deadline.ToMicroseconds(),
        max_attempts=retry.max_attempts,
        min_backoff=retry.min_backoff.ToMicroseconds(),
        max_backoff=retry.max_backoff.ToMicroseconds(),
    )
    return Compiled(selection_of(message.types, message.filter, ids=message.ids), policy, message.HasField("push"))


def fields_named(definition: bytes) -> list[str]:
    """The fields of entities that the filter names, for the lease: no schema may drop them unseen."""
    node = parse_filter(pb.Subscription.FromString(definition).filter, of_entity=True)
    return sorted({render_path(path) for path in data_paths(node)}) if node is not None else []


def duration(value: Duration, field: str, least: timedelta, most: timedelta) -> timedelta:
    """*value*, if it lies between *least* and *most*.

    Raises:
        InvalidArgument: INVALID_FIELD.
    """
    try:
        asked = value.ToTimedelta()
    except (OverflowError, ValueError):
        asked = timedelta.max
    if not least <= asked <= most:
        raise invalid_field(field, f"must be {_seconds(least)} to {_seconds(most)}")
    if asked % timedelta(milliseconds=1):
        raise invalid_field(field, "must be whole milliseconds")
    return asked


def _seconds(duration: timedelta) -> str:
    return f"{duration.total_seconds():g} s"
