"""The statements behind every delivery walk the keys that they name, whatever the planner knows of the tables."""

from __future__ import annotations

import psycopg
import pytest

from services.runtime.database import INDEX_WALKS_ONLY, Statement
from services.stream import request_store
from services.stream import subscription_store as store
from services.stream.request_store import RequestId

from .owner import TIDES

HERE = "tides"
KEYS = [f"buoy/b{number}" for number in range(500)]
PARKED = "subscription_parked_pkey"

# (statement, the index that it walks, the columns that bound the walk)
LOOK_UPS: dict[str, tuple[Statement, str, tuple[str, ...]]] = {
    "a definition": (store.select(HERE, "orders")[0], "subscriptions_pkey", ("namespace", "id")),
    "the progress": (store.select(HERE, "orders")[1], "subscription_progress_pkey", ("namespace", "id")),
    "a page": (store.select_page(HERE, "a", 51), "subscriptions_pkey", ("namespace", "id >")),
    "which keys are parked": (
        store.parked_among(HERE, "orders", KEYS),
        PARKED,
        ("namespace", "subscription", "key = k.key"),
    ),
    "a page of what is parked": (
        store.select_parked(HERE, "orders", ("buoy/b1", 5, 0), 51),
        PARKED,
        ("namespace", "subscription", "ROW("),
    ),
    "what is parked of some keys": (
        store.select_parked_of(HERE, "orders", KEYS),
        PARKED,
        ("namespace", "subscription", "key = k.key"),
    ),
    "parked keys": (store.select_parked_keys(HERE, "orders", 1000), PARKED, ("namespace", "subscription")),
    "the oldest that is parked": (store.oldest_parked(HERE, "orders"), PARKED, ("namespace", "subscription")),
    "forgetting what is parked of some keys": (
        store.delete_parked_of(HERE, "orders", KEYS),
        PARKED,
        ("namespace", "subscription"),
    ),
    "what is due": (store.select_due(100), "subscription_upkeep_due_time", ("due_time",)),
    "what was answered": (
        request_store.find(TIDES, RequestId("ann", "Create", "r1", b"")),
        "subscription_requests_pkey",
        ("namespace", "epoch", "request_id", "principal", "method"),
    ),
    "forgetting what was answered": (
        request_store.forget(HERE),
        "subscription_requests_pkey",
        ("namespace",),
    ),
    "claiming": (store.claim(HERE, "orders", 60.0), "subscription_upkeep_pkey", ("namespace", "id")),
}


@pytest.mark.parametrize("filled", [False, True], ids=["empty tables", "full tables"])
async def test_a_look_up_walks_its_keys(own_url: str, filled: bool) -> None:
    if filled:
        superuser = psycopg.conninfo.make_conninfo(own_url, user="postgres")
        async with await psycopg.AsyncConnection.connect(superuser) as connection:
            await connection.execute(
                """INSERT INTO subscription_parked
                SELECT 'tides', 'orders', 'buoy/b' || i, i, 0, 1, 1, 'NACK', now() FROM generate_series(1, 10000) i"""
            )
            await connection.execute(
                "INSERT INTO subscription_upkeep SELECT 'tides', 's' || i, now() FROM generate_series(1, 5000) i"
            )
            await connection.execute("ANALYZE")
    async with await psycopg.AsyncConnection.connect(own_url, options=INDEX_WALKS_ONLY) as connection:
        await connection.execute("SELECT set_config('app.namespace', %s, true)", (HERE,))
        for what, (statement, index, bounds) in LOOK_UPS.items():
            cursor = await connection.execute(b"EXPLAIN " + statement.sql.encode(), statement.params, prepare=True)
            plan = "\n".join(str(line) for (line,) in await cursor.fetchall())
            conditions = [line for line in plan.splitlines() if "Index Cond" in line]
            assert index in plan, f"{what}:\n{plan}"
            assert any(all(bound in line for bound in bounds) for line in conditions), f"{what}:\n{plan}"
