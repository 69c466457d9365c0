"""How far an index is filled."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute("ALTER TABLE index_jobs ADD COLUMN indexed bigint NOT NULL DEFAULT 0")
