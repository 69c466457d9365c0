"""What entities were at a revision, whatever happened since and however much of the log is gone.

At revision R (not below the horizon) an entity was what its first change after R says was there before; without such a
change it is what its row says now. So no version at or below the horizon is ever needed, and the log can be cut there.
A change that made the entity (CREATED) has nothing before it: at R there was none, or a deleted one that gave its name
away later. What was purged is gone at every revision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, LiteralString

from services.entity.blanking import is_blank
from services.runtime.changelog import UNDELETED
from services.runtime.database import Row, Statement, packed_text

# The condition on e is inside, so that a row that is old enough costs no look-up. Only UNDELETED has a deleted entity
# before it.
_STATES: Final[LiteralString] = """SELECT e.*, unit, start,
                coalesce(before.length, CASE WHEN unit IS NULL THEN octet_length(message) END) AS length,
                CASE WHEN unit IS NULL THEN delete_time IS NULL ELSE kind <> %s END AS live
            FROM (a_source) e
            LEFT JOIN LATERAL (SELECT revision AS unit, kind, start + length AS at FROM versions
                WHERE namespace = %s AND type = e.type AND id = e.id AND revision > %s AND e.revision > %s
                ORDER BY revision LIMIT 1) next ON true
            LEFT JOIN LATERAL (SELECT slice.start, slice.length
                FROM units CROSS JOIN LATERAL previous_slice(body, next.at) AS slice
                WHERE namespace = %s AND revision = unit OFFSET 0) before ON true"""


def select_states(
    namespace: str, keys: Sequence[tuple[str, str]], revision: int, max_bytes: int, *, show_deleted: bool
) -> Statement:
    """Rows for ``state_of`` of *keys* in their order, as they were at *revision*."""
    types, ids = zip(*keys, strict=True)
    source: LiteralString = """SELECT k.n, k.type, k.id, found.revision, found.delete_time, found.message
                FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY AS k (type, id, n)
                LEFT JOIN LATERAL (SELECT revision, delete_time, message FROM entities
                    WHERE namespace = %s AND type = k.type AND id = k.id LIMIT 1) found ON true"""
    params = (packed_text(types), packed_text(ids), namespace)
    return _select(source, params, "n", namespace, revision, max_bytes, show_deleted=show_deleted)


def select_state_page(
    namespace: str,
    revision: int,
    after: tuple[str, str],
    last_type: str,
    max_walked: int,
    max_bytes: int,
    *,
    show_deleted: bool,
) -> Statement:
    """Rows for ``state_of`` of a walk in the order of (type, id), behind *after*, as they were at *revision*.

    The walk goes over the entities there are now: all but what was purged since.
    """
    source: LiteralString = """SELECT type, id, revision, delete_time, message FROM entities
                WHERE namespace = %s AND (type, id) > (%s, %s) AND type <= %s ORDER BY type, id LIMIT %s"""
    params = (namespace, *after, last_type, max_walked)
    return _select(source, params, "type, id", namespace, revision, max_bytes, show_deleted=show_deleted)


def _select(
    source: LiteralString,
    params: tuple[object, ...],
    order: LiteralString,
    namespace: str,
    revision: int,
    max_bytes: int,
    *,
    show_deleted: bool,
) -> Statement:
    """Rows (type, id, message, walked) of the entities of *source*; the message is null if there was none.

    ``walked`` is how many entities there are; fewer rows than that come when their messages would be beyond
    *max_bytes*, but always one.
    """
    text: LiteralString = """SELECT type, id,
            CASE WHEN wanted THEN CASE WHEN unit IS NULL THEN message
                ELSE (SELECT substring(body FROM start + 1 FOR length) FROM units
                    WHERE namespace = %s AND revision = unit) END END, walked
        FROM (SELECT *, sum(CASE WHEN wanted THEN length ELSE 0 END) OVER (ORDER BY an_order) AS bytes,
                row_number() OVER (ORDER BY an_order) AS position, count(*) OVER () AS walked
            FROM (SELECT *, length IS NOT NULL AND (live OR %s) AS wanted FROM (the_states) states) chosen
        ) sized WHERE bytes <= %s OR position = 1 ORDER BY an_order"""
    return Statement(
        text.replace("the_states", _STATES.replace("a_source", source)).replace("an_order", order),
        (
            namespace,
            show_deleted,
            UNDELETED,
            *params,
            namespace,
            revision,
            revision,
            namespace,
            max_bytes,
        ),
    )


def state_of(row: Row) -> tuple[tuple[str, str], bytes | None]:
    """The key in a row, and the serialized Entity; None if there was none, or it was purged since."""
    type_id, entity_id, message, _ = row
    return (type_id, entity_id), None if message is None or is_blank(message) else message
