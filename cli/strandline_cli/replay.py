"""One writer and four watchers: the same history written once and seen four times, over every transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from google.protobuf.struct_pb2 import Struct, Value
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2
from strandline_client import Client, Start

Key: TypeAlias = tuple[str, str]
"""Type and id."""
State: TypeAlias = dict[Key, dict[str, Any]]
Kind: TypeAlias = Literal["grpc", "ndjson", "sse", "websocket"]
KINDS: tuple[Kind, ...] = ("grpc", "ndjson", "sse", "websocket")
_GONE = ("DELETED", "PURGED", "EXPIRED")


@dataclass(frozen=True, slots=True)
class Change:
    """What the writer does to one entity; ``data`` None: delete it."""

    key: Key
    data: Mapping[str, Any] | None
    creates: bool = False


def apply(state: State, unit: Iterable[Change]) -> None:
    """What a unit does to a state, in plain Python."""
    for change in unit:
        if change.data is None:
            del state[change.key]
        else:
            state[change.key] = dict(change.data)


def mutation(namespace: str, change: Change, encode: Callable[[Mapping[str, Any]], bytes]) -> entity_pb2.Mutation:
    """*change* as the API takes it."""
    kind, identifier = change.key
    name = f"namespaces/{namespace}/types/{kind}/entities/{identifier}"
    if change.data is None:
        return entity_pb2.Mutation(delete=entity_pb2.DeleteMutation(name=name))
    content = encode(change.data)
    if change.creates:
        return entity_pb2.Mutation(create=entity_pb2.CreateMutation(name=name, data_json=content))
    return entity_pb2.Mutation(update=entity_pb2.UpdateMutation(name=name, data_json=content, update_mask=["*"]))


@dataclass
class Watcher:
    """Follows a namespace from its first revision and rebuilds its state from nothing but the feed.

    The client has verified every message already: ranges that join up, each unit once.
    """

    client: Client
    namespace: str
    kind: Kind
    state: State = field(default_factory=dict)
    revision: int = 0
    units: int = 0
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self) -> None:
        """Read for as long as the task lives."""
        async for revision, changes in self._units():
            self.units += 1
            self.revision = revision
            for gone, key, data in changes:
                if gone:
                    self.state.pop(key, None)
                else:
                    self.state[key] = data
            self._moved.set()

    async def reach(self, revision: int) -> None:
        """Wait until the watcher has come to *revision*."""
        while self.revision < revision:
            self._moved.clear()
            await self._moved.wait()

    async def _units(self) -> AsyncIterator[tuple[int, Sequence[tuple[bool, Key, dict[str, Any]]]]]:
        start = Start(after_revision=0)
        if self.kind == "grpc":
            async for unit in self.client.watch(self.namespace, start):
                yield unit.revision, [_of_message(change) for change in unit.changes if change.HasField("entity")]
        else:
            async for body in self.client.feed_http(self.namespace, start, transport=self.kind):
                for unit_json in body.get("units", {}).get("units", ()):
                    changes = [_of_json(change) for change in unit_json["changes"] if "entity" in change]
                    yield int(unit_json["revision"]), changes


def _of_message(change: feed_pb2.Change) -> tuple[bool, Key, dict[str, Any]]:
    gone = feed_pb2.Change.Kind.Name(change.kind) in _GONE
    return gone, _key(change.entity.name), {} if gone else _plain(change.entity.data)


def _of_json(change: Mapping[str, Any]) -> tuple[bool, Key, dict[str, Any]]:
    entity = change["entity"]
    return change["kind"] in _GONE, _key(entity["name"]), entity.get("data", {})


def _key(name: str) -> Key:
    parts = name.split("/")
    return parts[3], parts[5]


def _plain(struct: Struct) -> dict[str, Any]:
    return {key: _plain_value(value) for key, value in struct.fields.items()}


def _plain_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _plain(value.struct_value)
        case "list_value":
            return [_plain_value(item) for item in value.list_value.values]
        case _:
            return None
