"""Random schemas, filters, writes, readers and faults, and what must be true of them whatever happens.

Everything follows from one number, but for the timing of processes.
"""

from __future__ import annotations

import asyncio
import json
import operator
import os
import random
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from strandline.entity.v1 import entity_pb2
from strandline_cli.platform import Running
from strandline_client import Client, FeedEnded, Start
from strandline_client.history import (
    Acknowledgement,
    Json,
    Message,
    Recording,
    Selection,
    message_of_json,
    message_of_protobuf,
)
from strandline_client.json_data import json_of

Transport: TypeAlias = Literal["grpc", "ndjson", "sse", "websocket"]
TRANSPORTS: tuple[Transport, ...] = ("grpc", "ndjson", "sse", "websocket")
TYPES = ("buoy", "ship", "whale")
CATCH_UP_SECONDS = 60.0
_GONE = frozenset({"DELETED", "EXPIRED", "PURGED", "LEFT"})
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Filter:
    """The same condition twice: as the API takes it, and as the language is documented. Empty: everything."""

    text: str = ""
    matches: Callable[[Json], bool] = lambda data: True


def any_filter(chance: random.Random) -> Filter:
    """One to three factors, all of which must hold."""
    factors = [_factor(chance) for _ in range(chance.randint(1, 3))]
    text = " AND ".join(factor.text for factor in factors)
    return Filter(text, lambda data: all(factor.matches(data) for factor in factors))


def _factor(chance: random.Random) -> Filter:
    one = _term(chance)
    match chance.randrange(4):
        case 0:
            return Filter(f"NOT {one.text}", lambda data: not one.matches(data))
        case 1:
            other = _term(chance)
            return Filter(f"({one.text} OR {other.text})", lambda data: one.matches(data) or other.matches(data))
        case _:
            return one


def _term(chance: random.Random) -> Filter:
    name = chance.choice("nsb")
    sign = chance.choice(["=", "!="] if name != "n" else [*_COMPARISONS])
    value = _value(chance, name)
    compare = _COMPARISONS[sign]
    # A comparison with what is not there is false, whatever the sign.
    return Filter(f"data.{name} {sign} {json.dumps(value)}", lambda data: name in data and compare(data[name], value))


def _value(chance: random.Random, name: str) -> Any:
    return {"n": chance.randrange(10), "s": chance.choice("abc"), "b": chance.random() < 0.5}[name]


def schema(chance: random.Random) -> dict[str, Any]:
    """Three fields that filters are about, some of them required, and some that nobody looks at."""
    properties: dict[str, Any] = {"n": {"type": "integer"}, "s": {"type": "string"}, "b": {"type": "boolean"}}
    properties |= {f"x{number}": {"type": "array"} for number in range(chance.randrange(3))}
    required = [name for name in "nsb" if chance.random() < 0.3]
    return {"type": "object", "properties": properties, "required": required}


@dataclass
class World:
    """A namespace, and what its writers know of it."""

    client: Client
    namespace: str
    schemas: dict[str, dict[str, Any]]
    live: dict[str, Json] = field(default_factory=dict)
    deleted: dict[str, Json] = field(default_factory=dict)
    head: int = 0
    acknowledgements: list[Acknowledgement] = field(default_factory=list)

    async def write(self, chance: random.Random, writer: int, units: int) -> None:
        """So many units, one after the other, to names that no other writer has."""
        names = [
            f"namespaces/{self.namespace}/types/{type_id}/entities/w{writer}-{number}"
            for type_id in TYPES
            for number in range(8)
        ]
        for _ in range(units):
            chosen = chance.sample(names, chance.randint(1, 6))
            if chance.random() < 0.3:
                await self._write_apart(chance, chosen)
            else:
                await self._write_together(chance, chosen)

    async def _write_together(self, chance: random.Random, names: Sequence[str]) -> None:
        """One unit."""
        changes = {name: self._mutation(chance, name) for name in names}
        answer = await self.client.transact(self.namespace, [mutation for mutation, _ in changes.values()])
        self._learn(answer.revision, {name: data for name, (_, data) in changes.items() if self._differs(name, data)})

    async def _write_apart(self, chance: random.Random, names: Sequence[str]) -> None:
        """One unit for each name, carried together."""
        contents = {name: self._content(chance, name) for name in names}
        async with self.client.writer(self.namespace) as writer:
            written = await asyncio.gather(*(writer.put(name, data) for name, data in contents.items()))
        for outcome in written:
            data = contents[outcome.name]
            self._learn(outcome.revision, {outcome.name: data} if self._differs(outcome.name, data) else {})

    def _mutation(self, chance: random.Random, name: str) -> tuple[entity_pb2.Mutation, Json | None]:
        """Anything that can be done to *name*, and what it holds then."""
        data: Json = self._content(chance, name)
        body = json.dumps(data).encode()
        if name in self.deleted and chance.random() < 0.5:
            return entity_pb2.Mutation(undelete=entity_pb2.UndeleteMutation(name=name)), self.deleted[name]
        if name not in self.live:
            return entity_pb2.Mutation(create=entity_pb2.CreateMutation(name=name, data_json=body)), data
        if chance.random() < 0.25:
            return entity_pb2.Mutation(delete=entity_pb2.DeleteMutation(name=name)), None
        update = entity_pb2.UpdateMutation(name=name, data_json=body, update_mask=["*"])
        return entity_pb2.Mutation(update=update), data

    def _content(self, chance: random.Random, name: str) -> Json:
        """Valid content; now and then what is there already."""
        if name in self.live and chance.random() < 0.1:
            return self.live[name]
        required = self.schemas[name.split("/")[3]]["required"]
        return {key: _value(chance, key) for key in "nsb" if key in required or chance.random() < 0.7}

    def _differs(self, name: str, data: Json | None) -> bool:
        return self.live.get(name) != data

    def _learn(self, revision: int, contents: Mapping[str, Json | None]) -> None:
        self.head = max(self.head, revision)
        if contents:
            self.acknowledgements.append(Acknowledgement(revision, contents))
        for name, data in contents.items():
            if data is not None:
                self.live[name] = data
                self.deleted.pop(name, None)
            else:
                self.deleted[name] = self.live.pop(name)

    async def query(self, type_ids: Sequence[str], filter: Filter) -> dict[str, Json]:
        """What the entity service says there is, not older than the head."""
        found: dict[str, Json] = {}
        for type_id in type_ids:
            parent = f"namespaces/{self.namespace}/types/{type_id}"
            entities = self.client.list_entities(parent, filter=filter.text, page_size=1000, min_revision=self.head)
            async for entity in entities:
                found[entity.name] = json_of(entity.data)
        return found

    def expect(self, type_ids: Sequence[str], filter: Filter) -> dict[str, Json]:
        """What its writers say there must be."""
        chosen = ((name, data) for name, data in self.live.items() if name.split("/")[3] in type_ids)
        return {name: data for name, data in chosen if filter.matches(data)}


class Watcher:
    """A reader with any selection, over any transport, from the beginning or a snapshot: its state is the query's."""

    def __init__(self, chance: random.Random, world: World, number: int) -> None:
        self.type_ids = chance.choice([TYPES, TYPES, *((type_id,) for type_id in TYPES), TYPES[:2]])
        self.filter = any_filter(chance) if chance.random() < 0.6 else Filter()
        self.transport = chance.choice(TRANSPORTS)
        self.name = f"{number}: {self.transport} {','.join(self.type_ids)} {self.filter.text}"
        self.state: dict[str, Json] = {}
        self.recordings: list[Recording] = []
        self.revision = 0
        self._world = world
        self._start = chance.choice([Start(snapshot=True), Start(after_revision=0)])
        self._pause = chance.choice([0.0, 0.0, 0.0, 0.02])
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Go away."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def reach(self, revision: int) -> None:
        """Wait until everything up to *revision* has come; raises what ended the feed."""
        async with asyncio.timeout(CATCH_UP_SECONDS):
            while self.revision < revision:
                if self._task.done():
                    await self._task
                    raise AssertionError(f"{self.name} ended")
                self._moved.clear()
                await self._moved.wait()

    async def _run(self) -> None:
        try:
            start = self._start
            while True:
                try:
                    await self._follow(start)
                except FeedEnded as end:
                    if not end.position_is_lost:
                        raise
                start = Start(snapshot=True)
        finally:
            self._moved.set()

    async def _follow(self, start: Start) -> None:
        everything = self.type_ids == TYPES
        types = frozenset[str]() if everything else frozenset(self.type_ids)
        self.recordings.append(
            Recording(self.name, Selection(types, matches=self.filter.matches if self.filter.text else None))
        )
        fresh: dict[str, Json] = {}
        async for message in self._messages(start, sorted(types)):
            if message.page is not None:
                fresh.update((entity.name, entity.data) for entity in message.page)
                continue
            if message.summary is not None:
                self.state = fresh
            for unit in message.units or ():
                for change in unit.changes:
                    if change.kind in _GONE:
                        self.state.pop(change.name, None)
                    elif change.data is not None:
                        self.state[change.name] = change.data
            self.revision = message.revision
            self._moved.set()
            await asyncio.sleep(self._pause)

    async def _messages(self, start: Start, types: Sequence[str]) -> AsyncGenerator[Message, None]:
        client, namespace, recording = self._world.client, self._world.namespace, self.recordings[-1]
        if self.transport == "grpc":
            async for message in client.feed(
                namespace, start, types=types, filter=self.filter.text, recording=recording
            ):
                yield message_of_protobuf(message)
        else:
            async for body in client.feed_http(
                namespace, start, transport=self.transport, types=types, filter=self.filter.text, recording=recording
            ):
                yield message_of_json(body)


@dataclass(frozen=True)
class Fault:
    """What is done to a part: ``kill -9``, a drain (it is started again after either), or a pause of some seconds."""

    kind: Literal["kill", "drain", "pause"]
    part: str

    async def strike(self, running: Running, seconds: float) -> None:
        """Do it; a part that is between two lives has its fault already."""
        pid = running.pid(self.part)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            if self.kind != "pause":
                os.kill(pid, signal.SIGKILL if self.kind == "kill" else signal.SIGTERM)
                return
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                os.kill(pid, signal.SIGCONT)


FAULTS = (
    Fault("kill", "stream"),
    Fault("kill", "entity"),
    Fault("kill", "nats"),
    Fault("kill", "postgres"),
    Fault("drain", "stream"),
    Fault("pause", "stream"),
    Fault("pause", "postgres"),
    Fault("pause", "nats"),
    Fault("drain", "entity"),
    Fault("pause", "entity"),
    Fault("kill", "stream-sidecar"),
    Fault("kill", "user"),
    Fault("kill", "edge"),
)
