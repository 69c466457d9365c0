"""The tables that the code knows are the tables that the migrations make; and what the app role may not do."""

from __future__ import annotations

import psycopg
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.runtime.migrations import migrate
from services.user.schema import metadata
from services.user.server import MIGRATIONS
from tests.integration.user.conftest import DatabaseFactory, Running

LOG_TABLES = {"heads", "units", "versions", "requests", "alembic_version"}


async def test_the_schema_and_the_migrations_agree(user: Running) -> None:
    engine = sqlalchemy.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(user.url))
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_name": lambda name, kind, _: kind != "table" or name not in LOG_TABLES,
                "compare_type": True,
            },
        )
        assert compare_metadata(context, metadata) == []
    engine.dispose()


async def test_migrating_twice_changes_nothing_and_keeps_the_life_of_system(databases: DatabaseFactory) -> None:
    app, migrating, _ = await databases("migrated")
    epochs = []
    for _ in range(2):
        await migrate(migrating, MIGRATIONS)
        async with await psycopg.AsyncConnection.connect(app) as connection:
            rows = await (await connection.execute("SELECT epoch, revision FROM heads")).fetchall()
        epochs += rows
    assert epochs[0] == epochs[1]
    assert len(epochs[0][0]) == 8


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (a int)",
        "ALTER TABLE users ADD COLUMN a int",
        "DROP TABLE audit",
        "TRUNCATE users",
        "CREATE TEMP TABLE mine (a int)",
        "ALTER TABLE units DISABLE ROW LEVEL SECURITY",
        "SET ROLE user_owner",
    ],
)
async def test_the_app_role_may_not_change_the_schema(user: Running, statement: str) -> None:
    app = psycopg.conninfo.make_conninfo(user.url, user="user_app")
    async with await psycopg.AsyncConnection.connect(app) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(statement.encode())


async def test_the_log_is_hidden_from_who_names_no_namespace(user: Running) -> None:
    await user.person()
    app = psycopg.conninfo.make_conninfo(user.url, user="user_app")
    async with await psycopg.AsyncConnection.connect(app) as connection:
        query = "SELECT (SELECT count(*) FROM units), (SELECT count(*) FROM versions), (SELECT count(*) FROM requests)"
        assert await (await connection.execute(query)).fetchall() == [(0, 0, 0)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("INSERT INTO heads (namespace, epoch) VALUES ('other', '00000000')")
