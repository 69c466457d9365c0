"""The ceiling of bulk writes: COPY, in binary, of exactly the rows that the service made, into equal tables.

One connection, one transaction, one fsync. The tables are made ``LIKE ... INCLUDING ALL``, so they have the same keys
and indexes, and they grow along with the service's own; they have no row-level security. COPY is handed rows that are
already encoded: it pays for storage alone.
"""

from __future__ import annotations

import time
from typing import LiteralString

import psycopg
from psycopg import sql

from benchmarks.machine import SUBJECT_CORE, on_core

# Table -> which of its rows a range of revisions made.
_MADE: LiteralString = "namespace = {namespace} AND revision > {after} AND revision <= {to}"
_TABLES: dict[str, LiteralString] = {
    "entities": _MADE,
    "index_entries": """namespace = {namespace} AND id = ANY (ARRAY(
        SELECT id FROM public.entities WHERE namespace = {namespace} AND revision > {after} AND revision <= {to}))""",
    "units": _MADE,
    "versions": _MADE,
    "requests": _MADE,
}


class CopyCeiling:
    """Tables beside the service's, in a schema of their own."""

    def __init__(self, conninfo: str) -> None:
        """*conninfo*: a superuser in the database of the entity service."""
        self._conninfo = conninfo

    async def create(self) -> None:
        """Make the tables, anew."""
        async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
            await connection.execute("DROP SCHEMA IF EXISTS ceiling CASCADE")
            await connection.execute("CREATE SCHEMA ceiling")
            for table in _TABLES:
                name = sql.Identifier(table)
                await connection.execute(
                    sql.SQL("CREATE TABLE ceiling.{} (LIKE public.{} INCLUDING ALL)").format(name, name)
                )

    async def seconds(self, namespace: str, after: int, to: int) -> float:
        """Copy what the revisions in ``(after, to]`` of *namespace* made; how long the writing took."""
        async with await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True) as connection:
            exported = {
                table: await self._export(connection, table, {"namespace": namespace, "after": after, "to": to})
                for table in _TABLES
            }
            # The client takes the core that the service has otherwise: PostgreSQL has its own to itself.
            with on_core(SUBJECT_CORE):
                began = time.perf_counter()
                async with connection.transaction():
                    for table, content in exported.items():
                        statement = sql.SQL("COPY ceiling.{} ({}) FROM STDIN (FORMAT binary)")
                        await self._import(connection, statement, table, content)
                return time.perf_counter() - began

    async def _export(
        self, connection: psycopg.AsyncConnection[tuple[object, ...]], table: str, rows: dict[str, object]
    ) -> list[bytes]:
        literals = {key: sql.Literal(value) for key, value in rows.items()}
        condition = sql.SQL(_TABLES[table]).format(**literals)
        query = sql.SQL("COPY (SELECT {} FROM public.{} WHERE {}) TO STDOUT (FORMAT binary)").format(
            await self._columns(connection, table), sql.Identifier(table), condition
        )
        async with connection.cursor() as cursor, cursor.copy(query) as copy:
            return [bytes(part) async for part in copy]

    async def _import(
        self,
        connection: psycopg.AsyncConnection[tuple[object, ...]],
        statement: sql.SQL,
        table: str,
        content: list[bytes],
    ) -> None:
        columns = await self._columns(connection, table)
        async with connection.cursor() as cursor, cursor.copy(statement.format(sql.Identifier(table), columns)) as copy:
            for part in content:
                await copy.write(part)

    async def _columns(self, connection: psycopg.AsyncConnection[tuple[object, ...]], table: str) -> sql.Composed:
        rows = await connection.execute(
            """SELECT attname FROM pg_attribute WHERE attrelid = ('public.' || %s)::regclass
            AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum""",
            (table,),
        )
        return sql.SQL(", ").join([sql.Identifier(str(name)) for (name,) in await rows.fetchall()])
