"""The statements of imports walk the keys that they name, whatever the planner knows of the tables."""

from __future__ import annotations

import psycopg
import pytest

from services.entity import import_store
from services.entity.import_store import Counts, ImportKey, Rejection, TakenChunk
from services.entity.model import EntityKey
from services.runtime.database import INDEX_WALKS_ONLY, Statement
from tests.integration.entity.conftest import Deployment, Shore

KEY = ImportKey("shore-plans", "0a1b2c3d", "i")
NAMES = [EntityKey("buoy", f"b{n}") for n in range(1000)]
CHUNK = TakenChunk(1000, b"x", Counts(1, 2, 3, 4))
STATEMENTS = {
    "import": (import_store.select_import(KEY), ["imports_pkey"]),
    "chunk": (import_store.select_chunk(KEY, 1000), ["import_chunks_pkey"]),
    "rejections": (import_store.select_rejections(KEY, 0, 1000, 50), ["import_rejections_pkey"]),
    "missing": (import_store.select_missing(KEY, 500), ["import_missing_pkey"]),
    "missing types": (import_store.select_missing_types(KEY, ["buoy", "ship"]), ["import_missing_pkey"]),
    "handled": (import_store.record_handled(KEY, 0, NAMES, 9), ["import_missing_pkey", "imports_pkey"]),
    "compare": (
        import_store.compare(KEY, "buoy", ("buoy", "b1"), 5000),
        ["entities_", "import_names_pkey", "imports_pkey"],
    ),
    "record": (
        import_store.record_chunk(KEY, 0, CHUNK, [Rejection(1, "buoy", "b", b"")], 0, NAMES)[0],
        ["imports_pkey"],
    ),
    "forgettable": (import_store.forget_old(KEY.namespace, 100), ["imports_pkey"]),
    "forget names": (import_store.forget_parts(KEY, 2000)[2], ["import_names_pkey"]),
}


@pytest.mark.parametrize("filled", [False, True], ids=["empty tables", "full tables"])
async def test_statements_of_imports_walk_indexes(deployment: Deployment, shore: Shore, filled: bool) -> None:
    await shore.declare()
    if filled:
        await deployment.rows(
            """WITH names AS (
                INSERT INTO import_names SELECT %s, %s, %s, 'buoy', 'b' || i FROM generate_series(1, 20000) i
            ), missing AS (
                INSERT INTO import_missing SELECT %s, %s, %s, 'buoy', 'b' || i, i FROM generate_series(1, 20000) i
            ) SELECT 1""",
            *KEY,
            *KEY,
        )
        await deployment.execute("ANALYZE")
    async with await psycopg.AsyncConnection.connect(deployment.app_url, options=INDEX_WALKS_ONLY) as connection:
        await connection.execute("SELECT set_config('app.namespace', %s, true)", (KEY.namespace,))
        for name, (statement, indexes) in STATEMENTS.items():
            plan = await explained(connection, statement)
            assert "Seq Scan" not in plan, (name, plan)
            for index in indexes:
                assert index in plan, (name, plan)


async def explained(connection: psycopg.AsyncConnection[tuple[object, ...]], statement: Statement) -> str:
    cursor = await connection.execute(b"EXPLAIN " + statement.sql.encode(), statement.params, prepare=True)
    return "\n".join(str(line) for (line,) in await cursor.fetchall())
