"""Which schema changes wait for a transaction that has written to a table of the same kind and not ended."""

from __future__ import annotations

import psycopg
from psycopg import Connection, errors, sql

from benchmarks.report import Report

LOCK_TIMEOUT_MS = 300


def report_waits(report: Report, admin: Connection, conninfo: str) -> None:
    """1 if a statement that adds a type or an index waits for a transaction that has written and not ended."""
    admin.execute(
        "CREATE TABLE public.parent (type text, id int) PARTITION BY LIST (type);"
        "CREATE TABLE public.leaf PARTITION OF public.parent FOR VALUES IN ('a');"
        "CREATE TABLE public.plain (type text, id int)"
    )
    attempts = {
        "create_table": ("plain", "CREATE TABLE public.added (type text, id int)"),
        "create_partition": ("leaf", "CREATE TABLE public.leaf_b PARTITION OF public.parent FOR VALUES IN ('b')"),
        "create_index": ("plain", "CREATE INDEX ON public.plain (id)"),
        "create_index_concurrently": ("plain", "CREATE INDEX CONCURRENTLY ON public.plain (id)"),
    }
    writer = psycopg.connect(conninfo, autocommit=True)
    admin.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
    for name, (table, statement) in attempts.items():
        with writer.transaction(force_rollback=True):
            writer.execute(sql.SQL("INSERT INTO {} VALUES ('a', 1)").format(sql.Identifier("public", table)))
            try:
                admin.execute(statement.encode())
                waited = False
            except errors.LockNotAvailable:
                waited = True
        report.add("per_type", f"waits_for_writer.{name}", waited, "bool", 0)
