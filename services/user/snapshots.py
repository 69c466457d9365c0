"""The records of ``system`` as they were at a revision, read from the log itself."""

from __future__ import annotations

from collections.abc import Sequence

from services.runtime.call import MinRevision
from services.runtime.changelog import DELETED, head_of, select_head
from services.runtime.database import Database, Statement

MAX_WALKED = 1000
"""Records of one page, dead ones included; a living one takes some 300 bytes."""
_AFTER_ALL_TYPES = "~"


class SystemSnapshots:
    """``runtime.log_service.SnapshotReader`` over the index of versions: a walk from key to key, whatever their age."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_snapshot(
        self,
        namespace: str,
        epoch: str,
        revision: int,
        types: list[str],
        after: tuple[str, str],
        max_bytes: int,
        keys: Sequence[tuple[str, str]] = (),
    ) -> tuple[list[bytes], tuple[str, str] | None]:
        """See ``SnapshotReader``; a page may be short or empty. *keys* are not looked up: the log is walked.

        Raises:
            FailedPrecondition: FUTURE_REVISION or EPOCH_CHANGED.
        """
        wanted = [type_id for type_id in sorted(set(types)) if type_id >= after[0]]
        if types and not wanted:
            return [], None
        if wanted and wanted[0] != after[0]:
            after = (wanted[0], "")
        head_rows, rows = await self._database.read(
            namespace,
            select_head(namespace),
            select_page(namespace, revision, after, wanted[0] if wanted else _AFTER_ALL_TYPES),
        )
        head = head_of(namespace, head_rows, epoch)
        MinRevision(revision, epoch).check(head.revision, head.epoch)
        entities: list[bytes] = []
        size = 0
        for type_id, record_id, entity in rows:
            if entity is not None:
                if entities and size + len(entity) > max_bytes:
                    return entities, after
                entities.append(entity)
                size += len(entity)
            after = (type_id, record_id)
        if len(rows) == MAX_WALKED:
            return entities, after
        return entities, (wanted[1], "") if len(wanted) > 1 else None


def select_page(namespace: str, revision: int, after: tuple[str, str], last_type: str) -> Statement:
    """Rows (type, id, serialized Entity or NULL if it was not alive then) of the keys after *after*.

    The recursion asks the index for one next key after the other. Its plain alternative, DISTINCT ON, reads and sorts
    every version of the log for each page.
    """
    return Statement(
        """WITH RECURSIVE keys AS (
            (SELECT type, id FROM versions WHERE namespace = %s AND (type, id) > (%s, %s) AND type <= %s
                ORDER BY type, id LIMIT 1)
            UNION ALL
            SELECT next.type, next.id FROM keys k CROSS JOIN LATERAL (
                SELECT type, id FROM versions WHERE namespace = %s AND (type, id) > (k.type, k.id) AND type <= %s
                    ORDER BY type, id LIMIT 1) next
        )
        SELECT k.type, k.id, (SELECT substring(body FROM v.start + 1 FOR v.length) FROM units
            WHERE namespace = %s AND units.revision = v.revision AND v.kind <> %s)
        FROM (SELECT * FROM keys LIMIT %s) k
        LEFT JOIN LATERAL (SELECT revision, kind, start, length FROM versions
            WHERE namespace = %s AND type = k.type AND id = k.id AND revision <= %s
            ORDER BY revision DESC LIMIT 1) v ON true
        ORDER BY k.type, k.id""",
        (
            namespace,
            *after,
            last_type,
            namespace,
            last_type,
            namespace,
            DELETED,
            MAX_WALKED,
            namespace,
            revision,
        ),
    )
