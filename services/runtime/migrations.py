"""Bringing a database's schema up to date: alembic, forward only, one process at a time."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import psycopg

logger = logging.getLogger(__name__)

_LOCK = 7263_5581  # any number, the same in every process: pg_advisory_lock key of migrations


async def migrate(url: str, folder: Path) -> None:
    """Apply the revisions in *folder*/versions (``0001_name.py``, ...) that the database at *url* lacks.

    New objects belong to ``<database>_owner`` where that role exists. Costs one query when nothing is to be done.
    """
    newest = max(path.name.split("_", 1)[0] for path in (folder / "versions").glob("[0-9]*_*.py"))
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        if await _current(connection) == newest:
            return
        # Held by this session while alembic works in its own connection.
        await connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        if await _current(connection) != newest:
            logger.info("migrating to %s", newest)
            await _upgrade_in_own_process(url, folder)


async def _current(connection: psycopg.AsyncConnection[tuple[str]]) -> str | None:
    exists = await (await connection.execute("SELECT to_regclass('alembic_version') IS NOT NULL")).fetchone()
    if exists is None or not exists[0]:
        return None
    row = await (await connection.execute("SELECT version_num FROM alembic_version")).fetchone()
    return row[0] if row else None


async def _upgrade_in_own_process(url: str, folder: Path) -> None:
    # alembic takes 27 MB, which a service would keep for the rest of its life. The password goes by the pipe.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.runtime.migrations", str(folder), stdin=subprocess.PIPE
    )
    await process.communicate(url.encode())
    if process.returncode != 0:
        raise RuntimeError("the database's schema could not be brought up to date; the cause is said above")


def _upgrade(url: str, folder: Path) -> None:
    # Imported here: a process whose schema is up to date never pays for it.
    import sqlalchemy
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(folder))
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    try:
        with engine.begin() as connection:
            owner = connection.exec_driver_sql(
                "SELECT rolname FROM pg_roles WHERE rolname = current_database() || '_owner'"
            ).scalar()
            if owner:
                connection.exec_driver_sql(f'SET LOCAL ROLE "{owner}"')
            context = MigrationContext.configure(
                connection,
                opts={"script": scripts, "fn": lambda current, _: scripts._upgrade_revs("head", current)},
            )
            with Operations.context(context):
                context.run_migrations()
    finally:
        engine.dispose()


if __name__ == "__main__":
    _upgrade(sys.stdin.read(), Path(sys.argv[1]))
