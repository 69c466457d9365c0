"""The process of the entity service: ``strandline-entity`` serves, ``strandline-entity migrate`` updates the schema."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psycopg

from services.entity import api, type_api, upkeep
from services.entity.catalog import Catalog
from services.entity.index_builds import IndexBuilder
from services.entity.ledger import EntityLedger
from services.entity.lists import Lister
from services.entity.purge import Purger
from services.entity.reads import Reader
from services.entity.snapshots import SnapshotReader
from services.entity.writes import Writer
from services.runtime import changelog, log_service, telemetry
from services.runtime.access import AccessCopy
from services.runtime.bus import Bus
from services.runtime.committer import Committer
from services.runtime.database import Database
from services.runtime.gate import Gate
from services.runtime.migrations import migrate
from services.runtime.remote_keys import RemoteKeys
from services.runtime.server import Server, run_main
from services.runtime.settings import Settings, read_key
from services.runtime.tokens import TokenVerifier
from services.runtime.upstream import channel

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent / "migrations"
# How long to wait at start for a database that is starting too.
DATABASE_SECONDS = 15.0


@dataclass(frozen=True, kw_only=True)
class EntitySettings(Settings):
    """What the entity service needs beside the common settings."""

    user_address: str
    """The user service, through the own sidecar."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read ``STRANDLINE_*``."""
        return cls(**cls.common(env), user_address=env["STRANDLINE_USER_ADDRESS"])  # type: ignore[arg-type]  # own fields


class EntityService:
    """What one process consists of, behind *gate*; must be made inside the event loop."""

    def __init__(self, settings: EntitySettings, gate: Gate, bus: Bus) -> None:
        token_key = read_key(settings.secrets_dir, "page_token.key")
        self.database = Database(settings.database_url)
        types = Catalog(self.database)
        self.committer = Committer(self.database, EntityLedger(types), bus.publish_commit)
        self.builder = IndexBuilder(self.database)
        handlers: dict[str, object] = {
            api.SERVICE: api.EntityHandlers(
                Writer(self.database, types, self.committer),
                Reader(self.database),
                Lister(self.database, types, token_key),
                Purger(self.database),
            ),
            type_api.SERVICE: type_api.TypeHandlers(self.database, self.committer, self.builder, token_key),
            log_service.NAME: log_service.LogHandlers(self.database, SnapshotReader(self.database)),
        }
        self.server = Server(settings)
        for name, service_handlers in handlers.items():
            self.server.add(name, service_handlers, gate.admit)

    async def run(self) -> None:
        """Serve until told to stop; then answer what was submitted."""
        self.builder.start()
        forgetting = asyncio.create_task(upkeep.forget(self.database))
        try:
            await self.server.run()
        finally:
            forgetting.cancel()
            await self.builder.stop()
            await self.committer.drain()
            await self.database.close()


async def serve(settings: EntitySettings) -> None:
    """Bring the schema up to date if that is this process's task, and serve."""
    await _wait_for_database(settings)
    bus = Bus(settings.nats_url, settings.nats_credentials, settings.tls_dir, "entity")
    user_service = channel(settings.user_address)
    access = AccessCopy(user_service, bus)
    gate = Gate(TokenVerifier(settings.token_issuer, RemoteKeys(user_service).get), access)
    service = EntityService(settings, gate, bus)
    bus.start()
    try:
        await access.start()
        await service.run()
    finally:
        await access.stop()
        await bus.close()
        await user_service.close()


async def _wait_for_database(settings: EntitySettings) -> None:
    """Return once the database answers and has its schema.

    Raises:
        RuntimeError: not within 15 s.
    """
    deadline = asyncio.get_running_loop().time() + DATABASE_SECONDS
    while True:
        try:
            if settings.migrate_url:
                await migrate(settings.migrate_url, MIGRATIONS)
            database = Database(settings.database_url, size=1)
            try:
                await changelog.read_heads(database, [])
            finally:
                await database.close()
            return
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable) as failure:
            if asyncio.get_running_loop().time() > deadline:
                raise RuntimeError(f"the database is not ready: {failure}") from failure
            await asyncio.sleep(0.1)


def main() -> None:
    """The console script."""
    telemetry.configure_logging("entity", os.environ.get("STRANDLINE_LOG_LEVEL", "INFO"))
    run_main(_migrate if sys.argv[1:] == ["migrate"] else _serve)


async def _serve() -> None:
    await serve(EntitySettings.from_env(os.environ))


async def _migrate() -> None:
    settings = EntitySettings.from_env(os.environ)
    if not settings.migrate_url:
        raise KeyError("STRANDLINE_MIGRATE_URL")
    await migrate(settings.migrate_url, MIGRATIONS)


if __name__ == "__main__":
    main()
