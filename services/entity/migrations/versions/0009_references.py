"""References between types."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

STATEMENTS = (
    "ALTER TABLE types ADD COLUMN reference_fields json NOT NULL DEFAULT '[]'",
    # The types that refer to this one: who deletes an entity knows from its own type where to look for referrers, and
    # by the generation that he knows of all.
    """ALTER TABLE types ADD COLUMN referrers text[] COLLATE "C" NOT NULL DEFAULT '{}'""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
