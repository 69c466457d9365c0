"""The stream service in this process, over a real log, a real bus and a real HTTP port."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.entity.server import MIGRATIONS
from services.runtime.bus import Bus
from services.runtime.call import Namespace
from services.runtime.migrations import migrate
from services.stream.server import MIGRATIONS as OWN_MIGRATIONS
from tests.nats import Nats
from tests.postgres import postgres

from .hooks import EDITOR, Editor, HookService
from .owner import SYSTEM, TIDES, Owner, declare_types
from .receiver import HookReceiver
from .service import ANN, StreamService
from .subscribers import Client, client_of, let

__all__ = ["TIDES", "postgres"]

_numbers = itertools.count(1)
APP = "stream_app"


@pytest.fixture(scope="session")
def nats_server() -> Iterator[Nats]:
    server = Nats()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def run_folder() -> Iterator[Path]:
    # Short: a unix socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="sl-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
async def template(postgres: str) -> str:
    """The name of a database with the entity service's schema, and a role with the rights that the service has."""
    name = "stream_template"
    superuser = psycopg.conninfo.make_conninfo(postgres, dbname=name)
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.execute(f"CREATE ROLE {APP} LOGIN NOSUPERUSER NOBYPASSRLS")
    await migrate(superuser, MIGRATIONS)
    async with await psycopg.AsyncConnection.connect(superuser) as connection:
        await connection.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {APP};"
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {APP}"
        )
        await declare_types(connection)
    return name


@pytest.fixture
async def log_url(postgres: str, template: str) -> str:
    """A fresh database of the entity service, as a role without privileges beyond its tables."""
    name = f"stream{next(_numbers)}"
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
    return psycopg.conninfo.make_conninfo(postgres, dbname=name, user=APP)


@pytest.fixture(scope="session")
async def own_template(postgres: str, template: str) -> str:
    """The name of a database with the stream service's own schema. (*template* makes the role.)"""
    name = "stream_own_template"
    superuser = psycopg.conninfo.make_conninfo(postgres, dbname=name)
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        await connection.execute(f"CREATE DATABASE {name}")
    await migrate(superuser, OWN_MIGRATIONS)
    async with await psycopg.AsyncConnection.connect(superuser) as connection:
        await connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {APP}")
    return name


@pytest.fixture
async def own_url(postgres: str, own_template: str) -> str:
    """A fresh database of the stream service, as a role without privileges beyond its tables."""
    name = f"stream_own{next(_numbers)}"
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE {own_template}".encode())
    return psycopg.conninfo.make_conninfo(postgres, dbname=name, user=APP)


MakeOwner = Callable[[], Awaitable[Owner]]


@pytest.fixture
async def make_owner(log_url: str, nats_server: Nats, run_folder: Path) -> AsyncIterator[MakeOwner]:
    """Processes of one owner: same database, each with its own connection to the bus."""
    made: list[Owner] = []

    async def make() -> Owner:
        bus = Bus(nats_server.url, ("", ""), None, f"owner{len(made)}")
        bus.start()
        made.append(Owner(log_url, bus, run_folder / f"owner{len(made)}.sock"))
        return made[-1]

    yield make
    for owner in made:
        await owner.close()
        await owner.bus.close()


@pytest.fixture
async def owner(make_owner: MakeOwner, monkeypatch: pytest.MonkeyPatch) -> Owner:
    """The owner, in whose namespaces Ann is a viewer. A snapshot of a few entities takes several pages."""
    monkeypatch.setattr("services.entity.snapshots.MAX_WALKED", 10)
    first = await make_owner()
    await first.start()
    await found(first, TIDES)
    return first


async def found(owner: Owner, namespace: Namespace) -> None:
    """Make *namespace*, and Ann its viewer."""
    data = {"epoch": namespace.epoch, "state": "ACTIVE", "massChangeGuard": "OFF"}
    member = {"namespace": namespace.id, "user": ANN, "role": "VIEWER"}
    await owner.write(SYSTEM, {("namespace", namespace.id): data, ("membership", f"{namespace.id}~{ANN}"): member})


MakeStream = Callable[..., Awaitable[StreamService]]


@pytest.fixture
async def make_stream(owner: Owner, nats_server: Nats, run_folder: Path) -> AsyncIterator[MakeStream]:
    made: list[StreamService] = []

    async def make(**options: Any) -> StreamService:
        service = StreamService(owner.socket, nats_server.url, run_folder / f"stream{len(made)}", **options)
        made.append(service)
        await service.start()
        return service

    yield make
    for service in made:
        await service.stop()


@pytest.fixture
async def stream(make_stream: MakeStream) -> StreamService:
    return await make_stream()


MakeReplica = Callable[..., Awaitable[StreamService]]


@pytest.fixture
async def make_replica(
    owner: Owner, make_stream: MakeStream, own_url: str, monkeypatch: pytest.MonkeyPatch
) -> MakeReplica:
    # A pull that does not wait has looked at all there is, however long that took.
    monkeypatch.setattr("services.stream.worker.LOOK_SECONDS", 60.0)
    await let(owner, ANN, "EDITOR")

    async def make(**options: Any) -> StreamService:
        return await make_stream(own_url=own_url, **options)

    return make


@pytest.fixture
async def client(make_replica: MakeReplica) -> AsyncIterator[Client]:
    async with client_of(await make_replica()) as client:
        yield client


@pytest.fixture
async def receiver(tmp_path: Path) -> AsyncIterator[HookReceiver]:
    server = HookReceiver(tmp_path)
    await server.start()
    yield server
    await server.stop()


MakeHooks = Callable[..., Awaitable[HookService]]


@pytest.fixture
async def make_hooks(
    owner: Owner, nats_server: Nats, run_folder: Path, own_url: str, receiver: HookReceiver
) -> AsyncIterator[MakeHooks]:
    """Replicas of the service over one database."""
    member = {"namespace": "tides", "user": EDITOR, "role": "EDITOR"}
    await owner.write(SYSTEM, {("membership", f"tides~{EDITOR}"): member})
    made: list[HookService] = []

    async def make(**options: Any) -> HookService:
        options.setdefault("receivers", [receiver.opened])
        address = run_folder / f"hooks{len(made)}"
        made.append(HookService(owner.socket, nats_server.url, address, own_url, **options))
        await made[-1].start()
        return made[-1]

    yield make
    for service in made:
        await service.stop()


@pytest.fixture
async def editor(make_hooks: MakeHooks) -> AsyncIterator[Editor]:
    service = await make_hooks()
    async with service.editor() as editor:
        yield editor
