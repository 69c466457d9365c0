"""What a namespace may hold and take; 0 is no limit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    for name in ("max_entities", "max_bytes", "max_writes_per_second"):
        op.add_column("namespaces", sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0")))
