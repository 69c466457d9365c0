"""Types, entities, index entries, and the log."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import LOG_ROW_SECURITY, LOG_TABLES, row_security

revision = "0001"
down_revision = None

TABLES = (
    # Never repeated, not even by a type that is deleted and declared again: what a process has cached of a type is
    # valid exactly as long as the generation in the row is the one it knows.
    "CREATE SEQUENCE type_generations",
    "CREATE SEQUENCE index_ids",
    """CREATE TABLE types (
        namespace text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        generation bigint NOT NULL DEFAULT nextval('type_generations'),
        schema_version bigint NOT NULL,
        compatibility smallint NOT NULL,
        schema json NOT NULL,
        indexes json NOT NULL,
        revision bigint NOT NULL,
        create_time timestamptz NOT NULL,
        update_time timestamptz NOT NULL,
        PRIMARY KEY (namespace, id)
    )""",
    """CREATE TABLE type_versions (
        namespace text COLLATE "C" NOT NULL,
        type text COLLATE "C" NOT NULL,
        schema_version bigint NOT NULL,
        schema json NOT NULL,
        PRIMARY KEY (namespace, type, schema_version)
    )""",
    # message is the whole serialized Entity, so that a read sends what it finds; data is for filters.
    """CREATE TABLE entities (
        namespace text COLLATE "C" NOT NULL,
        type text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        uid text COLLATE "C" NOT NULL,
        revision bigint NOT NULL,
        create_time timestamptz NOT NULL,
        delete_time timestamptz,
        created_by text COLLATE "C" NOT NULL,
        data jsonb NOT NULL,
        message bytea NOT NULL,
        PRIMARY KEY (namespace, type, id)
    ) WITH (fillfactor = 90)""",
    # Whether a type has live entities is asked under the lock; there may be any number of deleted ones.
    "CREATE INDEX entities_live ON entities (namespace, type, id) WHERE delete_time IS NULL",
    # Every index of every type: a list walks one range of this primary key. The heap begins with what needs alignment.
    """CREATE TABLE index_entries (
        index_id bigint NOT NULL,
        deleted boolean NOT NULL,
        namespace text COLLATE "C" NOT NULL,
        key bytea NOT NULL,
        id text COLLATE "C" NOT NULL,
        PRIMARY KEY (namespace, index_id, deleted, key, id)
    )""",
    # Work that outlives a process: an index to fill (after the entity after_id), or one whose entries must go.
    """CREATE TABLE index_jobs (
        namespace text COLLATE "C" NOT NULL,
        index_id bigint NOT NULL,
        type text COLLATE "C" NOT NULL,
        removing boolean NOT NULL,
        after_id text COLLATE "C" NOT NULL DEFAULT '',
        PRIMARY KEY (namespace, index_id)
    )""",
)
ROW_SECURITY = (
    *row_security("types"),
    *row_security("type_versions"),
    *row_security("entities"),
    *row_security("index_entries"),
    *row_security("index_jobs"),
    # A process that starts looks for work in all namespaces; jobs hold no content.
    "CREATE POLICY work ON index_jobs FOR SELECT USING (true)",
)


def upgrade() -> None:
    for statement in (*LOG_TABLES, *LOG_ROW_SECURITY, *TABLES, *ROW_SECURITY):
        op.execute(statement)
