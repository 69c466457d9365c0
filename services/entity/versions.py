"""The SQL of versions: which there are of an entity, and when a revision was committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.entity.model import EntityKey
from services.runtime.database import Statement, packed_text

HEADER_BYTES: Final = 512
"""What comes before the changes of a unit, the longest actor and request id included, is shorter."""


def select_latest(namespace: str, keys: Sequence[EntityKey], revision: int) -> Statement:
    """Rows (type, id, revision) of the newest version of each of *keys* at or before *revision*."""
    return Statement(
        """SELECT k.type, k.id, v.revision FROM unnest(%s::text[], %s::text[]) AS k (type, id)
        CROSS JOIN LATERAL (SELECT revision FROM versions WHERE namespace = %s AND type = k.type AND id = k.id
            AND revision <= %s ORDER BY revision DESC LIMIT 1) v""",
        (packed_text(key.type for key in keys), packed_text(key.id for key in keys), namespace, revision),
    )


def select_versions_of(namespace: str, key: EntityKey, before: int, limit: int, max_bytes: int) -> Statement:
    """Rows (revision, kind, commit time, beginning of the unit, message, there) of versions before a revision.

    Newest first, at most *limit* and *max_bytes*, but always one; ``there`` is how many of *limit* there are.
    """
    return Statement(
        """SELECT sized.revision, kind, commit_time, header, entity, there
        FROM (SELECT *, sum(length) OVER (ORDER BY revision DESC) AS bytes,
                row_number() OVER (ORDER BY revision DESC) AS position, count(*) OVER () AS there
            FROM (SELECT revision, kind, start, length FROM versions
                WHERE namespace = %s AND type = %s AND id = %s AND revision < %s ORDER BY revision DESC LIMIT %s) page
        ) sized
        CROSS JOIN LATERAL (SELECT commit_time, substring(body FROM 1 FOR %s) AS header,
                substring(body FROM start + 1 FOR length) AS entity
            FROM units WHERE namespace = %s AND revision = sized.revision OFFSET 0) u
        WHERE bytes <= %s OR position = 1 ORDER BY sized.revision DESC""",
        (namespace, *key, before, limit, HEADER_BYTES, namespace, max_bytes),
    )


def select_commit_time(namespace: str, revision: int) -> Statement:
    """The row (commit time) of a revision, if the log still has it."""
    return Statement("SELECT commit_time FROM units WHERE namespace = %s AND revision = %s", (namespace, revision))
