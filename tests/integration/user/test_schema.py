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
from tests.integration.user.test_namespaces import create

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


async def test_tenants_are_hidden_from_who_names_none_and_closed_to_who_names_another(user: Running) -> None:
    ann = await user.person()
    await create(user, ann)
    app = psycopg.conninfo.make_conninfo(user.url, user="user_app")
    async with await psycopg.AsyncConnection.connect(app, autocommit=True) as connection:
        query = "SELECT (SELECT count(*) FROM namespaces), (SELECT count(*) FROM members)"
        assert await (await connection.execute(query)).fetchall() == [(0, 0)]
        for tenants in ("", "{mine}"):  # a setting reads as '' once its transaction is over
            await connection.execute("SELECT set_config('app.tenants', %s, false)", (tenants,))
            assert await (await connection.execute(query)).fetchall() == [(0, 0)]
            for insert in (
                "INSERT INTO namespaces VALUES ('another', %s, '', true, false, 1, now(), now())",
                "INSERT INTO members VALUES ('another', %s, 3, 1, now(), now())",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
                    await connection.execute(insert.encode(), (ann.user_id,))


async def test_a_transaction_sees_and_changes_only_the_tenants_that_it_names(user: Running) -> None:
    ann, bob = await user.person("ann"), await user.person("bob")
    mine = (await create(user, ann)).namespace.name.split("/")[1]
    other = (await create(user, bob)).namespace.name.split("/")[1]
    app = psycopg.conninfo.make_conninfo(user.url, user="user_app")
    async with await psycopg.AsyncConnection.connect(app, autocommit=True) as connection:
        await connection.execute("SELECT set_config('app.tenants', %s::text[]::text, false)", ([mine],))
        seen = "SELECT (SELECT array_agg(id) FROM namespaces), (SELECT array_agg(DISTINCT namespace) FROM members)"
        assert await (await connection.execute(seen)).fetchall() == [([mine], [mine])]
        for statement in (
            "UPDATE namespaces SET display_name = 'taken' WHERE id = %s",
            "UPDATE members SET role = 1 WHERE namespace = %s",
            "DELETE FROM members WHERE namespace = %s",
        ):
            assert (await connection.execute(statement.encode(), (other,))).rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            await connection.execute("UPDATE members SET namespace = %s WHERE namespace = %s", (other, mine))


async def test_a_user_reads_their_memberships_and_changes_none_of_them(user: Running) -> None:
    ann, bob = await user.person("ann"), await user.person("bob")
    mine = (await create(user, ann)).namespace.name.split("/")[1]
    await create(user, bob)
    app = psycopg.conninfo.make_conninfo(user.url, user="user_app")
    async with await psycopg.AsyncConnection.connect(app, autocommit=True) as connection:
        await connection.execute("SELECT set_config('app.user', %s, false)", (ann.user_id,))
        seen = "SELECT (SELECT array_agg(id) FROM namespaces), (SELECT array_agg(namespace) FROM members)"
        assert await (await connection.execute(seen)).fetchall() == [([mine], [mine])]
        assert (await connection.execute("UPDATE members SET role = 3")).rowcount == 0
        assert (await connection.execute("DELETE FROM members")).rowcount == 0


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = ''", "DELETE FROM audit", "TRUNCATE audit"])
async def test_the_audit_trail_can_only_be_added_to(user: Running, statement: str) -> None:
    app = psycopg.conninfo.make_conninfo(user.url, user="user_app")
    async with await psycopg.AsyncConnection.connect(app, autocommit=True) as connection:
        await connection.execute("INSERT INTO audit (action, actor) VALUES ('tried', '')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(statement.encode())
