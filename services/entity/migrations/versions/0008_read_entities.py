"""Point reads in one statement."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

# A function, so that the namespace is set for row-level security before anything is looked at; STABLE, so that head and
# entities are of one snapshot: that of the statement that calls it.
READ_ENTITIES = """CREATE FUNCTION read_entities(wanted text, types text[], ids text[])
RETURNS TABLE (epoch text, revision bigint, horizon bigint, place bigint, message bytea)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    PERFORM set_config('app.namespace', wanted, true);
    RETURN QUERY SELECT h.epoch, h.revision, h.horizon, k.place, e.message
        FROM heads h
        CROSS JOIN unnest(types, ids) WITH ORDINALITY AS k (type, id, place)
        LEFT JOIN LATERAL (SELECT x.message FROM entities x
            WHERE x.namespace = wanted AND x.type = k.type AND x.id = k.id LIMIT 1) e ON true
        WHERE h.namespace = wanted AND h.epoch <> '';
END $$"""


def upgrade() -> None:
    op.execute(READ_ENTITIES)
