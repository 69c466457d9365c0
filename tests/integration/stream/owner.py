"""An owner of logs, real but small: the runtime's committer and log over PostgreSQL, behind gRPC on a unix socket.

Entities are rows of one table; ``system`` is a namespace like any other here, so one owner plays both services.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString, TypeAlias

import grpc
from google.protobuf.message import Message
from strandline.entity.v1 import entity_pb2
from strandline.user.v1 import namespace_service_pb2, user_pb2

from services.runtime import changelog, wire
from services.runtime.bus import Bus
from services.runtime.call import Call, Namespace
from services.runtime.changelog import CREATED, DELETED, UPDATED, Change
from services.runtime.committer import Committer, Decision, Receipt, Stamp, Unit
from services.runtime.database import Database, Row, Statement, packed_bytea, packed_text
from services.runtime.log_service import NAME, LogHandlers
from services.runtime.rpc import Method, generic_handler
from services.runtime.upstream import MESSAGE_OPTIONS

Data: TypeAlias = Mapping[str, Any] | None
SYSTEM = Namespace("system", "5y57e111")
# Small pages, so that a snapshot of a few entities takes several.
PAGE_ENTITIES = 10

TABLE = """CREATE TABLE things (namespace text COLLATE "C", type text COLLATE "C", id text COLLATE "C", body bytea,
    PRIMARY KEY (namespace, type, id))"""

FORGET: tuple[LiteralString, ...] = (
    "DELETE FROM units WHERE namespace = %s",
    "DELETE FROM versions WHERE namespace = %s",
    "DELETE FROM heads WHERE namespace = %s",
    "DELETE FROM things WHERE namespace = %s",
)


@dataclass(kw_only=True, eq=False)
class Write(Unit):
    """Set each (type, id) to its data; None deletes it."""

    contents: Mapping[tuple[str, str], Data] = field(default_factory=dict)


class Things:
    """The ledger: an entity that gets the data it has already does not change."""

    def reads(self, namespace: str, units: Sequence[Write]) -> Sequence[Statement]:
        types, ids = zip(*{key for unit in units for key in unit.contents}, strict=True)
        return [
            Statement(
                """SELECT type, id, body FROM unnest(%s::text[], %s::text[]) AS k (type, id)
                JOIN things USING (type, id) WHERE namespace = %s""",
                (packed_text(types), packed_text(ids), namespace),
            )
        ]

    def open_round(self, namespace: str, units: Sequence[Write], rows: Sequence[list[Row]]) -> ThingsRound:
        return ThingsRound(namespace, {(type_id, entity_id): body for type_id, entity_id, body in rows[0]})


class ThingsRound:
    def __init__(self, namespace: str, held: dict[tuple[str, str], bytes]) -> None:
        self._namespace = namespace
        self._held = held
        self._written: dict[tuple[str, str], bytes] = {}

    def decide(self, unit: Write, stamp: Stamp) -> Decision:
        changes = []
        for (type_id, entity_id), data in unit.contents.items():
            before = self._held.get((type_id, entity_id), b"")
            if data is None:
                after = b""
                entity = before + wire.integer(6, stamp.revision) + wire.timestamp(9, stamp.commit_time)
                kind = DELETED
            else:
                entity = after = _encode(self._namespace, type_id, entity_id, data, unit.actor, stamp)
                kind = UPDATED if before else CREATED
            if _data_of(before) == _data_of(after) and bool(before) == bool(after):
                continue
            changes.append(Change(kind, type_id, entity_id, entity, before))
            self._held[type_id, entity_id] = self._written[type_id, entity_id] = after
        return Decision(changes, answer=b"done")

    def writes(self, accepted: Sequence[tuple[Write, Stamp]]) -> Sequence[Statement]:
        types, ids = zip(*self._written, strict=True) if self._written else ((), ())
        return [
            Statement(
                """INSERT INTO things SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::bytea[])
                ON CONFLICT (namespace, type, id) DO UPDATE SET body = excluded.body""",
                (self._namespace, packed_text(types), packed_text(ids), packed_bytea(self._written.values())),
            )
        ]


def _encode(namespace: str, type_id: str, entity_id: str, data: Mapping[str, Any], actor: str, stamp: Stamp) -> bytes:
    return b"".join(
        (
            wire.text(1, f"namespaces/{namespace}/types/{type_id}/entities/{entity_id}"),
            wire.text(2, type_id),
            wire.delimited(4, wire.encode_struct(data)),
            wire.text(5, f'"{stamp.revision}"'),
            wire.integer(6, stamp.revision),
            wire.timestamp(8, stamp.commit_time),
            wire.text(12, actor),
        )
    )


def _data_of(raw: bytes) -> bytes:
    return entity_pb2.Entity.FromString(raw).data.SerializeToString(deterministic=True)


class Snapshots:
    """Live entities as they were at a revision, from the log."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_snapshot(
        self, namespace: str, revision: int, types: list[str], after: tuple[str, str], max_bytes: int
    ) -> tuple[list[bytes], tuple[str, str] | None]:
        (rows,) = await self._database.read(
            namespace,
            Statement(
                """SELECT DISTINCT ON (v.type, v.id)
                    v.type, v.id, v.kind, substring(u.body FROM v.start + 1 FOR v.length)
                FROM versions v JOIN units u ON u.namespace = v.namespace AND u.revision = v.revision
                WHERE v.namespace = %s AND v.revision <= %s AND (v.type, v.id) > (%s, %s)
                    AND (%s = 0 OR v.type = ANY(%s::text[]))
                ORDER BY v.type, v.id, v.revision DESC LIMIT %s""",
                (namespace, revision, *after, len(types), packed_text(types), PAGE_ENTITIES),
            ),
        )
        live = [body for _, _, kind, body in rows if kind != DELETED]
        return live, (rows[-1][0], rows[-1][1]) if len(rows) == PAGE_ENTITIES else None


class Truth:
    """``AccessService`` over the same table."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check_access(
        self, request: namespace_service_pb2.CheckAccessRequest, call: Call
    ) -> namespace_service_pb2.CheckAccessResponse:
        namespace = await self._find("namespace", request.namespace_id)
        member = await self._find("membership", f"{request.namespace_id}~{request.user_id}")
        answer = namespace_service_pb2.CheckAccessResponse()
        if namespace is not None:
            answer.namespace.epoch = namespace["epoch"]
            answer.role = user_pb2.Member.Role.Value(member["role"]) if member else answer.role
        return answer

    async def _find(self, type_id: str, entity_id: str) -> wire.JsonObject | None:
        query = "SELECT body FROM things WHERE namespace = 'system' AND type = %s AND id = %s"
        (rows,) = await self._database.read("system", Statement(query, (type_id, entity_id)))
        return wire.decode_struct(entity_pb2.Entity.FromString(rows[0][0]).data) if rows and rows[0][0] else None


class Owner:
    """One process of the owner. Several of them may share a database."""

    def __init__(self, url: str, bus: Bus, socket: Path) -> None:
        self.database = Database(url)
        self.bus = bus
        self.socket = socket
        self.announces = True
        self.reads_of_units = 0
        self._committer: Committer[Write] = Committer(self.database, Things(), self._announce)
        self._server: grpc.aio.Server | None = None

    def _announce(self, commit: Any) -> None:
        if self.announces:
            self.bus.publish_commit(commit)

    async def start(self) -> None:
        """Serve the log."""
        self._server = grpc.aio.server(options=MESSAGE_OPTIONS)
        logs = LogHandlers(self.database, Snapshots(self.database))
        self._server.add_generic_rpc_handlers((generic_handler(NAME, logs, self._admit),))
        truth = generic_handler("strandline.user.v1.AccessService", Truth(self.database), self._admit)
        self._server.add_generic_rpc_handlers((truth,))
        self.socket.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()

    async def _admit(self, method: Method, request: Message, call: Call) -> None:
        self.reads_of_units += method.name == "ReadUnits"

    async def stop(self) -> None:
        """Stop answering; what is committed stays."""
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def close(self) -> None:
        await self.stop()
        await self._committer.drain()
        await asyncio.sleep(0.1)  # calls that were cut off give their connections back
        await self.database.close()

    def submit(self, namespace: Namespace, contents: Mapping[tuple[str, str], Data]) -> asyncio.Future[Receipt]:
        digest = hashlib.sha256(repr(sorted(contents.items())).encode()).digest()
        unit = Write(
            actor="ann",
            method="Write",
            request_id="",
            body_hash=digest,
            exclusive=frozenset(contents),
            size=sum(len(str(data)) for data in contents.values()),
            contents=contents,
        )
        return self._committer.submit(namespace, unit)

    async def write(self, namespace: Namespace, contents: Mapping[tuple[str, str], Data]) -> int:
        """Commit one unit; the revision."""
        return (await self.submit(namespace, contents)).revision

    async def put(self, namespace: Namespace, entity_id: str, **data: Any) -> int:
        """Write one entity of type ``buoy``."""
        return await self.write(namespace, {("buoy", entity_id): data})

    async def forget(self, namespace: str) -> None:
        """Remove the log and the entities of *namespace*."""
        for statement in FORGET:
            await self.execute(statement, namespace)

    async def execute(self, sql: LiteralString, namespace: str) -> None:
        """Change the rows of *namespace* behind everybody's back."""
        async with self.database.connection() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.namespace', %s, true)", (namespace,))
            await connection.execute(sql, (namespace,))


TABLES = (*changelog.LOG_TABLES, *changelog.LOG_ROW_SECURITY, TABLE)
