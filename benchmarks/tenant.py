"""A namespace with one type to measure in: signed in as the platform's administrator, over the public RPCs."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import ParseDict
from strandline.entity.v1 import entity_pb2, entity_service_pb2_grpc, type_service_pb2, type_service_pb2_grpc
from strandline.user.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    namespace_service_pb2,
    namespace_service_pb2_grpc,
)
from strandline_cli.credentials import ADMIN_EMAIL

from benchmarks.stack import Stack
from services.runtime.upstream import channel

TYPE = "airport"
# Of what ``records.records`` makes; closed, so that validation looks at every key.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "country"],
    "properties": {
        "name": {"type": "string", "maxLength": 200},
        "city": {"type": "string", "maxLength": 200},
        "country": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "kind": {"enum": ["small", "medium", "large", "heliport"]},
        "population": {"type": "integer", "minimum": 0},
        "elevation": {"type": "number"},
        "latitude": {"type": "number", "minimum": -90, "maximum": 90},
        "longitude": {"type": "number", "minimum": -180, "maximum": 180},
        "open": {"type": "boolean"},
        "mark": {"type": "string"},
    },
}
INDEXES = (["data.city"], ["data.population desc"], ["data.country", "data.elevation"])


@dataclass(frozen=True)
class Tenant:
    """A namespace, who is allowed to write to it, and stubs on the entity service's own socket."""

    namespace: str
    token: str
    entities: entity_service_pb2_grpc.EntityServiceAsyncStub

    @property
    def parent(self) -> str:
        return f"namespaces/{self.namespace}"

    @property
    def type_name(self) -> str:
        return f"{self.parent}/types/{TYPE}"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),)


@asynccontextmanager
async def tenant(stack: Stack, *, indexed: bool) -> AsyncIterator[Tenant]:
    """A new namespace with the type ``airport``, with three indexes or none."""
    namespace = f"bench-{secrets.token_hex(4)}"
    async with channel(f"unix:{stack.address('user')}") as user, channel(f"unix:{stack.address('entity')}") as entity:
        login = auth_service_pb2.LoginRequest(email=ADMIN_EMAIL, password=stack.secret("admin/password"))
        token = (await auth_service_pb2_grpc.AuthServiceStub(user).Login(login)).access_token
        made = Tenant(namespace, token, entity_service_pb2_grpc.EntityServiceStub(entity))
        await namespace_service_pb2_grpc.NamespaceServiceStub(user).CreateNamespace(
            namespace_service_pb2.CreateNamespaceRequest(namespace_id=namespace), metadata=made.metadata
        )
        declared = entity_pb2.EntityType(
            indexes=[entity_pb2.Index(fields=fields) for fields in INDEXES] if indexed else []
        )
        ParseDict(SCHEMA, declared.schema)
        await type_service_pb2_grpc.TypeServiceStub(entity).CreateType(
            type_service_pb2.CreateTypeRequest(parent=made.parent, type_id=TYPE, type=declared), metadata=made.metadata
        )
        yield made
