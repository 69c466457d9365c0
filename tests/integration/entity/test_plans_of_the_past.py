"""What a read of the past costs depends on what it returns, not on what there is, whatever the planner knows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from string import Template
from typing import Any

import psycopg
import pytest

from services.entity import expiry, purge_changes, retention_store, versions
from services.entity.as_of import select_state_page, select_states
from services.entity.model import EntityKey
from services.runtime import changelog
from services.runtime.database import INDEX_WALKS_ONLY, Statement
from tests.integration.entity.conftest import Deployment

NAMESPACE = "deep-past"
ENTITIES = 20_000
HEAD = 4 * ENTITIES
KEYS = [EntityKey("buoy", f"e{n:06}") for n in range(0, ENTITIES, ENTITIES // 50)]


@pytest.fixture(scope="module")
async def filled(deployment: Deployment) -> None:
    """Many entities with four versions each, written past the service: only the plans are looked at."""
    values = {"namespace": f"'{NAMESPACE}'", "head": HEAD, "entities": ENTITIES}
    for statement in (
        "INSERT INTO heads (namespace, epoch, revision) VALUES ($namespace, 'e', $head)",
        """INSERT INTO units SELECT $namespace, r, '2026-01-01Z'::timestamptz + r * interval '1 s',
            repeat('x', 100)::bytea FROM generate_series(1, $head) r""",
        """INSERT INTO versions SELECT $namespace, 'buoy', 'e' || lpad((r % $entities)::text, 6, '0'), r, 2, 10, 50
            FROM generate_series(1, $head) r""",
        """INSERT INTO entities (namespace, type, id, uid, revision, create_time, created_by, data, message)
            SELECT $namespace, 'buoy', 'e' || lpad(n::text, 6, '0'), '', $head - $entities + n, now(), '', '{}', 'x'
            FROM generate_series(0, $entities - 1) n""",
        """INSERT INTO expirations (namespace, type, id, due_time)
            SELECT $namespace, 'buoy', 'e' || n, '2999-01-01Z' FROM generate_series(1, $entities) n""",
    ):
        await deployment.execute(Template(statement).substitute(values))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.mark.parametrize("analyzed", [False, True], ids=["without statistics", "with statistics"])
@pytest.mark.parametrize(
    ("statement", "bound"),
    [
        (select_state_page(NAMESPACE, HEAD // 2, ("buoy", "e01"), "buoy", 51, 2**20, show_deleted=False), 51),
        (select_state_page(NAMESPACE, HEAD, ("buoy", "e01"), "buoy", 51, 2**20, show_deleted=True), 51),
        (select_states(NAMESPACE, KEYS, HEAD // 2, 2**20, show_deleted=True), len(KEYS)),
        (versions.select_latest(NAMESPACE, KEYS, HEAD // 2), len(KEYS)),
        (versions.select_versions_of(NAMESPACE, KEYS[0], 2**62, 51, 2**20), 4),
        (changelog.select_revision_at(NAMESPACE, datetime(2026, 1, 1, 5, tzinfo=UTC)), 20),
        (versions.select_commit_time(NAMESPACE, HEAD // 2), 1),
        (purge_changes.select_changes(NAMESPACE, KEYS[0], 0), 4),
        (retention_store.select_now_and_oldest(NAMESPACE), 1),
        (retention_store.select_units_to_cut(NAMESPACE, 100, HEAD, 50, 2**20), 50),
        # Of all namespaces; what other tests left to expire is little.
        (expiry._SELECT_DUE, 100),
    ],
    ids=[
        "list",
        "list of now",
        "keys",
        "newest versions",
        "revisions",
        "time",
        "revision",
        "changes to blank",
        "oldest unit",
        "units to cut",
        "what is due",
    ],
)
async def test_a_read_of_the_past_touches_what_it_returns(
    deployment: Deployment, filled: None, statement: Statement, bound: int, analyzed: bool
) -> None:
    if analyzed:
        await deployment.execute("ANALYZE entities, versions, units")
    async with await psycopg.AsyncConnection.connect(deployment.app_url, options=INDEX_WALKS_ONLY) as connection:
        await connection.execute("SELECT set_config('app.namespace', %s, true)", (NAMESPACE,))
        cursor = await connection.execute(
            b"EXPLAIN (ANALYZE, FORMAT JSON) " + statement.sql.encode(), statement.params, prepare=True
        )
        answer = await cursor.fetchone()
    assert answer is not None
    for node in nodes(answer[0][0]["Plan"]):
        touched = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        assert touched <= bound + 1, json.dumps(answer[0][0]["Plan"], indent=1)
