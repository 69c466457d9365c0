"""What entities were at a revision, whatever happened since and however much of the log is gone.

At revision R (not below the horizon) an entity was what its first change after R says was there before; without such a
change it is what its row says now. So no version at or below the horizon is ever needed, and the log can be cut there.
A change that made the entity (CREATED) has nothing before it: at R there was none, or a deleted one that gave its name
away later. What was purged is gone at every revision.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.entity.blanking import is_blank
from services.runtime.changelog import CREATED, PURGED, UNDELETED
from services.runtime.database import Row, Statement, packed_int8, packed_text


def select_states(namespace: str, keys: Sequence[tuple[str, str]], revision: int) -> Statement:
    """Rows for ``state_of`` of each of *keys*, as it was at *revision*; deleted ones carry their ``delete_time``."""
    types, ids = zip(*keys, strict=True)
    return Statement(
        """SELECT k.type, k.id, coalesce(CASE WHEN e.revision <= %s THEN e.message END, before.message)
        FROM unnest(%s::text[], %s::text[]) AS k (type, id)
        LEFT JOIN LATERAL (SELECT revision, message FROM entities
            WHERE namespace = %s AND type = k.type AND id = k.id LIMIT 1) e ON true
        LEFT JOIN LATERAL (SELECT revision, start + length AS at FROM versions
            WHERE namespace = %s AND type = k.type AND id = k.id AND revision > %s ORDER BY revision LIMIT 1) next
            ON true
        LEFT JOIN LATERAL (SELECT substring(body FROM slice.start + 1 FOR slice.length) AS message
            FROM units CROSS JOIN LATERAL previous_slice(body, next.at) AS slice
            WHERE namespace = %s AND revision = next.revision OFFSET 0) before ON true""",
        (revision, packed_text(types), packed_text(ids), namespace, namespace, revision, namespace),
    )


def state_of(row: Row) -> tuple[tuple[str, str], bytes | None]:
    """The key in a row of ``select_states``, and the serialized Entity; None if there was none, or it was purged."""
    type_id, entity_id, message = row
    return (type_id, entity_id), None if message is None or is_blank(message) else message


def select_live_page(
    namespace: str, revision: int, after: tuple[str, str], last_type: str, max_walked: int, max_bytes: int
) -> Statement:
    """Rows (type, id, message or null, position in the walk, rows in the walk) of a walk in the order of (type, id).

    The message is null where there was no live entity at *revision*; check the others with ``is_blank``. The walk goes
    over the entities there are now: all but what was purged since.
    """
    return Statement(
        """SELECT type, id,
            coalesce(current, (SELECT substring(body FROM start + 1 FOR length) FROM units
                WHERE namespace = %s AND revision = unit)),
            position, walked
        FROM (SELECT *, sum(coalesce(octet_length(current), length, 0)) OVER (ORDER BY type, id) AS bytes,
                row_number() OVER (ORDER BY type, id) AS position, count(*) OVER () AS walked
            FROM (SELECT e.type, e.id, next.revision AS unit, before.start, before.length,
                    CASE WHEN e.revision <= %s AND e.delete_time IS NULL THEN e.message END AS current
                FROM (SELECT type, id, revision, delete_time, message FROM entities
                    WHERE namespace = %s AND (type, id) > (%s, %s) AND type <= %s ORDER BY type, id LIMIT %s) e
                LEFT JOIN LATERAL (SELECT revision, kind, start + length AS at FROM versions
                    WHERE namespace = %s AND type = e.type AND id = e.id AND revision > %s AND e.revision > %s
                    ORDER BY revision LIMIT 1) next ON true
                LEFT JOIN LATERAL (SELECT slice.start, slice.length
                    FROM units CROSS JOIN LATERAL previous_slice(body, next.at) AS slice
                    WHERE namespace = %s AND revision = next.revision AND next.kind <> ALL (%s::int8[]) OFFSET 0) before
                    ON true
            ) placed
        ) sized WHERE bytes <= %s OR position = 1 ORDER BY type, id""",
        (
            namespace,
            revision,
            namespace,
            *after,
            last_type,
            max_walked,
            namespace,
            revision,
            revision,
            namespace,
            packed_int8((CREATED, UNDELETED, PURGED)),
            max_bytes,
        ),
    )
