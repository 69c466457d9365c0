"""Snapshots for feeds: live entities as they were at a revision, in the order of (type, id), while writes go on.

A walk over the entity rows meets every entity there ever was, but for what was purged. A row that was written after the
revision is replaced by what the log says was there before, or skipped if there was nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

from services.entity.as_of import select_state_page, select_states, state_of
from services.runtime.call import MinRevision
from services.runtime.changelog import head_of, select_head
from services.runtime.database import Database, Statement
from services.runtime.errors import NotFound, OutOfRange

MAX_WALKED: Final = 5000
_AFTER_ALL_TYPES: Final = "~"
Place: TypeAlias = tuple[str, str]


class SnapshotReader:
    """See ``log_service.SnapshotReader``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_snapshot(
        self,
        namespace: str,
        epoch: str,
        revision: int,
        types: list[str],
        after: Place,
        max_bytes: int,
        keys: Sequence[Place] = (),
    ) -> tuple[list[bytes], Place | None]:
        """A page; it may be short or empty. Only None for the next place is the end.

        *keys*, at most 1,000, are looked up; without them the *types* are walked.

        Raises:
            NotFound: nothing was written to the namespace yet.
            FailedPrecondition: FUTURE_REVISION or EPOCH_CHANGED.
            OutOfRange: SNAPSHOT_EXPIRED.
        """
        if keys:
            chosen = sorted(key for key in set(keys) if key > after)
            if not chosen:
                return [], None
            statement = select_states(namespace, chosen, revision, max_bytes, show_deleted=False)
            states, complete = await self._read(namespace, epoch, revision, statement)
            return _messages(states), None if complete else states[-1][0]
        wanted = [type_id for type_id in sorted(set(types)) if type_id >= after[0]]
        type_id = wanted[0] if wanted else None
        if types and type_id is None:
            return [], None
        if type_id is not None and type_id != after[0]:
            after = (type_id, "")
        statement = select_state_page(
            namespace, revision, after, type_id or _AFTER_ALL_TYPES, MAX_WALKED, max_bytes, show_deleted=False
        )
        states, complete = await self._read(namespace, epoch, revision, statement)
        if not complete or len(states) == MAX_WALKED:
            return _messages(states), states[-1][0]
        return _messages(states), (wanted[1], "") if len(wanted) > 1 else None

    async def _read(
        self, namespace: str, epoch: str, revision: int, statement: Statement
    ) -> tuple[list[tuple[Place, bytes | None]], bool]:
        """States as *statement* finds them, and whether none was left out because of its size."""
        head_rows, rows = await self._database.read(namespace, select_head(namespace), statement)
        if not head_rows:
            raise NotFound("NOT_FOUND", "nothing was written to this namespace yet")
        head = head_of(namespace, head_rows, "")
        MinRevision(revision, epoch).check(head.revision, head.epoch)
        if revision < head.horizon:
            raise OutOfRange("SNAPSHOT_EXPIRED", "the log no longer reaches back to the snapshot; begin again")
        return [state_of(row) for row in rows], not rows or rows[0][3] == len(rows)


def _messages(states: Sequence[tuple[Place, bytes | None]]) -> list[bytes]:
    return [message for _, message in states if message is not None]
