"""Operations: work that outlasts a call, and how far it is."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import row_security

revision = "0010"
down_revision = "0009"

TABLES = (
    """CREATE TABLE operations (
        namespace text COLLATE "C" NOT NULL,
        epoch text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        kind smallint NOT NULL,
        request json NOT NULL,
        progress json NOT NULL DEFAULT '{}',
        examined bigint NOT NULL DEFAULT 0,
        total bigint NOT NULL,
        done boolean NOT NULL DEFAULT false,
        error_reason text COLLATE "C" NOT NULL DEFAULT '',
        error_message text COLLATE "C" NOT NULL DEFAULT '',
        create_time timestamptz NOT NULL DEFAULT now(),
        update_time timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (namespace, epoch, id)
    )""",
    """CREATE TABLE operation_jobs (
        namespace text COLLATE "C" NOT NULL,
        epoch text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        PRIMARY KEY (namespace, epoch, id)
    )""",
    *row_security("operations"),
    *row_security("operation_jobs"),
    # A process looks for work in all namespaces; jobs hold no content.
    "CREATE POLICY work ON operation_jobs FOR SELECT USING (true)",
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)
