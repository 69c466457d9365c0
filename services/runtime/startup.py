"""How the process of a service that owns a database starts: its command line, and the wait for the database."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg

from services.runtime import changelog, telemetry
from services.runtime.changelog import Head
from services.runtime.database import Database, Statement
from services.runtime.migrations import migrate
from services.runtime.server import run_main
from services.runtime.settings import Settings

DATABASE_SECONDS: Final = 15.0
"""How long to wait for a database that is starting too."""
_SCHEMA_IS_THERE: Final = Statement("SELECT FROM alembic_version")

S = TypeVar("S", bound=Settings)


async def wait_for_database(settings: Settings, migrations: Path, namespaces: Sequence[str] = ()) -> list[Head]:
    """Return the heads of *namespaces* once the database answers and has its schema.

    *migrations* are applied if that is this process's task (``settings.migrate_url``).

    Raises:
        RuntimeError: not within 15 s.
    """
    deadline = asyncio.get_running_loop().time() + DATABASE_SECONDS
    while True:
        try:
            if settings.migrate_url:
                await migrate(settings.migrate_url, migrations)
            database = Database(settings.database_url, size=1)
            try:
                await database.read_one(_SCHEMA_IS_THERE)
                return await changelog.read_heads(database, namespaces) if namespaces else []
            finally:
                await database.close()
        except (psycopg.OperationalError, psycopg.errors.UndefinedTable) as failure:
            if asyncio.get_running_loop().time() > deadline:
                raise RuntimeError(f"the database is not ready: {failure}") from failure
            await asyncio.sleep(0.1)


def serve_or_migrate(
    service: str,
    from_env: Callable[[Mapping[str, str]], S],
    serve: Callable[[S], Coroutine[Any, Any, None]],
    migrations: Path,
) -> None:
    """The console script of *service*: serves, or with the argument ``migrate`` only applies *migrations*."""
    telemetry.configure_logging(service, os.environ.get("STRANDLINE_LOG_LEVEL", "INFO"))

    async def run() -> None:
        settings = from_env(os.environ)
        if sys.argv[1:] != ["migrate"]:
            await serve(settings)
        elif settings.migrate_url:
            await migrate(settings.migrate_url, migrations)
        else:
            raise KeyError("STRANDLINE_MIGRATE_URL")

    run_main(run)
