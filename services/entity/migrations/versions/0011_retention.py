"""How long the log is kept, and who still needs it."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import row_security

revision = "0011"
down_revision = "0010"

STATEMENTS = (
    # Only of namespaces whose owners have chosen; max_revisions 0: any number.
    """CREATE TABLE retentions (
        namespace text COLLATE "C" PRIMARY KEY,
        max_age interval NOT NULL,
        max_revisions bigint NOT NULL,
        update_time timestamptz NOT NULL,
        updated_by text COLLATE "C" NOT NULL
    )""",
    # A reader of the log that has seen everything up to acknowledged_revision. types and fields are what its filter
    # names (types empty: all).
    """CREATE TABLE consumer_leases (
        namespace text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        types text[] NOT NULL,
        fields text[] NOT NULL,
        acknowledged_revision bigint NOT NULL,
        expire_time timestamptz NOT NULL,
        PRIMARY KEY (namespace, name)
    )""",
    *row_security("retentions"),
    *row_security("consumer_leases"),
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
