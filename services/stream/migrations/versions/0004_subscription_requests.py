"""Which subscription a request has made or changed, so that it can be repeated."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import row_security

revision = "0004"
down_revision = "0003"

# secret is that of the webhook that the request made, sealed: who did not get the answer can ask for it again.
TABLE = """CREATE TABLE subscription_requests (
    namespace text COLLATE "C" NOT NULL,
    epoch text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    principal text COLLATE "C" NOT NULL,
    method text COLLATE "C" NOT NULL,
    body_hash bytea NOT NULL,
    uid uuid NOT NULL,
    secret bytea,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (namespace, epoch, request_id, principal, method)
)"""


def upgrade() -> None:
    for statement in (TABLE, *row_security("subscription_requests")):
        op.execute(statement)
