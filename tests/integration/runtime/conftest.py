"""A database with a log and one table of cells, and the smallest ledger over it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import psycopg
import pytest

from services.runtime import changelog, wire
from services.runtime.call import Namespace
from services.runtime.changelog import CREATED, UPDATED, Change
from services.runtime.committer import Commit, Committer, Decision, Stamp
from services.runtime.database import Database, Row, Statement, packed_int8, packed_text
from services.runtime.errors import Aborted
from services.runtime.units import Receipt, Unit
from tests.postgres import postgres  # noqa: F401  (a fixture)

_numbers = itertools.count()
NAMESPACE = Namespace("tides", "00c0ffee")


@dataclass(kw_only=True, eq=False)
class Put(Unit):
    """Set one cell; *expected* is the value it must have."""

    cell: str
    value: int
    expected: int | None = None


def put(
    cell: str, value: int, *, expected: int | None = None, request_id: str = "", validate_only: bool = False
) -> Put:
    return Put(
        actor="ann",
        method="Put",
        request_id=request_id,
        body_hash=hashlib.sha256(f"{cell} {value} {expected}".encode()).digest(),
        exclusive=frozenset({cell}),
        cell=cell,
        value=value,
        expected=expected,
        validate_only=validate_only,
    )


class Cells:
    """Cells hold a number; putting the number they hold changes nothing."""

    def reads(self, namespace: str, units: Sequence[Put]) -> Sequence[Statement]:
        names = packed_text({unit.cell for unit in units})
        return [Statement("SELECT name, value FROM cells WHERE namespace = %s AND name = ANY(%s)", (namespace, names))]

    def open_round(self, namespace: str, units: Sequence[Put], rows: Sequence[list[Row]]) -> CellRound:
        return CellRound(namespace, dict(rows[0]))


class CellRound:
    def __init__(self, namespace: str, values: dict[str, int]) -> None:
        self._namespace = namespace
        self._values = values

    def decide(self, unit: Put, stamp: Stamp) -> Decision:
        held = self._values.get(unit.cell)
        if unit.expected is not None and unit.expected != held:
            raise Aborted("ETAG_MISMATCH", "the cell holds something else")
        if held == unit.value:
            return Decision(changes=(), answer=b"same", result="same")
        entity = wire.text(1, unit.cell) + wire.integer(6, stamp.revision)
        kind = CREATED if held is None else UPDATED
        return Decision([Change(kind, "cell", unit.cell, entity)], answer=b"put", result="put")

    def writes(self, accepted: Sequence[tuple[Put, Stamp]]) -> Sequence[Statement]:
        if not accepted:
            return []
        return [
            Statement(
                """INSERT INTO cells (namespace, name, value) SELECT %s, * FROM unnest(%s::text[], %s::int8[])
                ON CONFLICT (namespace, name) DO UPDATE SET value = excluded.value""",
                (
                    self._namespace,
                    packed_text(unit.cell for unit, _ in accepted),
                    packed_int8(unit.value for unit, _ in accepted),
                ),
            )
        ]


class Replica:
    """One process's committer, and what it announced."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.announced: list[Commit] = []
        self.committer = Committer(self.database, Cells(), self._announce)

    async def _announce(self, commit: Commit) -> None:
        self.announced.append(commit)

    async def put(self, cell: str, value: int, namespace: Namespace = NAMESPACE, **options: object) -> Receipt:
        return await self.committer.commit(namespace, put(cell, value, **options))  # type: ignore[arg-type]


@pytest.fixture
async def log_url(postgres: str) -> str:  # noqa: F811
    """A fresh database with a log, as a role without privileges beyond its tables."""
    name = f"log{next(_numbers)}"
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
        await connection.execute(f"CREATE DATABASE {name}")
        await connection.execute(f"CREATE ROLE {name}_app LOGIN NOSUPERUSER NOBYPASSRLS")
    owner = psycopg.conninfo.make_conninfo(postgres, dbname=name)
    async with await psycopg.AsyncConnection.connect(owner) as connection:
        for statement in (*changelog.LOG_TABLES, *changelog.LOG_ROW_SECURITY):
            await connection.execute(statement)
        # The check makes one statement fail that no rule foresaw.
        await connection.execute(
            """CREATE TABLE cells (namespace text, name text, value bigint CHECK (value <> 666),
                PRIMARY KEY (namespace, name))"""
        )
        grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}_app"
        await connection.execute(grant)
    return psycopg.conninfo.make_conninfo(owner, user=f"{name}_app")


@pytest.fixture
async def replica(log_url: str) -> AsyncIterator[Replica]:
    made = Replica(log_url)
    yield made
    await made.database.close()


@pytest.fixture
async def other_replica(log_url: str) -> AsyncIterator[Replica]:
    made = Replica(log_url)
    yield made
    await made.database.close()
