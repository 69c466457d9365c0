"""The statements of every commit walk the keys that they name, whatever the planner knows of the tables."""

from __future__ import annotations

import psycopg
import pytest

from services.runtime import changelog, request_ids
from services.runtime.database import INDEX_WALKS_ONLY, Statement

from .conftest import NAMESPACE

IDS = [f"r{number}" for number in range(1000)]
SHARES = [request_ids.Share("many", number) for number in range(1000)]


@pytest.mark.parametrize("filled", [False, True], ids=["empty tables", "full tables"])
@pytest.mark.parametrize(
    ("statement", "index", "condition"),
    [
        (request_ids.find_requests(NAMESPACE.id, IDS, SHARES), "requests_pkey", "request_id >= k.first"),
        (changelog.select_versions(NAMESPACE.id, [("cell", "c")], 9), "versions_pkey", "id = k.id"),
    ],
    ids=["request ids", "versions"],
)
async def test_a_look_up_walks_its_keys(
    log_url: str, postgres: str, statement: Statement, index: str, condition: str, filled: bool
) -> None:
    owner = psycopg.conninfo.make_conninfo(log_url, user="postgres")
    if filled:
        async with await psycopg.AsyncConnection.connect(owner) as connection:
            await connection.execute(
                """INSERT INTO requests SELECT %s, 'ann', 'Put', md5(i::text), 'x', i, 'a', now()
                FROM generate_series(1, 20000) i""",
                (NAMESPACE.id,),
            )
            await connection.execute("ANALYZE")
    async with await psycopg.AsyncConnection.connect(log_url, options=INDEX_WALKS_ONLY) as connection:
        await connection.execute("SELECT set_config('app.namespace', %s, true)", (NAMESPACE.id,))
        cursor = await connection.execute(b"EXPLAIN " + statement.sql.encode(), statement.params, prepare=True)
        plan = "\n".join(str(line) for (line,) in await cursor.fetchall())
    assert index in plan, plan
    conditions = [line for line in plan.splitlines() if "Index Cond" in line]
    assert any(condition in line for line in conditions), plan
