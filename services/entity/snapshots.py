"""Snapshots for feeds: live entities as they were at a revision, in the order of (type, id), while writes go on.

A walk over the entity rows meets every entity there ever was, but for what was purged. A row that was written after the
revision is replaced by what the log says was there before, or skipped if there was nothing.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from services.entity.as_of import select_state_page, state_of
from services.runtime.call import MinRevision
from services.runtime.changelog import head_of, select_head
from services.runtime.database import Database
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
            namespace,
            select_head(namespace),
            select_state_page(
                namespace, revision, after, type_id or _AFTER_ALL_TYPES, MAX_WALKED, max_bytes, show_deleted=False
            ),
        )
        if not head_rows:
            raise NotFound("NOT_FOUND", "nothing was written to this namespace yet")
        head = head_of(namespace, head_rows, "")
        MinRevision(revision, epoch).check(head.revision, head.epoch)
        if revision < head.horizon:
            raise OutOfRange("SNAPSHOT_EXPIRED", "the log no longer reaches back to the snapshot; begin again")
        states = [state_of(row) for row in rows]
        entities = [message for _, message in states if message is not None]
        if rows and (rows[0][3] > len(rows) or len(rows) == MAX_WALKED):
            return entities, states[-1][0]
        return entities, (wanted[1], "") if len(wanted) > 1 else None
