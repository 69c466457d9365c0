"""Entities that will expire."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import row_security

revision = "0004"
down_revision = "0003"

TABLES = (
    "ALTER TABLE entities ADD COLUMN expire_time timestamptz",
    # Exactly the live entities with an expire_time: rows that are due are looked for without knowing where. due_time is
    # the expire_time, or later when the entity could not go then.
    """CREATE TABLE expirations (
        namespace text COLLATE "C" NOT NULL,
        type text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        due_time timestamptz NOT NULL,
        attempts smallint NOT NULL DEFAULT 0,
        PRIMARY KEY (namespace, type, id)
    )""",
    "CREATE INDEX expirations_due ON expirations (due_time)",
    *row_security("expirations"),
    # Work in all namespaces is found at once; it holds no content.
    "CREATE POLICY work ON expirations FOR SELECT USING (true)",
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)
