"""Tickets of browsers that were redeemed, until they have expired."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import row_security

revision = "0003"
down_revision = "0002"

# In the order of expiry, so that one range is what can be forgotten.
TABLE = """CREATE TABLE redeemed_tickets (
    namespace text COLLATE "C" NOT NULL,
    expire_time timestamptz NOT NULL,
    ticket uuid NOT NULL,
    PRIMARY KEY (namespace, expire_time, ticket)
)"""


def upgrade() -> None:
    for statement in (TABLE, *row_security("redeemed_tickets")):
        op.execute(statement)
