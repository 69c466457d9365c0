"""The owner of logs: the entity service's writer, ledger, log and snapshots over PostgreSQL, behind a unix socket.

``system`` is a namespace like any other here, so that one owner plays both services.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString, TypeAlias

import grpc
import psycopg
from google.protobuf.message import Message
from strandline.entity.v1 import entity_pb2
from strandline.user.v1 import namespace_service_pb2, user_pb2

from services.entity.catalog import Catalog
from services.entity.leases import Leases
from services.entity.ledger import EntityLedger, EntityUnit
from services.entity.limits import Confirmations
from services.entity.model import EntityKey, EntityType, entity_name
from services.entity.mutations import Kind, Mutation, replacement
from services.entity.snapshots import SnapshotReader
from services.entity.type_changes import TypeChange, TypeOperation
from services.entity.type_store import put_type
from services.entity.writes import Writer, Writing
from services.runtime import wire
from services.runtime.bus import Bus
from services.runtime.call import Call, Namespace
from services.runtime.committer import Committer
from services.runtime.database import Database, Statement
from services.runtime.log_service import NAME, LogHandlers
from services.runtime.masks import EVERYTHING
from services.runtime.rpc import Method, generic_handler
from services.runtime.upstream import MESSAGE_OPTIONS

Data: TypeAlias = Mapping[str, Any] | None
SYSTEM = Namespace("system", "5y57e111")
TIDES = Namespace("tides", "00c0ffee")
TYPES = {"system": ("namespace", "membership", "revocation"), "tides": ("buoy", "ship", "whale"), "reefs": ("buoy",)}

FORGET: tuple[LiteralString, ...] = (
    "DELETE FROM units WHERE namespace = %s",
    "DELETE FROM versions WHERE namespace = %s",
    "DELETE FROM heads WHERE namespace = %s",
    "DELETE FROM entities WHERE namespace = %s",
)


async def declare_types(connection: psycopg.AsyncConnection[Any]) -> None:
    """Put every type there as if it had always been: a declaration would take a revision of each test's log."""
    now = datetime.now(UTC)
    for namespace, type_ids in TYPES.items():
        for type_id in type_ids:
            schema = {"type": "object", "additionalProperties": True}
            type_ = EntityType(type_id, 0, 1, 1, schema, (), 0, now, now)
            statement = put_type(namespace, type_)
            await connection.execute(statement.sql, statement.params)


def mutation(namespace: Namespace, key: EntityKey, data: Data) -> Mutation:
    """Let the entity have *data* from now on, whatever it has; None: delete it."""
    name = entity_name(namespace.id, key)
    if data is None:
        return Mutation(Kind.DELETE, name, key, "data", allow_missing=True)
    return replacement(name, key, dict(data), "data", mask=EVERYTHING, etag="", allow_missing=True)


class Truth:
    """``AccessService`` over the same entities."""

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
        query = "SELECT message FROM entities WHERE namespace = %s AND type = %s AND id = %s AND delete_time IS NULL"
        (rows,) = await self._database.read("system", Statement(query, ("system", type_id, entity_id)))
        return wire.decode_struct(entity_pb2.Entity.FromString(rows[0][0]).data) if rows else None


class Owner:
    """One process of the owner. Several of them may share a database."""

    def __init__(self, url: str, bus: Bus, socket: Path) -> None:
        self.database = Database(url)
        self.bus = bus
        self.socket = socket
        self.announces = True
        self.reads_of_units = 0
        self.lease_is_let_go = asyncio.Event()  # or is about to be, while it hangs
        self.answers = asyncio.Event()  # clear it: the owner hangs, but for what concerns `system`
        self.answers.set()
        self.reads = asyncio.Event()  # clear it: the owner hangs when it is to read units
        self.reads.set()
        self.pages = asyncio.Event()  # clear it: the owner hangs when it is to read a page of a snapshot
        self.pages.set()
        types = Catalog(self.database)
        ledger = EntityLedger(types, Confirmations(bytes(32)))
        self._committer: Committer[EntityUnit] = Committer(self.database, ledger, self._announce)
        self._writer = Writer(self.database, types, self._committer)
        self._server: grpc.aio.Server | None = None

    async def _announce(self, commit: Any) -> None:
        if self.announces:
            await self.bus.publish_commit(commit)

    async def start(self) -> None:
        """Serve the log."""
        self._server = grpc.aio.server(options=MESSAGE_OPTIONS)
        logs = LogHandlers(self.database, SnapshotReader(self.database), Leases(self.database))
        self._server.add_generic_rpc_handlers((generic_handler(NAME, logs, self._admit),))
        truth = generic_handler("strandline.user.v1.AccessService", Truth(self.database), self._admit)
        self._server.add_generic_rpc_handlers((truth,))
        self.socket.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self.socket}")
        await self._server.start()

    async def _admit(self, method: Method, request: Message, call: Call) -> None:
        self.reads_of_units += method.name == "ReadUnits"
        if method.name == "DeleteConsumerLease":
            self.lease_is_let_go.set()
        if getattr(request, "namespace_id", "") != SYSTEM.id:
            await self.answers.wait()
        if method.name == "ReadUnits":
            await self.reads.wait()
        if method.name == "ReadSnapshot":
            await self.pages.wait()

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

    async def write(self, namespace: Namespace, contents: Mapping[tuple[str, str], Data]) -> int:
        """Commit one unit that gives each (type, id) its data; the revision."""
        mutations = [mutation(namespace, EntityKey(*key), data) for key, data in contents.items()]
        return (await self._writer.transact(Writing(namespace, "ann", "Write", ""), mutations)).revision

    async def put(self, namespace: Namespace, entity_id: str, **data: Any) -> int:
        """Write one entity of type ``buoy``."""
        return await self.write(namespace, {("buoy", entity_id): data})

    async def declare(self, namespace: Namespace, type_id: str) -> int:
        """Commit a new type; the revision."""
        change = TypeChange(
            actor="ann",
            method="CreateType",
            request_id="",
            body_hash=b"",
            exclusive=frozenset({type_id}),
            operation=TypeOperation.CREATE,
            type_id=type_id,
        )
        return (await self._committer.commit(namespace, change)).revision

    async def forget(self, namespace: str) -> None:
        """Remove the log and the entities of *namespace*."""
        for statement in FORGET:
            await self.execute(statement, namespace)

    async def execute(self, sql: LiteralString, namespace: str) -> None:
        """Change the rows of *namespace* behind everybody's back."""
        async with self.database.connection() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.namespace', %s, true)", (namespace,))
            await connection.execute(sql, (namespace,))
