"""The backstop under every statement: a connection sees the rows of the namespace it was told, and nobody else's."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from services.entity import purge
from tests.integration.entity.conftest import Deployment, Shore

# What has no tenant in it.
SHARED = {"alembic_version"}
# Readable without a namespace: positions of logs, and what work there is; neither holds content.
LISTED = {"expirations", "heads", "index_jobs", "operation_jobs"}


async def tenant_tables(deployment: Deployment) -> list[str]:
    rows = await deployment.rows(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    return [name for (name,) in rows if name not in SHARED]


async def test_every_table_is_under_forced_row_level_security_with_a_check_on_writes(deployment: Deployment) -> None:
    rows = await deployment.rows(
        """SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity,
            EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND p.polcmd = '*' AND p.polwithcheck IS NOT NULL)
        FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace"""
    )
    unprotected = [name for name, forced, checked in rows if name not in SHARED and not (forced and checked)]
    assert unprotected == []


async def test_the_role_of_the_service_can_neither_step_over_the_policies_nor_change_them(
    deployment: Deployment,
) -> None:
    async with await psycopg.AsyncConnection.connect(deployment.app_url, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT rolsuper OR rolbypassrls OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
        )
        assert await cursor.fetchone() == (False,)
        for statement in (
            "ALTER TABLE entities NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE entities DISABLE ROW LEVEL SECURITY",
            "DROP POLICY namespace ON entities",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await connection.execute(statement.encode())


async def test_without_a_namespace_nothing_is_visible_and_with_one_only_its_own(
    shore: Shore, deployment: Deployment
) -> None:
    other = shore.replica.shore()
    for one in (shore, other):
        await one.declare(indexes=[{"fields": ["data.n"]}])
        await one.create("b1", {"n": 1}, request_id="r1")
        await one.update("b1", {"n": 2})
    tables = await tenant_tables(deployment)
    assert {"entities", "index_entries", "units", "versions", "requests", "types", "usage"} <= set(tables)
    async with await psycopg.AsyncConnection.connect(deployment.app_url) as connection:
        for table in tables:
            count = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
            foreign = sql.SQL("SELECT count(*) FROM {} WHERE namespace <> %s").format(sql.Identifier(table))
            if table not in LISTED:
                await connection.execute("SELECT set_config('app.namespace', '', true)")
                assert await (await connection.execute(count)).fetchone() == (0,), table
                await connection.execute("SELECT set_config('app.namespace', %s, true)", (shore.namespace.id,))
                assert await (await connection.execute(foreign, (shore.namespace.id,))).fetchone() == (0,), table


async def test_rows_of_another_namespace_can_neither_be_written_nor_changed(
    shore: Shore, deployment: Deployment
) -> None:
    other = shore.replica.shore()
    await other.declare()
    await other.create("b1", {"n": 1})
    async with await psycopg.AsyncConnection.connect(deployment.app_url) as connection:
        for table in await tenant_tables(deployment):
            name = sql.Identifier(table)
            await connection.execute("SELECT set_config('app.namespace', %s, true)", (shore.namespace.id,))
            change = sql.SQL("UPDATE {} SET namespace = %s WHERE namespace = %s").format(name)
            cursor = await connection.execute(change, (shore.namespace.id, other.namespace.id))
            assert cursor.rowcount == 0, table
            remove = sql.SQL("DELETE FROM {} WHERE namespace = %s").format(name)
            cursor = await connection.execute(remove, (other.namespace.id,))
            assert cursor.rowcount == 0, table
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute(
                "INSERT INTO usage (namespace, type, entities, bytes) VALUES (%s, '', 1, 1)", (other.namespace.id,)
            )
    assert (await other.get("b1")).data["n"] == 1


async def test_a_purged_namespace_leaves_rows_in_no_table(deployment: Deployment) -> None:
    """A table that is added must be added to what a purge empties."""
    assert set(await tenant_tables(deployment)) == {*purge.TABLES, "heads"}
