"""The database server as the platform sets it up: a real one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest
from strandline_cli.credentials import ensure_secrets
from strandline_cli.home import Home, Ports
from strandline_cli.parts import Layout
from strandline_cli.postgres import Postgres
from strandline_cli.process import spawn


@pytest.fixture(scope="module")
async def layout() -> AsyncIterator[Layout]:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: the server's user could not enter it
        async with served(Home(Path(folder))) as layout:
            yield layout


@asynccontextmanager
async def served(home: Home) -> AsyncIterator[Layout]:
    home.prepare()
    home.run.mkdir()
    home.run.chmod(0o711)
    ensure_secrets(home.secrets)
    layout = Layout(home, home.run, Ports(0, 0, 0, 0, 0, 0))
    postgres = Postgres(layout)
    assert await postgres.initialize()
    process = await spawn(postgres.part(), home.logs / "postgres.log")
    while not await postgres.answers():
        assert process.returncode is None, (home.logs / "postgres.log").read_text()
    await postgres.create_databases()
    await postgres.create_databases()  # changes nothing
    yield layout
    process.send_signal(postgres.part().stop_signal)
    assert await process.wait() == 0


async def test_a_table_of_the_migrating_role_belongs_to_the_owner_and_is_the_apps_to_read_and_write(
    layout: Layout,
) -> None:
    with connect(layout, "entity", "entity_migrate") as migration:
        migration.execute("create table buoys (id bigint generated always as identity, name text)")
        owner = migration.execute("select tableowner from pg_tables where tablename = 'buoys'").fetchone()
    assert owner == ("entity_owner",)
    with connect(layout, "entity", "entity_app") as app:
        app.execute("insert into buoys (name) values ('north')")
        assert app.execute("select name from buoys").fetchall() == [("north",)]


@pytest.mark.parametrize("statement", ["create table mine ()", "create temp table mine ()", "create schema mine"])
async def test_the_app_role_makes_nothing(layout: Layout, statement: str) -> None:
    with connect(layout, "user", "user_app") as app, pytest.raises(psycopg.errors.InsufficientPrivilege):
        app.execute(statement)


@pytest.mark.parametrize("database", ["user", "postgres", "template1"])
async def test_a_service_enters_no_database_but_its_own(layout: Layout, database: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        connect(layout, database, "stream_app").close()


async def test_the_app_role_waits_for_nothing_for_long(layout: Layout) -> None:
    with connect(layout, "stream", "stream_app") as app:
        limits = [
            app.execute(f"show {name}").fetchone()
            for name in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        ]
    assert limits == [("5s",), ("2s",), ("10s",)]


async def test_no_password_reaches_the_log(layout: Layout) -> None:
    log = (layout.home.logs / "postgres.log").read_text()
    assert not [path.name for path in (layout.home.secrets / "postgres").iterdir() if path.read_text() in log]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
async def test_as_root_the_server_runs_as_nobody(layout: Layout) -> None:
    assert (layout.home.postgres / "data").owner() == "nobody"


def connect(layout: Layout, database: str, role: str) -> psycopg.Connection[tuple[object, ...]]:
    password = (layout.home.secrets / "postgres" / role).read_text()
    return psycopg.connect(
        host=str(layout.run / "postgres"), dbname=database, user=role, password=password, autocommit=True
    )
