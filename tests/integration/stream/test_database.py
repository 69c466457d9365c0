"""The stream service's own database: which rows a connection sees."""

from __future__ import annotations

import psycopg
import pytest

# What has no tenant in it.
SHARED = {"alembic_version"}
# Readable without a namespace: when there is work to do, without any content.
LISTED = {"subscription_upkeep", "webhook_work"}


async def test_every_table_is_under_forced_row_level_security_with_a_check_on_writes(own_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(own_url) as connection:
        cursor = await connection.execute(
            """SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity AND
                EXISTS (SELECT FROM pg_policy p
                    WHERE p.polrelid = c.oid AND p.polcmd = '*' AND p.polwithcheck IS NOT NULL)
            FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace"""
        )
        protected: dict[str, bool] = dict(await cursor.fetchall())
    assert "subscriptions" in protected
    assert [name for name, is_safe in protected.items() if name not in SHARED and not is_safe] == []


async def test_only_what_holds_no_content_can_be_listed_over_namespaces(own_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(own_url) as connection:
        cursor = await connection.execute(
            """SELECT DISTINCT c.relname FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid
            WHERE p.polcmd <> '*'"""
        )
        assert {name for (name,) in await cursor.fetchall()} <= LISTED


async def test_the_role_of_the_service_cannot_step_over_the_policies(own_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(own_url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await connection.execute("ALTER TABLE subscriptions NO FORCE ROW LEVEL SECURITY")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"):
            await connection.execute(
                """INSERT INTO subscription_upkeep (namespace, id, due_time) VALUES ('tides', 'mine', now())"""
            )
