"""Where the content before a change lies in its unit."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

# A change is (kind, entity, previous), in this order: what was there before begins where the new version ends, with
# the tag of field 3 and a length of at most three bytes (an entity takes at most 256 KiB). Without the tag there was
# nothing. Only the first bytes are read here; a unit is stored uncompressed, so that a slice costs no more than itself.
PREVIOUS_SLICE = """CREATE FUNCTION previous_slice(body bytea, at integer, OUT start integer, OUT length integer)
LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
    prefix bytea := substring(body FROM at + 1 FOR 4);
    place integer := 1;
    part integer;
BEGIN
    IF octet_length(prefix) < 2 OR get_byte(prefix, 0) <> 26 THEN
        RETURN;
    END IF;
    length := 0;
    LOOP
        part := get_byte(prefix, place);
        length := length | (part & 127) << (7 * (place - 1));
        place := place + 1;
        EXIT WHEN part < 128;
    END LOOP;
    start := at + place;
END $$"""


def upgrade() -> None:
    op.execute(PREVIOUS_SLICE)
