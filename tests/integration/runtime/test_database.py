"""A database that goes away and comes back."""

from __future__ import annotations

import psycopg
import pytest

from services.runtime.database import Database, Statement

from .conftest import Replica

NUMBERS = Statement("SELECT 1")


async def test_a_database_that_is_not_there_is_said_to_be_unavailable() -> None:
    nowhere = Database("host=/nonexistent dbname=x")
    for _ in range(2):
        with pytest.raises(psycopg.OperationalError):
            await nowhere.read("tides", NUMBERS)


async def test_a_read_survives_the_death_of_idle_connections(replica: Replica, postgres: str) -> None:
    assert await replica.database.read("tides", NUMBERS) == [[(1,)]]
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as admin:
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'log%_app'")
    assert await replica.database.read("tides", NUMBERS) == [[(1,)]]


async def test_a_read_that_takes_too_long_is_not_repeated(replica: Replica) -> None:
    with pytest.raises(psycopg.errors.QueryCanceled):
        await replica.database.read(
            "tides", Statement("SET LOCAL statement_timeout = '50ms'"), Statement("SELECT pg_sleep(5)")
        )
    assert await replica.database.read("tides", NUMBERS) == [[(1,)]]


async def test_a_connection_given_back_after_the_end_is_closed(log_url: str) -> None:
    database = Database(log_url)
    async with database.connection() as connection:
        await database.close()
    assert connection.closed
