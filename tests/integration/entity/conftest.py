"""A running entity service on a real database, behind a real gate, in namespaces that nobody else uses."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf import json_format
from google.rpc import error_details_pb2, status_pb2
from strandline.entity.v1 import (
    entity_pb2,
    history_service_pb2,
    history_service_pb2_grpc,
    import_service_pb2_grpc,
    operation_service_pb2_grpc,
    schema_service_pb2_grpc,
    type_service_pb2,
    type_service_pb2_grpc,
)
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.entity.v1 import entity_service_pb2_grpc as pb_grpc
from strandline.rpc.v1 import access_pb2
from strandline.stream.v1 import feed_pb2, log_service_pb2, log_service_pb2_grpc

from services.entity.server import MIGRATIONS, EntityService, EntitySettings
from services.runtime.bus import Bus
from services.runtime.call import Namespace, Principal
from services.runtime.errors import NotFound, PermissionDenied
from services.runtime.gate import Gate
from services.runtime.migrations import migrate
from services.runtime.tokens import TokenVerifier
from services.user.signing import TokenSigner
from tests.postgres import postgres  # noqa: F401  (a fixture)

ISSUER = "https://strandline.test"
ANY = {"type": "object", "additionalProperties": True}
_numbers = itertools.count(1)


class Members:
    """Roles in namespaces, as the user service would say."""

    def __init__(self) -> None:
        self.namespaces: dict[str, Namespace] = {}
        self.roles: dict[tuple[str, str], int] = {}

    async def authorize(self, principal: Principal, namespace_id: str, role: int, *, write: bool) -> Namespace:
        held = self.roles.get((namespace_id, principal.user_id), 0)
        if not held:
            raise NotFound("NOT_FOUND", "there is no such namespace, or you are not a member of it")
        if held < role:
            raise PermissionDenied("ROLE_INSUFFICIENT", "your role in the namespace does not allow this")
        return self.namespaces[namespace_id]

    async def check_session(self, principal: Principal) -> None:
        return None


@dataclass
class Deployment:
    """A database with the schema, and everything that a replica needs."""

    folder: Path
    app_url: str
    superuser_url: str
    signer: TokenSigner
    members: Members = field(default_factory=Members)

    def settings(self) -> EntitySettings:
        return EntitySettings(
            listen=f"unix:{self.folder}/entity{next(_numbers)}.sock",
            database_url=self.app_url,
            secrets_dir=self.folder / "secrets",
            user_address="unix:/nowhere",
        )

    @asynccontextmanager
    async def replica(self) -> AsyncIterator[Replica]:
        """An entity service in this process."""
        settings = self.settings()
        gate = Gate(TokenVerifier(ISSUER, self.signer.key_set), self.members)
        service = EntityService(settings, gate, Bus("", ("", ""), None, "entity"))
        serving = asyncio.create_task(service.run())
        try:
            async with grpc.aio.insecure_channel(settings.listen) as channel:
                async with asyncio.timeout(30):
                    await channel.channel_ready()
                yield Replica(self, service, channel)
        finally:
            # Also after a failed test: a server that is left running keeps the session from ending.
            service.server.stop()
            await serving

    async def rows(self, query: str, *params: Any) -> list[Any]:
        """Look into the database, past the service."""
        async with await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True) as connection:
            return await (await connection.execute(query.encode(), params)).fetchall()

    async def execute(self, statement: str) -> None:
        """Change the database, past the service."""
        async with await psycopg.AsyncConnection.connect(self.superuser_url, autocommit=True) as connection:
            await connection.execute(statement.encode())


@dataclass
class Replica:
    """One running service, and stubs that call it."""

    deployment: Deployment
    service: EntityService
    channel: grpc.aio.Channel
    entities: Any = field(init=False)
    imports: Any = field(init=False)
    types: Any = field(init=False)
    schemas: Any = field(init=False)
    operations: Any = field(init=False)
    history: Any = field(init=False)
    log: Any = field(init=False)

    def __post_init__(self) -> None:
        self.entities = pb_grpc.EntityServiceStub(self.channel)
        self.imports = import_service_pb2_grpc.ImportServiceStub(self.channel)
        self.schemas = schema_service_pb2_grpc.SchemaServiceStub(self.channel)
        self.operations = operation_service_pb2_grpc.OperationServiceStub(self.channel)
        self.types = type_service_pb2_grpc.TypeServiceStub(self.channel)
        self.history = history_service_pb2_grpc.HistoryServiceStub(self.channel)
        self.log = log_service_pb2_grpc.LogServiceStub(self.channel)

    def shore(self) -> Shore:
        """A new namespace, and its owner."""
        members = self.deployment.members
        namespace = Namespace(f"shore-{next(_numbers)}", uuid.uuid4().hex[:8])
        members.namespaces[namespace.id] = namespace
        return self.member(namespace, access_pb2.Access.OWNER)

    def member(self, namespace: Namespace, role: int) -> Shore:
        """Somebody with *role* in *namespace*; role 0 is a stranger."""
        user_id = str(uuid.uuid4())
        self.deployment.members.roles[(namespace.id, user_id)] = role
        token = self.deployment.signer.issue(user_id, str(uuid.uuid4()), [], time.time())
        return Shore(self, namespace, user_id, token)


@dataclass
class Shore:
    """A namespace as one person sees it through one replica."""

    replica: Replica
    namespace: Namespace
    user_id: str
    token: str

    @property
    def parent(self) -> str:
        return f"namespaces/{self.namespace.id}"

    def name(self, entity_id: str, type_id: str = "buoy") -> str:
        return f"{self.parent}/types/{type_id}/entities/{entity_id}"

    def through(self, replica: Replica) -> Shore:
        return Shore(replica, self.namespace, self.user_id, self.token)

    def metadata(self, **headers: str) -> tuple[tuple[str, str], ...]:
        given = ((key.replace("_", "-"), value) for key, value in headers.items())
        return (("authorization", f"Bearer {self.token}"), *given)

    async def declare(
        self,
        type_id: str = "buoy",
        schema: dict[str, Any] | None = None,
        indexes: Sequence[dict[str, Any]] = (),
        **fields: Any,
    ) -> entity_pb2.EntityType:
        """Declare a type."""
        type_ = {"schema": ANY if schema is None else schema, "indexes": list(indexes), **fields}
        request = type_service_pb2.CreateTypeRequest(parent=self.parent, type_id=type_id)
        json_format.ParseDict(type_, request.type)
        answer: type_service_pb2.CreateTypeResponse = await self.replica.types.CreateType(
            request, metadata=self.metadata()
        )
        return answer.type

    async def change_type(self, type_id: str = "buoy", **fields: Any) -> entity_pb2.EntityType:
        etag = fields.pop("etag", "")
        request = type_service_pb2.UpdateTypeRequest(update_mask=list(fields), etag=etag)
        json_format.ParseDict({"name": f"{self.parent}/types/{type_id}", **fields}, request.type)
        answer: type_service_pb2.UpdateTypeResponse = await self.replica.types.UpdateType(
            request, metadata=self.metadata()
        )
        return answer.type

    async def get_type(self, type_id: str = "buoy") -> entity_pb2.EntityType:
        request = type_service_pb2.GetTypeRequest(name=f"{self.parent}/types/{type_id}")
        call = self.replica.types.GetType(request, metadata=self.metadata())
        answer: type_service_pb2.GetTypeResponse = await call
        return answer.type

    async def create(
        self,
        entity_id: str,
        data: dict[str, Any],
        type_id: str = "buoy",
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> pb.CreateEntityResponse:
        request = pb.CreateEntityRequest(parent=f"{self.parent}/types/{type_id}", entity_id=entity_id, **more)
        request.entity.data.SetInParent()
        request.entity.data.update(data)
        answer: pb.CreateEntityResponse = await self.replica.entities.CreateEntity(
            request, metadata=self.metadata(**headers or {})
        )
        return answer

    async def get(self, entity_id: str, type_id: str = "buoy", **more: Any) -> entity_pb2.Entity:
        request = pb.GetEntityRequest(name=self.name(entity_id, type_id), **more)
        call = self.replica.entities.GetEntity(request, metadata=self.metadata())
        answer: pb.GetEntityResponse = await call
        return answer.entity

    async def update(
        self,
        entity_id: str,
        data: dict[str, Any] | None,
        type_id: str = "buoy",
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> pb.UpdateEntityResponse:
        request = pb.UpdateEntityRequest(**more)
        request.entity.name = self.name(entity_id, type_id)
        if data is not None:
            request.entity.data.SetInParent()
            request.entity.data.update(data)
        answer: pb.UpdateEntityResponse = await self.replica.entities.UpdateEntity(
            request, metadata=self.metadata(**headers or {})
        )
        return answer

    async def delete(
        self, entity_id: str, type_id: str = "buoy", headers: dict[str, str] | None = None, **more: Any
    ) -> pb.DeleteEntityResponse:
        request = pb.DeleteEntityRequest(name=self.name(entity_id, type_id), **more)
        answer: pb.DeleteEntityResponse = await self.replica.entities.DeleteEntity(
            request, metadata=self.metadata(**headers or {})
        )
        return answer

    async def undelete(self, entity_id: str, type_id: str = "buoy", **more: Any) -> pb.UndeleteEntityResponse:
        request = pb.UndeleteEntityRequest(name=self.name(entity_id, type_id), **more)
        answer: pb.UndeleteEntityResponse = await self.replica.entities.UndeleteEntity(
            request, metadata=self.metadata()
        )
        return answer

    async def page(self, type_id: str = "buoy", **query: Any) -> pb.ListEntitiesResponse:
        request = pb.ListEntitiesRequest(parent=f"{self.parent}/types/{type_id}", **query)
        call = self.replica.entities.ListEntities(request, metadata=self.metadata())
        answer: pb.ListEntitiesResponse = await call
        return answer

    async def list_ids(self, type_id: str = "buoy", **query: Any) -> list[str]:
        """The ids of all pages."""
        ids: list[str] = []
        token = ""
        while True:
            page = await self.page(type_id, page_token=token, **query)
            ids += [entity.name.rsplit("/", 1)[1] for entity in page.entities]
            token = page.next_page_token
            if not token:
                return ids

    async def batch_get(self, ids: Sequence[str], type_id: str = "buoy", **more: Any) -> pb.BatchGetEntitiesResponse:
        request = pb.BatchGetEntitiesRequest(parent=f"{self.parent}/types/{type_id}", ids=ids, **more)
        call = self.replica.entities.BatchGetEntities(request, metadata=self.metadata())
        answer: pb.BatchGetEntitiesResponse = await call
        return answer

    async def revisions(
        self, entity_id: str, type_id: str = "buoy", **query: Any
    ) -> history_service_pb2.ListEntityRevisionsResponse:
        name = self.name(entity_id, type_id)
        request = history_service_pb2.ListEntityRevisionsRequest(name=name, **query)
        call = self.replica.history.ListEntityRevisions(request, metadata=self.metadata())
        answer: history_service_pb2.ListEntityRevisionsResponse = await call
        return answer

    async def roll_back(
        self, entity_id: str, to_revision: int, headers: dict[str, str] | None = None, **more: Any
    ) -> history_service_pb2.RollbackEntityResponse:
        request = history_service_pb2.RollbackEntityRequest(name=self.name(entity_id), to_revision=to_revision, **more)
        call = self.replica.history.RollbackEntity(request, metadata=self.metadata(**headers or {}))
        answer: history_service_pb2.RollbackEntityResponse = await call
        return answer

    async def diff(
        self, entity_id: str, from_revision: int, to_revision: int = 0, type_id: str = "buoy"
    ) -> history_service_pb2.EntityDiff:
        """What changed in one entity."""
        request = history_service_pb2.DiffEntityRequest(
            name=self.name(entity_id, type_id), from_revision=from_revision, to_revision=to_revision
        )
        call = self.replica.history.DiffEntity(request, metadata=self.metadata())
        answer: history_service_pb2.DiffEntityResponse = await call
        return answer.diff

    async def diff_page(self, **query: Any) -> history_service_pb2.DiffRevisionsResponse:
        request = history_service_pb2.DiffRevisionsRequest(parent=self.parent, **query)
        call = self.replica.history.DiffRevisions(request, metadata=self.metadata())
        answer: history_service_pb2.DiffRevisionsResponse = await call
        return answer

    async def look_up(self, **moment: Any) -> history_service_pb2.LookupRevisionResponse:
        request = history_service_pb2.LookupRevisionRequest(parent=self.parent, **moment)
        call = self.replica.history.LookupRevision(request, metadata=self.metadata())
        answer: history_service_pb2.LookupRevisionResponse = await call
        return answer

    async def export_page(self, **query: Any) -> history_service_pb2.ExportEntitiesResponse:
        request = history_service_pb2.ExportEntitiesRequest(parent=self.parent, **query)
        call = self.replica.history.ExportEntities(request, metadata=self.metadata())
        answer: history_service_pb2.ExportEntitiesResponse = await call
        return answer

    async def transact(self, *mutations: entity_pb2.Mutation, **more: Any) -> pb.TransactResponse:
        request = pb.TransactRequest(parent=self.parent, mutations=mutations, **more)
        call = self.replica.entities.Transact(request, metadata=self.metadata())
        answer: pb.TransactResponse = await call
        return answer

    async def batch(self, *writes: entity_pb2.Mutation, **more: Any) -> pb.BatchWriteResponse:
        request = pb.BatchWriteRequest(parent=self.parent, writes=writes, **more)
        call = self.replica.entities.BatchWrite(request, metadata=self.metadata())
        answer: pb.BatchWriteResponse = await call
        return answer

    def creating(self, entity_id: str, data: dict[str, Any], type_id: str = "buoy") -> entity_pb2.Mutation:
        create = entity_pb2.CreateMutation(name=self.name(entity_id, type_id), data_json=json.dumps(data).encode())
        return entity_pb2.Mutation(create=create)

    def updating(self, entity_id: str, data: dict[str, Any], type_id: str = "buoy", **more: Any) -> entity_pb2.Mutation:
        raw = json.dumps(data).encode()
        return entity_pb2.Mutation(
            update=entity_pb2.UpdateMutation(name=self.name(entity_id, type_id), data_json=raw, **more)
        )

    def deleting(self, entity_id: str, type_id: str = "buoy", **more: Any) -> entity_pb2.Mutation:
        return entity_pb2.Mutation(delete=entity_pb2.DeleteMutation(name=self.name(entity_id, type_id), **more))

    def undeleting(self, entity_id: str, type_id: str = "buoy") -> entity_pb2.Mutation:
        return entity_pb2.Mutation(undelete=entity_pb2.UndeleteMutation(name=self.name(entity_id, type_id)))

    async def head(self) -> int:
        """The newest revision."""
        request = log_service_pb2.GetHeadsRequest(namespace_ids=[self.namespace.id])
        answer = await self.replica.log.GetHeads(request)
        return int(answer.heads[0].revision) if answer.heads else 0

    async def units(self, after: int = 0) -> list[feed_pb2.Unit]:
        """The log after a revision."""
        units: list[feed_pb2.Unit] = []
        while True:
            request = log_service_pb2.ReadUnitsRequest(
                namespace_id=self.namespace.id, after_revision=units[-1].revision if units else after
            )
            answer = await self.replica.log.ReadUnits(request)
            if not answer.units:
                return units
            units += map(feed_pb2.Unit.FromString, answer.units)


@pytest.fixture(scope="session")
async def deployment(postgres: str) -> AsyncIterator[Deployment]:  # noqa: F811
    """A database with the roles of a deployment, and keys."""
    folder = Path(tempfile.mkdtemp(prefix="sl-entity-"))
    app, migrating, superuser = await _make_database(postgres, "entity")
    await migrate(migrating, MIGRATIONS)
    _write_secret(folder / "secrets" / "page_token.key", os.urandom(32))
    key = Ed25519PrivateKey.generate()
    _write_secret(folder / "signing" / "001.pem", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    yield Deployment(folder, app, superuser, TokenSigner(folder / "signing", ISSUER))
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
async def replica(deployment: Deployment) -> AsyncIterator[Replica]:
    """The entity service."""
    async with deployment.replica() as running:
        yield running


@pytest.fixture(scope="session")
async def other_replica(deployment: Deployment) -> AsyncIterator[Replica]:
    """A second process on the same database."""
    async with deployment.replica() as running:
        yield running


@pytest.fixture
def shore(replica: Replica) -> Shore:
    """A fresh namespace, seen by its owner."""
    return replica.shore()


async def _make_database(postgres: str, name: str) -> tuple[str, str, str]:  # noqa: F811
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        for statement in (
            f"CREATE ROLE {name}_owner NOLOGIN",
            f"CREATE ROLE {name}_migrate LOGIN IN ROLE {name}_owner",
            f"CREATE ROLE {name}_app LOGIN",
            f'CREATE DATABASE "{name}" OWNER {name}_owner',
        ):
            await connection.execute(statement.encode())
    superuser = psycopg.conninfo.make_conninfo(postgres, dbname=name)
    defaults = f"ALTER DEFAULT PRIVILEGES FOR ROLE {name}_owner GRANT"
    async with await psycopg.AsyncConnection.connect(superuser, autocommit=True) as connection:
        for statement in (
            "REVOKE ALL ON SCHEMA public FROM PUBLIC",
            f"ALTER SCHEMA public OWNER TO {name}_owner",
            f"GRANT USAGE ON SCHEMA public TO {name}_app",
            f"{defaults} SELECT, INSERT, UPDATE, DELETE ON TABLES TO {name}_app",
            f"{defaults} USAGE ON SEQUENCES TO {name}_app",
        ):
            await connection.execute(statement.encode())
    as_user = psycopg.conninfo.make_conninfo
    return as_user(superuser, user=f"{name}_app"), as_user(superuser, user=f"{name}_migrate"), superuser


def _write_secret(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until *condition* holds."""
    async with asyncio.timeout(60):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def ready(shore: Shore, type_id: str = "buoy") -> entity_pb2.EntityType:
    """The type once none of its indexes is being built."""

    async def built() -> bool:
        return all(index.state != index.BUILDING for index in (await shore.get_type(type_id)).indexes)

    await eventually(built)
    return await shore.get_type(type_id)


def operation(field: str, **does: Any) -> entity_pb2.FieldOperation:
    """``operation("data.n", increment=1)``."""
    return json_format.ParseDict({"field": field, **does}, entity_pb2.FieldOperation())


def error_info(failure: object) -> Any:
    """The ``ErrorInfo`` of a refusal."""
    assert isinstance(failure, grpc.aio.AioRpcError)
    details = dict(failure.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    return info_in(status_pb2.Status.FromString(details))


def info_in(status: Any) -> Any:
    """The ``ErrorInfo`` of a status."""
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def pointers(failure: grpc.aio.AioRpcError) -> list[str]:
    """Where the violations of a refusal are."""
    details = dict(failure.trailing_metadata() or ())["grpc-status-details-bin"]
    request = error_details_pb2.BadRequest()
    assert status_pb2.Status.FromString(details).details[1].Unpack(request)
    return [violation.field for violation in request.field_violations]


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """The error that *call* ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value


async def reason(call: Any) -> str:
    """The stable reason that *call* is refused with."""
    return str(error_info(await refusal(call)).reason)
