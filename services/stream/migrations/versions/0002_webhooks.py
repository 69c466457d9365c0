"""Webhooks: their secrets and how they fare, which of them to look after, and what was sent."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import row_security

revision = "0002"
down_revision = "0001"

TABLES = (
    # A subscription that pushes. The secrets are sealed; where to push to stands in the subscription's definition.
    # attempts counts what was ever sent: it numbers deliveries.
    """CREATE TABLE webhooks (
        namespace text COLLATE "C" NOT NULL,
        subscription text COLLATE "C" NOT NULL,
        secret bytea NOT NULL,
        previous_secret bytea,
        previous_secret_expire_time timestamptz,
        disable_reason text NOT NULL DEFAULT '',
        disable_time timestamptz,
        failing_since timestamptz,
        failures bigint NOT NULL DEFAULT 0,
        attempts bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (namespace, subscription),
        FOREIGN KEY (namespace, subscription) REFERENCES subscriptions (namespace, id) ON DELETE CASCADE
    ) WITH (fillfactor = 50)""",
    # The webhooks that are to be served. Searched in all namespaces at once; it holds no content.
    """CREATE TABLE webhook_work (
        namespace text COLLATE "C" NOT NULL,
        subscription text COLLATE "C" NOT NULL,
        PRIMARY KEY (namespace, subscription),
        FOREIGN KEY (namespace, subscription) REFERENCES webhooks (namespace, subscription) ON DELETE CASCADE
    )""",
    # The last attempts of each webhook. detail is the beginning of what a receiver said, made printable.
    """CREATE TABLE webhook_deliveries (
        namespace text COLLATE "C" NOT NULL,
        subscription text COLLATE "C" NOT NULL,
        number bigint NOT NULL,
        message_id text COLLATE "C" NOT NULL,
        revision bigint NOT NULL,
        index integer NOT NULL,
        attempt integer NOT NULL,
        send_time timestamptz NOT NULL,
        latency interval NOT NULL,
        outcome smallint NOT NULL,
        status smallint NOT NULL,
        detail text NOT NULL,
        PRIMARY KEY (namespace, subscription, number),
        FOREIGN KEY (namespace, subscription) REFERENCES webhooks (namespace, subscription) ON DELETE CASCADE
    )""",
)
ROW_SECURITY = (
    *row_security("webhooks"),
    *row_security("webhook_work"),
    *row_security("webhook_deliveries"),
    "CREATE POLICY work ON webhook_work FOR SELECT USING (true)",
)


def upgrade() -> None:
    for statement in (*TABLES, *ROW_SECURITY):
        op.execute(statement)
