"""Random schemas, filters, writes and readers, and what must be true of them whatever happens (see ``faults``).

Everything follows from one number, but for the timing of processes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import operator
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import grpc
from google.protobuf.message import Message as ProtoMessage
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from strandline.entity.v1 import entity_pb2, entity_service_pb2, entity_service_pb2_grpc
from strandline_cli.platform import Running
from strandline_client import Client, FeedEnded, Start
from strandline_client.history import (
    Acknowledgement,
    Json,
    Message,
    Recording,
    Selection,
    Unit,
    message_of_json,
    message_of_protobuf,
    type_of,
    unit_of_protobuf,
)
from strandline_client.json_data import json_of
from strandline_client.retry import new_request_id

from services.entity.compaction import compact
from services.runtime.call import Namespace
from services.runtime.database import Database
from services.runtime.settings import with_password

Transport: TypeAlias = Literal["grpc", "ndjson", "sse", "websocket"]
TRANSPORTS: tuple[Transport, ...] = ("grpc", "ndjson", "sse", "websocket")
TYPES = ("buoy", "ship", "whale")
FLEETING = "squall"
"""The type that comes and goes: when no one writes, there is none."""
NAMES = 8
"""Of each writer, in each type."""
CATCH_UP_SECONDS = 60.0
_BETWEEN_SECONDS = 0.05
_GONE = frozenset({"DELETED", "EXPIRED", "PURGED", "LEFT"})
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again; raises ``TimeoutError`` when it does not become true."""
    async with asyncio.timeout(CATCH_UP_SECONDS):
        while True:
            if await holds():
                return
            await asyncio.sleep(0.01)


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
    properties["bulk"] = {"type": "string"}
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
    purged: dict[str, int] = field(default_factory=dict)
    """The revision of the last purge of a name: who comes now gets nothing of what it held before."""
    head: int = 0
    epoch: str = ""
    acknowledgements: list[Acknowledgement] = field(default_factory=list)
    log: list[Unit] = field(default_factory=list)
    """As far as it is remembered; what was cut is remembered."""
    cutting: int = 0
    """Nobody was ever told to cut off what comes after this."""
    horizon: int = 0
    """Everything up to this is gone for sure."""
    bulk: int = 0
    """Characters that each content has besides."""
    bulk_written: int = 0

    async def write(self, chance: random.Random, writer: int, units: int, enough: asyncio.Event) -> None:
        """So many units, and on until it is *enough*, one after the other, to names that no other writer has."""
        names = [
            f"namespaces/{self.namespace}/types/{type_id}/entities/w{writer}-{number}"
            for type_id in TYPES
            for number in range(NAMES)
        ]
        for number in itertools.count():
            if number >= units:
                if enough.is_set():
                    return
                await asyncio.sleep(_BETWEEN_SECONDS)
            chosen = chance.sample(names, chance.randint(1, 6))
            known = [name for name in chosen if name in self.live or name in self.deleted]
            if known and chance.random() < 0.15:
                await self.purge(known[0])
            elif chance.random() < 0.3:
                await self._write_apart(chance, chosen)
            else:
                await self._write_together(chance, chosen)

    async def create(self, chance: random.Random, name: str) -> None:
        """One unit, with any content."""
        data = self._content(chance, name)
        await self._commit({name: (_create(name, data), data)})

    async def delete(self, name: str) -> None:
        """One unit."""
        await self._commit({name: (_delete(name), None)})

    async def purge(self, name: str) -> None:
        """Two units if it lives, or one."""
        request = entity_service_pb2.PurgeEntityRequest(name=name, request_id=new_request_id())
        stub: entity_service_pb2_grpc.EntityServiceAsyncStub = entity_service_pb2_grpc.EntityServiceStub(self.channel)
        revision = (await self.ask(stub.PurgeEntity, request)).revision
        self._acknowledge(revision, {name: None})
        self.live.pop(name, None)
        self.deleted.pop(name, None)
        self.purged[name] = revision

    async def _write_together(self, chance: random.Random, names: Sequence[str]) -> None:
        """One unit."""
        await self._commit({name: self._mutation(chance, name) for name in names})

    async def _commit(self, changes: Mapping[str, tuple[entity_pb2.Mutation, Json | None]]) -> None:
        answer = await self.client.transact(self.namespace, [mutation for mutation, _ in changes.values()])
        self.epoch = answer.epoch
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
        if name in self.deleted and chance.random() < 0.5:
            return entity_pb2.Mutation(undelete=entity_pb2.UndeleteMutation(name=name)), self.deleted[name]
        if name not in self.live:
            return _create(name, data), data
        if chance.random() < 0.25:
            return _delete(name), None
        update = entity_pb2.UpdateMutation(name=name, data_json=json.dumps(data).encode(), update_mask=["*"])
        return entity_pb2.Mutation(update=update), data

    def _content(self, chance: random.Random, name: str) -> Json:
        """Valid content; now and then what is there already."""
        if name in self.live and chance.random() < 0.1:
            return self.live[name]
        declared = self.schemas[type_of(name)]
        content = {key: _value(chance, key) for key in "nsb" if key in declared["required"] or chance.random() < 0.7}
        content |= {key: 1 for key in declared["properties"] if key.startswith("y") and chance.random() < 0.3}
        if self.bulk:
            self.bulk_written += self.bulk
            content["bulk"] = chance.choice("abc") * self.bulk
        return content

    def _differs(self, name: str, data: Json | None) -> bool:
        return self.live.get(name) != data

    def learn_type(self, revision: int, type_id: str, declared: dict[str, Any] | None) -> None:
        """The schema of a type is *declared* since *revision*; None: there is no such type."""
        self._acknowledge(revision, {self.type_name(type_id): declared})
        if declared is not None:
            self.schemas[type_id] = declared

    def _acknowledge(self, revision: int, contents: Mapping[str, Json | None]) -> None:
        self.head = max(self.head, revision)
        self.acknowledgements.append(Acknowledgement(revision, contents))

    def _learn(self, revision: int, contents: Mapping[str, Json | None]) -> None:
        self._acknowledge(revision, contents)
        for name, data in contents.items():
            if data is not None:
                self.live[name] = data
                self.deleted.pop(name, None)
            else:
                self.deleted[name] = self.live.pop(name)

    async def query(self, selection: Selection, filter: str) -> dict[str, Json]:
        """What the entity service says there is, not older than the head."""
        found: dict[str, Json] = {}
        for type_id in (selection.types or {*TYPES}) - {FLEETING}:
            entities = self.client.list_entities(
                self.type_name(type_id), filter=filter, page_size=1000, min_revision=self.head
            )
            async for entity in entities:
                if selection.is_about(entity.name):
                    found[entity.name] = json_of(entity.data)
        return found

    def expect(self, selection: Selection) -> dict[str, Json]:
        """What its writers say there must be."""
        chosen = ((name, data) for name, data in self.live.items() if selection.is_about(name))
        return {name: data for name, data in chosen if selection.matches is None or selection.matches(data)}

    def type_name(self, type_id: str) -> str:
        return f"namespaces/{self.namespace}/types/{type_id}"

    @property
    def channel(self) -> grpc.aio.Channel:
        """For what the client has no method."""
        return self.client._channel

    async def ask(self, method: Callable[..., Any], request: ProtoMessage) -> Any:
        """The answer to what the client has no method for, as patiently as with one."""
        return await self.client._call(method, request, self.namespace)

    async def remember(self) -> None:
        """Read what the log has got since the last time."""
        start = Start(after_revision=len(self.log))
        async for message in self.client.feed(self.namespace, start, once=True):
            self.log += (unit_of_protobuf(unit) for unit in message.units.units)

    async def cut(self, running: Running, horizon: int) -> None:
        """Let everything up to *horizon* be older than is kept, and do what every replica does with it now and then."""
        state = running.home.load_state()
        assert state is not None
        sockets, passwords = state.path / "postgres", running.home.secrets / "postgres"
        self.cutting = horizon
        # Only what is young yet: so times stay in the order of revisions. And beyond what a lease can keep: that of a
        # snapshot whose reader was cut off lives for ten minutes.
        age = """UPDATE units SET commit_time = commit_time - interval '61 days'
            WHERE namespace = %s AND revision <= %s AND commit_time > now() - interval '1 day'"""
        superuser = make_conninfo(
            host=str(sockets), dbname="entity", user="postgres", password=(passwords / "superuser").read_text()
        )
        async with await AsyncConnection.connect(superuser) as connection:
            await connection.execute(age, (self.namespace, horizon))
        url = f"postgresql://entity_app@/entity?host={sockets}"
        database = Database(with_password(url, str(passwords / "entity_app")))
        try:

            async def is_cut() -> bool:
                return await compact(database, Namespace(self.namespace, self.epoch)) >= horizon

            await until(is_cut)
        finally:
            await database.close()
        self.horizon = horizon


def _create(name: str, data: Json) -> entity_pb2.Mutation:
    return entity_pb2.Mutation(create=entity_pb2.CreateMutation(name=name, data_json=json.dumps(data).encode()))


def _delete(name: str) -> entity_pb2.Mutation:
    return entity_pb2.Mutation(delete=entity_pb2.DeleteMutation(name=name))


class Watcher:
    """A reader with any selection, over any transport, from the beginning or a snapshot: its state is the query's.

    It begins again, with a snapshot, when it is told that its place is lost: then it must be, and otherwise must not.
    Of what was purged before it came (again), it must see nothing.
    """

    def __init__(self, chance: random.Random, world: World, number: int) -> None:
        filter = any_filter(chance) if chance.random() < 0.6 else Filter()
        types, ids = _any_scope(chance)
        names = frozenset(f"namespaces/{world.namespace}/types/{i.replace('/', '/entities/')}" for i in ids)
        self.filter = filter.text
        self.selection = Selection(
            frozenset(types), names, filter.matches if filter.text else None, previous=chance.random() < 0.8
        )
        self.transport = chance.choice(TRANSPORTS)
        self.name = f"{number}: {self.transport} {','.join((*types, *ids))} {filter.text}"
        self.state: dict[str, Json] = {}
        self.recording = Recording(self.name, self.selection)
        self.revision = 0
        self.horizon = 0
        """The last one that it was warned of."""
        self.told_compacted = 0
        self._world = world
        self._asked: dict[str, Any] = {
            "filter": filter.text,
            "types": types,
            "ids": ids,
            "include_previous": self.selection.previous,
            "progress_seconds": chance.randint(1, 3),
        }
        self._start = chance.choice([Start(snapshot=True), Start(after_revision=0)])
        self._pause = chance.choice([0.0, 0.0, 0.0, 0.02])
        self._moved = asyncio.Event()
        self._awake = asyncio.Event()
        self._awake.set()
        self._is_asleep = False
        self.come_back()

    def come_back(self) -> None:
        """Read, from where it was when it left."""
        self._task = asyncio.create_task(self._run())

    async def leave(self) -> None:
        """Go away, at once."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def sleep(self) -> None:
        """Take one more message, and no other until ``wake``; returns when that has come."""
        self._awake.clear()
        await self._until(lambda: self._is_asleep)

    def wake(self) -> None:
        """Read on."""
        self._is_asleep = False
        self._awake.set()

    async def reach(self, revision: int) -> None:
        """Wait until everything up to *revision* has come; raises what ended the feed."""
        await self._until(lambda: self.revision >= revision)

    async def warned(self, horizon: int) -> None:
        """Wait until it was told that the log is gone up to *horizon*."""
        await self._until(lambda: self.horizon >= horizon)

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(CATCH_UP_SECONDS):
            while not condition():
                if self._task.done():
                    await self._task
                    raise AssertionError(f"{self.name} ended")
                self._moved.clear()
                await self._moved.wait()

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._follow()
                except FeedEnded as end:
                    if not end.position_is_lost:
                        raise
                    self._lose_place(end)
        finally:
            self._moved.set()

    def _lose_place(self, end: FeedEnded) -> None:
        if end.reason == "COMPACTED":
            assert end.revision < self._world.cutting, f"{self.name} lost its place, and nothing was cut there: {end}"
            self.told_compacted += 1
        self._start = Start(snapshot=True)

    async def _follow(self) -> None:
        place = self._start.after_revision
        is_gone = place is not None and place < self._world.horizon
        purged = dict(self._world.purged)
        fresh: dict[str, Json] = {}
        async for message in self._messages():
            assert not is_gone, f"{self.name} went on after {place}, which was cut"
            if message.page is not None:
                fresh.update((entity.name, entity.data) for entity in message.page)
                continue
            if message.summary is not None:
                self.state = fresh
            for unit in message.units or ():
                for change in unit.changes:
                    if unit.revision < purged.get(change.name, 0):
                        seen = (change.data, change.previous)
                        assert seen == (None, None), f"{self.name} was shown what was purged: {change}"
                    if change.kind == "SCHEMA_CHANGED":
                        continue
                    if change.kind in _GONE:
                        self.state.pop(change.name, None)
                    elif change.data is not None:
                        self.state[change.name] = change.data
            self.revision, self.horizon = message.revision, max(self.horizon, message.horizon)
            self._start = Start(after_revision=message.revision, epoch=message.epoch)
            await asyncio.sleep(self._pause)
            self._is_asleep = not self._awake.is_set()
            self._moved.set()
            await self._awake.wait()

    async def _messages(self) -> AsyncGenerator[Message, None]:
        client, namespace, recording = self._world.client, self._world.namespace, self.recording
        if self.transport == "grpc":
            async for message in client.feed(namespace, self._start, recording=recording, **self._asked):
                yield message_of_protobuf(message)
        else:
            async for body in client.feed_http(
                namespace, self._start, transport=self.transport, recording=recording, **self._asked
            ):
                yield message_of_json(body)


def _any_scope(chance: random.Random) -> tuple[Sequence[str], Sequence[str]]:
    """Types, ids (``{type}/{id}``), or neither."""
    match chance.randrange(6):
        case 0 | 1:
            return (), ()
        case 2 | 3:
            return (chance.choice(TYPES),), ()
        case 4:
            return (*TYPES[:2], FLEETING), ()
        case _:
            names = [f"{type_id}/w{writer}-{number}" for type_id in TYPES for writer in (0, 1) for number in (0, 1, 2)]
            return (), sorted(chance.sample(names, 9))
