"""What is read and written for each attempt to deliver walks the keys that it names, whatever the planner knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from services.runtime.database import INDEX_WALKS_ONLY, Statement
from services.stream import webhook_store as store

DELIVERY = store.Delivery(21_001, "msg_1", 7, 0, 1, datetime.now(UTC), timedelta(seconds=1), 1, 200, "")
FILL = """
    INSERT INTO subscriptions SELECT 'tides', 'hook' || i, gen_random_uuid(), '00c0ffee', 1, '', now(), now()
        FROM generate_series(1, 500) i;
    INSERT INTO webhooks (namespace, subscription, secret) SELECT namespace, id, '' FROM subscriptions;
    INSERT INTO webhook_work SELECT namespace, subscription FROM webhooks;
    INSERT INTO webhook_deliveries SELECT 'tides', 'hook1', i, 'msg', 7, 0, 1, now(), '1s', 1, 200, ''
        FROM generate_series(1, 21000) i;
    ANALYZE
"""


@pytest.mark.parametrize("filled", [False, True], ids=["empty tables", "full tables"])
async def test_a_webhook_and_its_deliveries_are_found_by_their_keys(own_url: str, postgres: str, filled: bool) -> None:
    if filled:
        superuser = psycopg.conninfo.make_conninfo(own_url, user="postgres")
        async with await psycopg.AsyncConnection.connect(superuser) as connection:
            await connection.execute(FILL)
    statements: list[tuple[Statement, str, str]] = [
        (store.select("tides", "hook1"), "webhooks_pkey", "subscription = "),
        (store.select("tides", "hook1"), "subscriptions_pkey", "id = "),
        (store.select_deliveries("tides", "hook1", 20_000, 50), "webhook_deliveries_pkey", "number < "),
        (store.log("tides", "hook1", [DELIVERY])[2], "webhook_deliveries_pkey", "number <= "),
    ]
    async with await psycopg.AsyncConnection.connect(own_url, options=INDEX_WALKS_ONLY) as connection:
        await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
        for statement, index, condition in statements:
            cursor = await connection.execute(b"EXPLAIN " + statement.sql.encode(), statement.params, prepare=True)
            plan = "\n".join(str(line) for (line,) in await cursor.fetchall())
            assert index in plan, plan
            conditions = [line for line in plan.splitlines() if "Index Cond" in line]
            assert any(condition in line for line in conditions), plan
            assert "Sort" not in plan, plan
