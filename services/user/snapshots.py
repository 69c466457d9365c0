"""The records of ``system`` as they were at a revision, read from the log itself."""

from __future__ import annotations

from services.runtime.changelog import DELETED
from services.runtime.database import Database, Statement, packed_text

MAX_RECORDS = 1000
"""Of one page; a record takes some 300 bytes."""


class SystemSnapshots:
    """``runtime.log_service.SnapshotReader`` over the index of versions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_snapshot(
        self, namespace: str, revision: int, types: list[str], after: tuple[str, str], max_bytes: int
    ) -> tuple[list[bytes], tuple[str, str] | None]:
        """See ``SnapshotReader``."""
        (rows,) = await self._database.read(
            namespace,
            Statement(
                """SELECT v.type, v.id, substring(u.body FROM v.start + 1 FOR v.length)
                FROM (SELECT DISTINCT ON (type, id) type, id, revision, kind, start, length FROM versions
                    WHERE namespace = %s AND revision <= %s AND (type, id) > (%s, %s)
                        AND (cardinality(%s::text[]) = 0 OR type = ANY(%s::text[]))
                    ORDER BY type, id, revision DESC) v
                JOIN units u ON u.namespace = %s AND u.revision = v.revision
                WHERE v.kind <> %s ORDER BY v.type, v.id LIMIT %s""",
                (
                    namespace,
                    revision,
                    *after,
                    packed_text(types),
                    packed_text(types),
                    namespace,
                    DELETED,
                    MAX_RECORDS,
                ),
            ),
        )
        entities: list[bytes] = []
        size = 0
        end = after
        for type_id, record_id, entity in rows:
            if entities and size + len(entity) > max_bytes:
                return entities, end
            entities.append(entity)
            size += len(entity)
            end = (type_id, record_id)
        return entities, (end if len(rows) == MAX_RECORDS else None)
