"""Snapshots for feeds: live entities as they were at a revision, in the order of (type, id), while writes go on.

Entity rows are never removed while their namespace lives, so that a walk over them meets every entity there ever was.
A row that was written after the revision is replaced by its version from the log, or skipped if it had none.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from services.runtime.call import MinRevision
from services.runtime.changelog import DELETED, EXPIRED, PURGED, head_of, select_head
from services.runtime.database import Database, Statement, packed_int8
from services.runtime.errors import NotFound, OutOfRange

MAX_WALKED: Final = 5000
_AFTER_ALL_TYPES: Final = "~"
Place: TypeAlias = tuple[str, str]


class SnapshotReader:
    """See ``log_service.SnapshotReader``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_snapshot(
        self, namespace: str, epoch: str, revision: int, types: list[str], after: Place, max_bytes: int
    ) -> tuple[list[bytes], Place | None]:
        """A page; it may be short or empty. Only None for the next place is the end.

        Raises:
            NotFound: nothing was written to the namespace yet.
            FailedPrecondition: FUTURE_REVISION or EPOCH_CHANGED.
            OutOfRange: SNAPSHOT_EXPIRED.
        """
        wanted = [type_id for type_id in sorted(set(types)) if type_id >= after[0]]
        type_id = wanted[0] if wanted else None
        if types and type_id is None:
            return [], None
        if type_id is not None and type_id != after[0]:
            after = (type_id, "")
        head_rows, rows = await self._database.read(
            namespace, select_head(namespace), _select_page(namespace, revision, type_id, after, max_bytes)
        )
        if not head_rows:
            raise NotFound("NOT_FOUND", "nothing was written to this namespace yet")
        head = head_of(namespace, head_rows, "")
        MinRevision(revision, epoch).check(head.revision, head.epoch)
        if revision < head.horizon:
            raise OutOfRange("SNAPSHOT_EXPIRED", "the log no longer reaches back to the snapshot; begin again")
        entities = [message for _, _, message, _, _ in rows if message is not None]
        if rows:
            last_type, last_id, _, position, walked = rows[-1]
            if position < walked or walked == MAX_WALKED:
                return entities, (last_type, last_id)
        return entities, (wanted[1], "") if len(wanted) > 1 else None


def _select_page(namespace: str, revision: int, type_id: str | None, after: Place, max_bytes: int) -> Statement:
    """Rows (type, id, message or null if it was not alive then, position in the walk, rows in the walk)."""
    return Statement(
        """SELECT type, id,
            coalesce(current, (SELECT substring(body FROM start + 1 FOR length) FROM units
                WHERE namespace = %s AND revision = unit)),
            position, walked
        FROM (SELECT *, sum(coalesce(octet_length(current), length, 0)) OVER (ORDER BY type, id) AS bytes,
                row_number() OVER (ORDER BY type, id) AS position, count(*) OVER () AS walked
            FROM (SELECT e.type, e.id, v.revision AS unit, v.start, v.length,
                    CASE WHEN e.revision <= %s AND e.delete_time IS NULL THEN e.message END AS current
                FROM (SELECT type, id, revision, delete_time, message FROM entities
                    WHERE namespace = %s AND (type, id) > (%s, %s) AND type <= %s ORDER BY type, id LIMIT %s) e
                LEFT JOIN LATERAL (SELECT revision, kind, start, length FROM versions
                    WHERE namespace = %s AND type = e.type AND id = e.id AND revision <= %s
                    ORDER BY revision DESC LIMIT 1) v ON e.revision > %s AND v.kind <> ALL (%s::int8[])
            ) placed
        ) sized WHERE bytes <= %s OR position = 1 ORDER BY type, id""",
        (
            namespace,
            revision,
            namespace,
            *after,
            _AFTER_ALL_TYPES if type_id is None else type_id,
            MAX_WALKED,
            namespace,
            revision,
            revision,
            packed_int8((DELETED, PURGED, EXPIRED)),
            max_bytes,
        ),
    )
