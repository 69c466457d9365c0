"""What a subscription asks for: checked when it is written, compiled when it is used."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
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
PARTS: Final = frozenset({"push.endpoint", "push.disable_after"})
"""What an update may also choose by itself."""
OUTPUT: Final = (
    frozenset(field.name for field in pb.Subscription.DESCRIPTOR.fields) - FIELDS - {"name", "etag", "start"}
)
"""What only the service sets."""
_IN_JSON: Final = {
    "ackDeadline": "ack_deadline",
    "maxInFlight": "max_in_flight",
    "retryPolicy": "retry_policy",
    "push.disableAfter": "push.disable_after",
}
_INSTEAD: Final = {"checkpoint_revision": ": use :seek", "push.state": ": use :enableWebhook"}
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
        if asked.push.secret:
            raise invalid_field("subscription.push.secret", "is made by the service alone: use :rotateSecret")
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

    What only the service sets is ignored in a subscription that was read, changed and is sent back, which its ``uid``
    tells: comparing it would fail whoever was overtaken by a delivery. Elsewhere it is a mistake.

    Raises:
        InvalidArgument: INVALID_FIELD.
    """
    present = _present(asked)
    named = {_IN_JSON.get(text, text) for text in update_mask}
    is_whole = not named or "*" in named
    if is_whole and "start" in present:
        raise invalid_field("subscription.start", "counts only when a subscription is made: use :seek")
    if "*" not in named and (unknown := named - FIELDS - PARTS):
        known = ", ".join(sorted(FIELDS | PARTS))
        raise invalid_field("update_mask", f"{min(unknown)[:100]!r} is none of {known}, *")
    output = present & OUTPUT if is_whole else set()
    if is_whole or "push" in named:
        output |= {f"push.{name}" for name in _present(asked.push) - {"secret"}} - PARTS
    if output and not asked.uid:
        path = min(output)
        only = f"is set by the service alone{_INSTEAD.get(path, '')}; it is ignored in what was read, with its uid"
        raise invalid_field(f"subscription.{path}", only)
    return FIELDS if "*" in named else named or present & FIELDS


def _present(message: Message) -> set[str]:
    return {field.name for field, _ in message.ListFields()}


def updated(stored: bytes, asked: pb.Subscription, fields: Collection[str]) -> pb.Subscription:
    """What ``settled`` made, with *fields* as *asked*.

    One that becomes a webhook, or is one no longer, is as if it were made so: what either kind has defaults of its own
    for begins with these, unless it is among *fields*.
    """
    wanted = pb.Subscription.FromString(stored)
    pushed = wanted.HasField("push")
    _take(wanted, asked, fields)
    if parts := {path.removeprefix("push.") for path in PARTS.intersection(fields)}:
        wanted.push.SetInParent()
        _take(wanted.push, asked.push, parts)
    if wanted.HasField("push") != pushed:
        for name in _OF_A_KIND - set(fields):
            wanted.ClearField(name)  # type: ignore[arg-type]  # the names are its own
    return wanted


def _take(wanted: Message, asked: Message, names: Collection[str]) -> None:
    """Let the fields *names* of *wanted* be as in *asked*."""
    taken = type(asked)()
    taken.CopyFrom(asked)
    for field in asked.DESCRIPTOR.fields:
        (wanted if field.name in names else taken).ClearField(field.name)
    wanted.MergeFrom(taken)


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
