"""The user and the entity service as two processes: access and deletion across them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from strandline.entity.v1 import entity_pb2, entity_service_pb2_grpc, type_service_pb2_grpc
from strandline.entity.v1 import entity_service_pb2 as entity
from strandline.entity.v1 import type_service_pb2 as types
from strandline.user.v1 import namespace_service_pb2 as pb

from tests.integration.user.conftest import DatabaseFactory, reason_of, write_secret
from tests.integration.user.test_process import (
    ADMIN,
    environment,  # noqa: F401  (a fixture)
    eventually,
    launched,
    nats_server,  # noqa: F401  (a fixture)
    url_of,
)
from tests.nats import Nats


@asynccontextmanager
async def entity_service(variables: dict[str, str]) -> AsyncIterator[grpc.aio.Channel]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.entity.server"),
        env=variables,
        cwd=Path(__file__).parents[3],
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with grpc.aio.insecure_channel(variables["STRANDLINE_LISTEN"]) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=60)
            yield channel
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)


@pytest.fixture
async def entity_environment(
    databases: DatabaseFactory,
    environment: tuple[dict[str, str], str],  # noqa: F811
    folder: Path,
    nats_server: Nats,  # noqa: F811
) -> dict[str, str]:
    name = f"entity{time.time_ns()}"
    app, migrating, _ = await databases(name)
    write_secret(folder / "entity-secrets" / "page_token.key", os.urandom(32))
    return {
        "PATH": os.environ["PATH"],
        "STRANDLINE_LISTEN": environment[0]["STRANDLINE_ENTITY_ADDRESS"],
        "STRANDLINE_DATABASE_URL": url_of(app),
        "STRANDLINE_MIGRATE_URL": url_of(migrating),
        "STRANDLINE_NATS_URL": nats_server.url,
        "STRANDLINE_SECRETS_DIR": str(folder / "entity-secrets"),
        "STRANDLINE_USER_ADDRESS": environment[0]["STRANDLINE_LISTEN"],
    }


async def test_a_deleted_namespace_loses_its_entities_and_begins_a_new_life_empty(
    environment: tuple[dict[str, str], str],  # noqa: F811
    entity_environment: dict[str, str],
) -> None:
    async with launched(environment) as user, entity_service(entity_environment) as channel:
        admin = await user.sign_in(ADMIN)
        type_stub: Any = type_service_pb2_grpc.TypeServiceStub(channel)
        entity_stub: Any = entity_service_pb2_grpc.EntityServiceStub(channel)
        name = "namespaces/tides/types/buoy/entities/b1"

        async def create_namespace() -> pb.CreateNamespaceResponse:
            request = pb.CreateNamespaceRequest(namespace_id="tides")
            answer: pb.CreateNamespaceResponse = await user.namespaces.CreateNamespace(
                request, metadata=admin.credentials
            )
            return answer

        async def create_buoy() -> entity.CreateEntityResponse:
            schema = entity_pb2.EntityType()
            schema.schema.update({"type": "object", "properties": {"depth": {"type": "number"}}})
            await type_stub.CreateType(
                types.CreateTypeRequest(parent="namespaces/tides", type_id="buoy", type=schema),
                metadata=admin.credentials,
            )
            buoy = entity_pb2.Entity()
            buoy.data.update({"depth": 7})
            request = entity.CreateEntityRequest(parent="namespaces/tides/types/buoy", entity_id="b1", entity=buoy)
            answer: entity.CreateEntityResponse = await entity_stub.CreateEntity(request, metadata=admin.credentials)
            return answer

        first = await create_namespace()
        before = await create_buoy()
        assert before.epoch == first.namespace.epoch
        await user.namespaces.DeleteNamespace(
            pb.DeleteNamespaceRequest(name="namespaces/tides"), metadata=admin.credentials
        )

        async def outcome(call: Any) -> str:
            try:
                await call
            except grpc.aio.AioRpcError as failure:
                return reason_of(failure)
            return "OK"

        def read() -> Any:
            return entity_stub.GetEntity(entity.GetEntityRequest(name=name), metadata=admin.credentials)

        async def gone() -> bool:
            return await outcome(read()) == "NOT_FOUND"

        await eventually(gone)
        async with asyncio.timeout(60):
            while (freed := await outcome(create_namespace())) != "OK":
                assert freed == "ALREADY_EXISTS"
                await asyncio.sleep(0.1)
        second = await user.namespaces.GetNamespace(
            pb.GetNamespaceRequest(name="namespaces/tides"), metadata=admin.credentials
        )
        assert second.namespace.epoch != first.namespace.epoch
        assert await outcome(read()) == "NOT_FOUND"
        again = await create_buoy()
        assert again.epoch == second.namespace.epoch
        assert again.revision == before.revision
