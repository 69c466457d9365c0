"""What a feed is made of, each with its two encodings, made when first asked for and then shared by all subscribers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property

from strandline.stream.v1 import feed_pb2

from services.runtime import wire
from services.stream.render import render_json
from services.stream.views import UnitView

# Of a message; a single unit may be larger, up to the 3 MiB that an owner accepts.
MAX_MESSAGE_BYTES = 2**20
# Messages of one run of units that begin in the middle: readers resume anywhere, and most of them together.
MAX_SHARED = 8
_KIND_PURGED = wire.integer(1, feed_pb2.Change.PURGED)


class Message(ABC):
    """One message of a feed, covering the revisions in ``(after, revision]``.

    ``event_id`` is what an SSE reader sends back as ``Last-Event-ID``; empty: nothing to go on from.
    """

    after: int
    revision: int
    event_id: str

    @property
    @abstractmethod
    def protobuf(self) -> bytes:
        """A serialized ``WatchResponse``."""

    @property
    @abstractmethod
    def json(self) -> bytes:
        """The same as JSON, on one line without its end."""


class LogUnit:
    """One committed unit: the owner's bytes, and their JSON once somebody wanted it."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    @cached_property
    def json(self) -> bytes:
        return render_json(feed_pb2.Unit.FromString(self.body))


def purges(body: bytes) -> bool:
    """Whether the unit in *body* removed an entity for good."""
    # The bytes of `kind: PURGED` are looked for first, because nearly no unit has them.
    return _KIND_PURGED in body and any(
        change.kind == feed_pb2.Change.PURGED for change in feed_pb2.Unit.FromString(body).changes
    )


def that_fit(units: Iterable[LogUnit]) -> list[LogUnit]:
    """The first of *units*, as many as fit into one message; at least one if there is one."""
    fitting: list[LogUnit] = []
    size = 0
    for unit in units:
        size += len(unit.body)
        if fitting and size > MAX_MESSAGE_BYTES:
            break
        fitting.append(unit)
    return fitting


class _Body:
    """Units that are sent together: what all messages that hold them have in common."""

    def __init__(self, units: Sequence[LogUnit]) -> None:
        self.units = units

    @cached_property
    def protobuf(self) -> bytes:
        return wire.delimited(4, b"".join([wire.delimited(1, unit.body) for unit in self.units]))

    @cached_property
    def json(self) -> bytes:
        return b'{"units":[%b]}' % b",".join([unit.json for unit in self.units])


class UnitsMessage(Message):
    """A run of units."""

    def __init__(self, epoch: str, after: int, revision: int, units: Sequence[LogUnit]) -> None:
        self.epoch = epoch
        self.after = after
        self.revision = revision
        self.event_id = f"{epoch}.{revision}"
        self._body = _Body(units)

    @property
    def units(self) -> Sequence[LogUnit]:
        return self._body.units

    @cached_property
    def protobuf(self) -> bytes:
        position = wire.integer(1, self.after) + wire.integer(2, self.revision) + wire.text(3, self.epoch)
        return position + self._body.protobuf

    @cached_property
    def json(self) -> bytes:
        position = f'{{"afterRevision":"{self.after}","revision":"{self.revision}","epoch":"{self.epoch}","units":'
        return b"%b%b}" % (position.encode(), self._body.json)

    @cached_property
    def views(self) -> list[UnitView]:
        """The units, for those who filter: parsed once for all of them."""
        return [UnitView(unit.body) for unit in self.units]

    def covering(self, after: int) -> UnitsMessage:
        """The same units in a message that covers ``(after, revision]``; they are encoded once for both."""
        if after == self.after:
            return self
        other = UnitsMessage(self.epoch, after, self.revision, ())
        other._body = self._body
        return other

    def up_to(self, revision: int) -> UnitsMessage:
        """The part of a dense run that ends at *revision*, or all of it."""
        if self.revision <= revision:
            return self
        return UnitsMessage(self.epoch, self.after, revision, self.units[: revision - self.after])


def share(messages: dict[int, UnitsMessage], made: UnitsMessage) -> None:
    """Put *made* into *messages*, by the revision it comes after, for all who ask next; these stay few."""
    if len(messages) >= MAX_SHARED:
        messages.clear()
    messages[made.after] = made


class OtherMessage(Message):
    """Everything that is not units: rare, or one subscriber's own."""

    def __init__(self, response: feed_pb2.WatchResponse, event_id: str | None = None) -> None:
        self.response = response
        self.after = response.after_revision
        self.revision = response.revision
        self.event_id = f"{response.epoch}.{response.revision}" if event_id is None else event_id

    @property
    def protobuf(self) -> bytes:
        return self.response.SerializeToString()

    @property
    def json(self) -> bytes:
        return render_json(self.response)
