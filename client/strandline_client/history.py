"""What was written and what each reader saw, recorded so that it can be judged afterwards. Pure data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from strandline_client.errors import LOST
from strandline_client.json_data import json_of
from strandline_client.position import Start

Json: TypeAlias = Mapping[str, Any]


def type_of(name: str) -> str:
    """The type's id, from ``namespaces/{namespace}/types/{type}[/entities/{entity}]``."""
    return name.split("/", 4)[3]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to *name*, an entity or a type. Contents, of a type its schema, are JSON; None: there is none."""

    kind: str
    name: str
    data: Json | None = None
    previous: Json | None = None


@dataclass(frozen=True, slots=True)
class Unit:
    """Everything that was committed at one revision."""

    revision: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class PagedEntity:
    """An entity in a page of a snapshot."""

    name: str
    revision: int
    data: Json


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came. Exactly one of the fields that may be None is not; ``horizon`` goes with ``head``."""

    after: int
    revision: int
    epoch: str
    units: tuple[Unit, ...] | None = None
    page: tuple[PagedEntity, ...] | None = None
    summary: tuple[int, str] | None = None
    head: int | None = None
    end: str | None = None
    horizon: int = 0


@dataclass
class Session:
    """One connection, and what came over it until it broke. ``refusal``: the reason why, if the platform gave one."""

    start: Start
    messages: list[Message] = field(default_factory=list)
    refusal: str = ""

    @property
    def lost_its_place(self) -> bool:
        """Whether the platform said that the position is worth nothing any more: the reader has to begin again."""
        return self.refusal in LOST or any(message.end in LOST for message in self.messages[-1:])


@dataclass(frozen=True)
class Selection:
    """What a reader asked for; *matches* is its filter, None: everything. *previous*: whether it wanted that.

    ``ids`` are full names. A read mask is not known here: record without one what is to be judged by its content.
    """

    types: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    matches: Callable[[Json], bool] | None = None
    previous: bool = True

    @property
    def is_everything(self) -> bool:
        """Whether every revision concerns this reader."""
        return not self.types and not self.ids and self.matches is None

    def is_about(self, name: str) -> bool:
        """Whether the reader asked for that entity or type, whatever it holds."""
        if self.ids:
            return name in self.ids or any(entity.startswith(f"{name}/") for entity in self.ids)
        return not self.types or type_of(name) in self.types


@dataclass
class Recording:
    """One reader's feed from its first start on. A session resumes the one before it, unless that lost its place."""

    reader: str
    selection: Selection = field(default_factory=Selection)
    sessions: list[Session] = field(default_factory=list)

    def connected(self, start: Start) -> None:
        """A connection was opened."""
        self.sessions.append(Session(start))

    def received(self, message: Message) -> None:
        """A message came over the last connection."""
        self.sessions[-1].messages.append(message)

    def refused(self, reason: str) -> None:
        """The last connection was refused or ended for that."""
        self.sessions[-1].refusal = reason

    @property
    def messages(self) -> Iterable[Message]:
        """All that came, over whatever connections."""
        return (message for session in self.sessions for message in session.messages)


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What a writer was told: the revision, and what each name, also of a type, has held since then (None: deleted)."""

    revision: int
    contents: Mapping[str, Json | None]


def message_of_protobuf(message: feed_pb2.WatchResponse) -> Message:
    """A message that came over gRPC."""
    position = (message.after_revision, message.revision, message.epoch)
    match message.WhichOneof("body"):
        case "units":
            return Message(*position, units=tuple(unit_of_protobuf(unit) for unit in message.units.units))
        case "snapshot_page":
            entities = message.snapshot_page.entities
            return Message(*position, page=tuple(PagedEntity(e.name, e.revision, json_of(e.data)) for e in entities))
        case "snapshot_done":
            return Message(*position, summary=(message.snapshot_done.count, message.snapshot_done.hash))
        case "end":
            return Message(*position, end=feed_pb2.End.Reason.Name(message.end.reason))
        case _:
            progress = message.progress
            return Message(*position, head=progress.head_revision, horizon=progress.horizon_revision)


def unit_of_protobuf(unit: feed_pb2.Unit) -> Unit:
    """A unit that came over gRPC."""
    return Unit(unit.revision, tuple(_change_of_protobuf(change) for change in unit.changes))


def _change_of_protobuf(change: feed_pb2.Change) -> Change:
    kind = feed_pb2.Change.Kind.Name(change.kind)
    if change.kind == feed_pb2.Change.SCHEMA_CHANGED:
        name = change.type.name or change.previous_type.name
        return Change(kind, name, _schema(change.type), _schema(change.previous_type))
    return Change(kind, change.entity.name or change.previous.name, _data(change.entity), _data(change.previous))


def _data(entity: entity_pb2.Entity) -> Json | None:
    return json_of(entity.data) if entity.HasField("data") else None


def _schema(type_: entity_pb2.EntityType) -> Json | None:
    return json_of(type_.schema) if type_.HasField("schema") else None


def message_of_json(message: Mapping[str, Any]) -> Message:
    """A message that came over HTTP, or a line of a file of such messages."""
    position = (int(message["afterRevision"]), int(message["revision"]), str(message["epoch"]))
    if "units" in message:
        return Message(*position, units=tuple(unit_of_json(unit) for unit in message["units"]["units"]))
    if "snapshotPage" in message:
        entities: Sequence[Mapping[str, Any]] = message["snapshotPage"]["entities"]
        return Message(*position, page=tuple(PagedEntity(e["name"], int(e["revision"]), e["data"]) for e in entities))
    if "snapshotDone" in message:
        done = message["snapshotDone"]
        return Message(*position, summary=(int(done["count"]), done["hash"]))
    if "end" in message:
        return Message(*position, end=message["end"]["reason"])
    progress = message["progress"]
    return Message(*position, head=int(progress["headRevision"]), horizon=int(progress["horizonRevision"]))


def unit_of_json(unit: Mapping[str, Any]) -> Unit:
    """A unit that came over HTTP."""
    return Unit(int(unit["revision"]), tuple(_change_of_json(change) for change in unit["changes"]))


def _change_of_json(change: Mapping[str, Any]) -> Change:
    is_of_type = change["kind"] == "SCHEMA_CHANGED"
    now, before = (change.get(key, {}) for key in (("type", "previousType") if is_of_type else ("entity", "previous")))
    content = "schema" if is_of_type else "data"
    return Change(change["kind"], now.get("name") or before["name"], now.get(content), before.get(content))
