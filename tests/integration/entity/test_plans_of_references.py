"""What it costs to look at references depends on what is asked for, not on how many there are."""

from __future__ import annotations

from collections.abc import Iterator
from string import Template
from typing import Any

import psycopg
import pytest

from services.entity.index_keys import encode
from services.entity.model import EntityKey
from services.entity.store import select_live, select_referrers, select_some_entities
from services.runtime.database import INDEX_WALKS_ONLY, Statement
from tests.integration.entity.conftest import Deployment

NAMESPACE = "many-references"
ENTITIES = 20_000
TARGETS = [EntityKey("port", f"e{n:06}") for n in range(0, ENTITIES, ENTITIES // 50)]
ENTRIES = [(7, encode(target.id)) for target in TARGETS]
HUB = [(8, encode("hub"))]


@pytest.fixture(scope="module")
async def filled(deployment: Deployment) -> None:
    """Half of the ports deleted; by index 7 each is referred to once, by index 8 one by all."""
    values = {"namespace": f"'{NAMESPACE}'", "entities": ENTITIES, "hub": f"'\\x{encode('hub').hex()}'::bytea"}
    for statement in (
        """INSERT INTO entities
                (namespace, type, id, uid, revision, create_time, delete_time, created_by, data, message)
            SELECT $namespace, 'port', 'e' || lpad(n::text, 6, '0'), '', n, now(),
                CASE WHEN n % 2 = 1 THEN now() END, '', '{}', 'x' FROM generate_series(0, $entities - 1) n""",
        r"""INSERT INTO index_entries (namespace, index_id, deleted, key, id)
            SELECT $namespace, 7, n % 2 = 1, '\x50'::bytea || ('e' || lpad(n::text, 6, '0'))::bytea || '\x00'::bytea,
                's' || n FROM generate_series(0, $entities - 1) n""",
        """INSERT INTO index_entries (namespace, index_id, deleted, key, id)
            SELECT $namespace, 8, false, $hub, 's' || n FROM generate_series(1, $entities) n""",
    ):
        await deployment.execute(Template(statement).substitute(values))


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


@pytest.mark.parametrize("analyzed", [False, True], ids=["without statistics", "with statistics"])
@pytest.mark.parametrize(
    ("statement", "found", "bound"),
    [
        (select_live(NAMESPACE, TARGETS), len(TARGETS), len(TARGETS)),
        (select_live(NAMESPACE, [EntityKey("port", "e000001")]), 0, 1),
        (select_some_entities(NAMESPACE, TARGETS, 100), len(TARGETS), len(TARGETS)),
        (select_referrers(NAMESPACE, ENTRIES, 501), len(ENTRIES), len(ENTRIES)),
        (select_referrers(NAMESPACE, HUB, 501), 501, 501),
        (select_referrers(NAMESPACE, [*HUB, *ENTRIES], 501, total=501), 501, 501 + len(ENTRIES)),
    ],
    ids=[
        "live targets",
        "a deleted target",
        "entities up to a size",
        "referrers",
        "referrers of a hub",
        "referrers up to a total",
    ],
)
async def test_only_what_is_asked_for_is_read(
    deployment: Deployment, filled: None, statement: Statement, found: int, bound: int, analyzed: bool
) -> None:
    if analyzed:
        await deployment.execute("ANALYZE entities, index_entries")
    async with await psycopg.AsyncConnection.connect(deployment.app_url, options=INDEX_WALKS_ONLY) as connection:
        await connection.execute("SELECT set_config('app.namespace', %s, true)", (NAMESPACE,))
        explain = b"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) " + statement.sql.encode()
        cursor = await connection.execute(explain, statement.params, prepare=True)
        row = await cursor.fetchone()
    assert row is not None
    plan = row[0][0]["Plan"]
    assert plan["Actual Rows"] == found
    scans = [node for node in nodes(plan) if "Relation Name" in node]
    assert scans
    for scan in scans:
        assert "Index Cond" in scan or scan["Node Type"] == "Bitmap Heap Scan", plan
        examined = (scan["Actual Rows"] + scan.get("Rows Removed by Filter", 0)) * scan["Actual Loops"]
        assert examined <= bound, plan
