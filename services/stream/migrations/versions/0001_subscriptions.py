"""Durable subscriptions: what was asked for, how far each has come, and what was put aside."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import row_security

revision = "0001"
down_revision = None

TABLES = (
    # definition is a serialized Subscription that holds what its owner has chosen, and nothing else. uid tells apart
    # those that had the same id one after the other, epoch those of another life of the namespace.
    """CREATE TABLE subscriptions (
        namespace text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        uid uuid NOT NULL,
        epoch text COLLATE "C" NOT NULL,
        version bigint NOT NULL,
        definition bytea NOT NULL,
        create_time timestamptz NOT NULL,
        update_time timestamptz NOT NULL,
        PRIMARY KEY (namespace, id)
    )""",
    # Written by every delivery, so it stands apart from what seldom changes. The row lock orders all workers of all
    # replicas. outstanding is what was read from the log (up to cursor_revision) and is not done: bounded, JSON.
    """CREATE TABLE subscription_progress (
        namespace text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        state smallint NOT NULL,
        cursor_revision bigint NOT NULL,
        next_delivery bigint NOT NULL,
        parked bigint NOT NULL DEFAULT 0,
        outstanding bytea NOT NULL,
        PRIMARY KEY (namespace, id)
    ) WITH (fillfactor = 50)""",
    # A change that was put aside, and those of the same key after it. Only where it is: its content stays in the log,
    # so that a purge finds it there.
    """CREATE TABLE subscription_parked (
        namespace text COLLATE "C" NOT NULL,
        subscription text COLLATE "C" NOT NULL,
        key text COLLATE "C" NOT NULL,
        revision bigint NOT NULL,
        index integer NOT NULL,
        kind smallint NOT NULL,
        attempts integer NOT NULL,
        reason text NOT NULL,
        park_time timestamptz NOT NULL,
        PRIMARY KEY (namespace, subscription, key, revision, index)
    )""",
    # When somebody has to look after a subscription again: to renew its lease on the log, or to remove what is left of
    # it. The one table that is searched in all namespaces at once; it holds no content.
    """CREATE TABLE subscription_upkeep (
        namespace text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        due_time timestamptz NOT NULL,
        PRIMARY KEY (namespace, id)
    )""",
    "CREATE INDEX subscription_upkeep_due_time ON subscription_upkeep (due_time)",
)
ROW_SECURITY = (
    *row_security("subscriptions"),
    *row_security("subscription_progress"),
    *row_security("subscription_parked"),
    *row_security("subscription_upkeep"),
    "CREATE POLICY work ON subscription_upkeep FOR SELECT USING (true)",
)


def upgrade() -> None:
    for statement in (*TABLES, *ROW_SECURITY):
        op.execute(statement)
