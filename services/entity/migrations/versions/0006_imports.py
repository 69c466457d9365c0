"""Imports: how far each is, what its chunks came to, what was rejected, named, and missing."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import row_security

revision = "0006"
down_revision = "0005"

TABLES = (
    """CREATE TABLE imports (
        namespace text COLLATE "C" NOT NULL,
        epoch text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        principal text COLLATE "C" NOT NULL,
        mode smallint NOT NULL,
        dry_run boolean NOT NULL,
        state smallint NOT NULL,
        next_offset bigint NOT NULL DEFAULT 0,
        read bigint NOT NULL DEFAULT 0,
        inserted bigint NOT NULL DEFAULT 0,
        updated bigint NOT NULL DEFAULT 0,
        unchanged bigint NOT NULL DEFAULT 0,
        rejected bigint NOT NULL DEFAULT 0,
        deleted bigint NOT NULL DEFAULT 0,
        unnamed bigint NOT NULL DEFAULT 0,
        replaced_types text[] COLLATE "C" NOT NULL,
        confirmed_types text[] COLLATE "C" NOT NULL DEFAULT '{}',
        named_types text[] COLLATE "C" NOT NULL DEFAULT '{}',
        compared_type text COLLATE "C" NOT NULL DEFAULT '',
        compared_id text COLLATE "C" NOT NULL DEFAULT '',
        compared bigint NOT NULL DEFAULT 0,
        missing bigint NOT NULL DEFAULT 0,
        handled bigint NOT NULL DEFAULT 0,
        create_time timestamptz NOT NULL DEFAULT now(),
        update_time timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (namespace, epoch, id)
    )""",
    """CREATE TABLE import_chunks (
        namespace text COLLATE "C" NOT NULL,
        epoch text COLLATE "C" NOT NULL,
        import_id text COLLATE "C" NOT NULL,
        first bigint NOT NULL,
        lines bigint NOT NULL,
        digest bytea NOT NULL,
        inserted bigint NOT NULL,
        updated bigint NOT NULL,
        unchanged bigint NOT NULL,
        rejected bigint NOT NULL,
        PRIMARY KEY (namespace, epoch, import_id, first)
    )""",
    """CREATE TABLE import_rejections (
        namespace text COLLATE "C" NOT NULL,
        epoch text COLLATE "C" NOT NULL,
        import_id text COLLATE "C" NOT NULL,
        line bigint NOT NULL,
        type text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        status bytea NOT NULL,
        PRIMARY KEY (namespace, epoch, import_id, line)
    )""",
    """CREATE TABLE import_names (
        namespace text COLLATE "C" NOT NULL,
        epoch text COLLATE "C" NOT NULL,
        import_id text COLLATE "C" NOT NULL,
        type text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        PRIMARY KEY (namespace, epoch, import_id, type, id)
    )""",
    """CREATE TABLE import_missing (
        namespace text COLLATE "C" NOT NULL,
        epoch text COLLATE "C" NOT NULL,
        import_id text COLLATE "C" NOT NULL,
        type text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        revision bigint NOT NULL,
        PRIMARY KEY (namespace, epoch, import_id, type, id)
    )""",
)


def upgrade() -> None:
    for statement in TABLES:
        op.execute(statement)
    for table in ("imports", "import_chunks", "import_rejections", "import_names", "import_missing"):
        for statement in row_security(table):
            op.execute(statement)
