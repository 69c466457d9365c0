"""Usage by type, mass changes and write budgets."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import row_security

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    # Live entities and bytes of all entities by type; under the type '' of the whole namespace.
    """CREATE TABLE usage (
        namespace text COLLATE "C" NOT NULL,
        type text COLLATE "C" NOT NULL,
        entities bigint NOT NULL,
        bytes bigint NOT NULL,
        PRIMARY KEY (namespace, type)
    ) WITH (fillfactor = 50)""",
    """CREATE TABLE mass_changes (
        namespace text COLLATE "C" NOT NULL,
        type text COLLATE "C" NOT NULL,
        scope text COLLATE "C" NOT NULL,
        minute bigint NOT NULL,
        changed bigint NOT NULL,
        deleted bigint NOT NULL,
        since bigint NOT NULL,
        PRIMARY KEY (namespace, type, scope, minute)
    ) WITH (fillfactor = 50)""",
    """CREATE TABLE write_budgets (
        namespace text COLLATE "C" PRIMARY KEY,
        tokens double precision NOT NULL,
        update_time timestamptz NOT NULL
    ) WITH (fillfactor = 50)""",
    # What is stored already; the policy hides it from the tables' owner.
    "ALTER TABLE entities NO FORCE ROW LEVEL SECURITY",
    """INSERT INTO usage (namespace, type, entities, bytes)
    SELECT namespace, coalesce(type, ''), count(*) FILTER (WHERE delete_time IS NULL), sum(octet_length(message))
    FROM entities GROUP BY GROUPING SETS ((namespace, type), (namespace))""",
    "ALTER TABLE entities FORCE ROW LEVEL SECURITY",
    *row_security("usage"),
    *row_security("mass_changes"),
    *row_security("write_budgets"),
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
