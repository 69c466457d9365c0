"""The length of what was there before a change, also when it takes more than one byte.

The first version relied on ``|`` binding less than ``<<``; in PostgreSQL they are equal. The slice was then too long,
unless it was the last one of its unit.
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

PREVIOUS_SLICE = """CREATE OR REPLACE FUNCTION previous_slice(
    body bytea, at integer, OUT start integer, OUT length integer)
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
        length := length | ((part & 127) << (7 * (place - 1)));
        place := place + 1;
        EXIT WHEN part < 128;
    END LOOP;
    start := at + place;
END $$"""


def upgrade() -> None:
    op.execute(PREVIOUS_SLICE)
