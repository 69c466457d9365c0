"""The process of the entity service: ``strandline-entity`` serves, ``strandline-entity migrate`` updates the schema."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.entity import api, history_api, import_api, operation_api, retention_api, schema_api, type_api, upkeep
from services.entity.aggregates import Aggregator
from services.entity.catalog import Catalog
from services.entity.counts import Counter
from services.entity.evolution import Comparer
from services.entity.expiry import Expirer
from services.entity.exports import Exporter
from services.entity.history import History
from services.entity.imports import Importer
from services.entity.index_builds import IndexBuilder
from services.entity.leases import Leases
from services.entity.ledger import EntityLedger
from services.entity.limits import Confirmations
from services.entity.lists import Lister
from services.entity.long_running import OperationRunner
from services.entity.operation_store import OperationKind
from services.entity.purge import Purger
from services.entity.purges import Purges
from services.entity.reads import Reader
from services.entity.revision_diffs import RevisionDiffs
from services.entity.snapshots import SnapshotReader
from services.entity.validations import EntityValidation
from services.entity.writes import Writer
from services.runtime import log_service
from services.runtime.access import AccessCopy
from services.runtime.bus import Bus
from services.runtime.committer import Committer
from services.runtime.database import Database
from services.runtime.gate import Gate
from services.runtime.remote_keys import RemoteKeys
from services.runtime.server import Server
from services.runtime.settings import Settings, read_key
from services.runtime.startup import serve_or_migrate, wait_for_database
from services.runtime.tokens import TokenVerifier
from services.runtime.upstream import channel

MIGRATIONS = Path(__file__).parent / "migrations"


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
        confirmations = Confirmations(token_key)
        self.committer = Committer(self.database, EntityLedger(types, confirmations), bus.publish_commit)
        self.builder = IndexBuilder(self.database)
        self.comparer = Comparer()
        self.runner = OperationRunner(self.database, {OperationKind.VALIDATE_ENTITIES: EntityValidation()})
        writer = Writer(self.database, types, self.committer)
        self.expirer = Expirer(self.database, writer)
        history = History(self.database, types, token_key)
        snapshots = SnapshotReader(self.database)
        leases = Leases(self.database)
        handlers: dict[str, object] = {
            api.SERVICE: api.EntityHandlers(
                writer,
                Reader(self.database),
                Lister(self.database, types, token_key),
                Counter(self.database, types),
                Aggregator(self.database, types),
                history,
                Purger(self.database),
                Purges(self.database, writer, self.committer),
                confirmations,
            ),
            import_api.SERVICE: import_api.ImportHandlers(Importer(self.database, writer, confirmations), token_key),
            type_api.SERVICE: type_api.TypeHandlers(
                self.database, self.committer, self.builder, self.comparer, self.runner, token_key
            ),
            schema_api.SERVICE: schema_api.SchemaHandlers(self.database, self.comparer, self.runner, token_key),
            operation_api.SERVICE: operation_api.OperationHandlers(self.database),
            history_api.SERVICE: history_api.HistoryHandlers(
                writer,
                history,
                RevisionDiffs(self.database, history, token_key),
                Exporter(self.database, snapshots, leases, token_key),
                confirmations,
            ),
            log_service.NAME: log_service.LogHandlers(self.database, snapshots, leases),
            retention_api.SERVICE: retention_api.RetentionHandlers(self.database),
        }
        self.server = Server(settings)
        for name, service_handlers in handlers.items():
            self.server.add(name, service_handlers, gate.admit)

    async def run(self) -> None:
        """Serve until told to stop; then answer what was submitted."""
        self.builder.start()
        background = [
            asyncio.create_task(upkeep.forget(self.database)),
            asyncio.create_task(self.expirer.run()),
            asyncio.create_task(self.runner.run()),
        ]
        try:
            await self.server.run()
        finally:
            for task in background:
                task.cancel()
            self.comparer.close()
            await self.builder.stop()
            await self.committer.drain()
            await self.database.close()


async def serve(settings: EntitySettings) -> None:
    """Bring the schema up to date if that is this process's task, and serve."""
    await wait_for_database(settings, MIGRATIONS)
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


def main() -> None:
    """The console script."""
    serve_or_migrate("entity", EntitySettings.from_env, serve, MIGRATIONS)


if __name__ == "__main__":
    main()
