"""The SQL of imports: how far each one is, what every chunk came to, which rows were rejected.

Keys begin with the namespace and its epoch, so that a chunk that is recorded after its namespace was purged belongs
to nobody. A chunk moves the import's offset in the same statement that records it, so it counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, LiteralString, NamedTuple

from services.entity.model import EntityKey
from services.runtime.database import Row, Statement, packed_bytea, packed_int8, packed_text

_SELECT_IMPORT: Final = """SELECT principal, mode, dry_run, state, next_offset, read, inserted, updated, unchanged,
    rejected, deleted, unnamed, replaced_types, confirmed_types, named_types, compared_type, compared_id, compared,
    missing, handled, create_time, update_time
FROM imports WHERE namespace = %s AND epoch = %s AND id = %s AND state <> 5"""  # State.FORGOTTEN
_FORGET: Final = """DELETE FROM a_part WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM a_part WHERE namespace = %s AND epoch = %s AND import_id = %s LIMIT %s)) RETURNING 1"""
# A chunk with other lines may have been recorded there meanwhile, by somebody who uses the same import id.
_IF_RECORDED: Final = """WHERE EXISTS (SELECT FROM import_chunks
    WHERE namespace = %s AND epoch = %s AND import_id = %s AND first = %s AND digest = %s) ON CONFLICT DO NOTHING"""
_PARTS: Final[tuple[LiteralString, ...]] = ("import_chunks", "import_rejections", "import_names", "import_missing")


class State(IntEnum):
    """As ``Import.State`` in the proto."""

    RUNNING = 1
    COMPARING = 2
    DELETING = 3
    FINISHED = 4
    FORGOTTEN = 5
    """Nothing was heard of it for a week; what is known of it is being removed."""


class ImportKey(NamedTuple):
    """An import: the namespace, its life, the id."""

    namespace: str
    epoch: str
    id: str


class Counts(NamedTuple):
    """What became of rows: read is the sum of the others."""

    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: int = 0

    @property
    def read(self) -> int:
        return sum(self)


@dataclass(frozen=True, slots=True)
class StoredImport:
    """An import as it is stored.

    ``confirmed_types`` may be changed beyond the guard's limit. ``unnamed`` rows were rejected without saying which
    entity they are about. ``compared_type`` and ``compared_id`` are the last entity that was compared; of the
    ``missing`` ones, ``handled`` were deleted or found to be changed since.
    """

    principal: str
    mode: int
    dry_run: bool
    state: int
    next_offset: int
    read: int
    inserted: int
    updated: int
    unchanged: int
    rejected: int
    deleted: int
    unnamed: int
    replaced_types: list[str]
    confirmed_types: list[str]
    named_types: list[str]
    compared_type: str
    compared_id: str
    compared: int
    missing: int
    handled: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class TakenChunk:
    """What a chunk came to: its number of lines, a digest of what was sent, and the counts."""

    lines: int
    digest: bytes
    counts: Counts


class Rejection(NamedTuple):
    """A rejected row; ``status`` is a serialized ``google.rpc.Status``."""

    line: int
    type: str
    id: str
    status: bytes


class Missing(NamedTuple):
    """A live entity that no row named, at the revision at which it was found."""

    key: EntityKey
    revision: int


def begin_import(key: ImportKey, principal: str, mode: int, dry_run: bool, replaced_types: Sequence[str]) -> Statement:
    """Make the import, unless there is one."""
    return Statement(
        """INSERT INTO imports (namespace, epoch, id, principal, mode, dry_run, state, replaced_types)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
        (*key, principal, mode, dry_run, int(State.RUNNING), packed_text(replaced_types)),
    )


def select_import(key: ImportKey) -> Statement:
    """A row for ``import_of``, if there is such an import that is not being forgotten."""
    return Statement(_SELECT_IMPORT, key)


def import_of(rows: Sequence[Row]) -> StoredImport | None:
    """The import in the rows of ``select_import``."""
    return StoredImport(*rows[0]) if rows else None


def select_chunk(key: ImportKey, offset: int) -> Statement:
    """A row for ``chunk_of``, if a chunk that begins at *offset* was recorded."""
    return Statement(
        """SELECT lines, digest, inserted, updated, unchanged, rejected FROM import_chunks
        WHERE namespace = %s AND epoch = %s AND import_id = %s AND first = %s""",
        (*key, offset),
    )


def chunk_of(rows: Sequence[Row]) -> TakenChunk | None:
    """The chunk in the rows of ``select_chunk``."""
    return TakenChunk(rows[0][0], rows[0][1], Counts(*rows[0][2:])) if rows else None


def select_rejections(key: ImportKey, after_line: int, to_line: int, limit: int) -> Statement:
    """Rows for ``Rejection`` in ``(after_line, to_line]``, in order."""
    return Statement(
        """SELECT line, type, id, status FROM import_rejections WHERE namespace = %s AND epoch = %s AND import_id = %s
            AND line > %s AND line <= %s ORDER BY line LIMIT %s""",
        (*key, after_line, to_line, limit),
    )


def record_chunk(
    key: ImportKey,
    offset: int,
    chunk: TakenChunk,
    rejections: Sequence[Rejection],
    unnamed: int,
    names: Sequence[EntityKey],
) -> list[Statement]:
    """Statements, for one transaction, that record a chunk; they change nothing if another one was recorded there.

    *names* are the entities that its rows are about, where that matters.
    """
    counts = chunk.counts
    this = (*key, offset, chunk.digest)
    statements = [
        Statement(
            """WITH moved AS (
                UPDATE imports SET next_offset = next_offset + %s, read = read + %s, inserted = inserted + %s,
                    updated = updated + %s, unchanged = unchanged + %s, rejected = rejected + %s,
                    unnamed = unnamed + %s, update_time = now(),
                    named_types = ARRAY(SELECT DISTINCT unnest(named_types || %s::text[]) ORDER BY 1)
                WHERE namespace = %s AND epoch = %s AND id = %s AND next_offset = %s AND state = %s RETURNING 1
            )
            INSERT INTO import_chunks (namespace, epoch, import_id, first, lines, digest, inserted, updated, unchanged,
                rejected)
            SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM moved""",
            (
                *(chunk.lines, counts.read, *counts, unnamed, packed_text(sorted({name.type for name in names}))),
                *(*key, offset, int(State.RUNNING)),
                *(*key, offset, chunk.lines, chunk.digest, *counts),
            ),
        )
    ]
    if rejections:
        lines, types, ids, statuses = zip(*rejections, strict=True)
        statements.append(
            Statement(
                """INSERT INTO import_rejections (namespace, epoch, import_id, line, type, id, status)
                SELECT %s, %s, %s, * FROM unnest(%s::int8[], %s::text[], %s::text[], %s::bytea[])
                if_recorded""".replace("if_recorded", _IF_RECORDED),
                (*key, packed_int8(lines), packed_text(types), packed_text(ids), packed_bytea(statuses), *this),
            )
        )
    if names:
        types, ids = zip(*names, strict=True)
        statements.append(
            Statement(
                """INSERT INTO import_names (namespace, epoch, import_id, type, id)
                SELECT %s, %s, %s, * FROM unnest(%s::text[], %s::text[]) if_recorded""".replace(
                    "if_recorded", _IF_RECORDED
                ),
                (*key, packed_text(types), packed_text(ids), *this),
            )
        )
    return statements


def confirm(key: ImportKey, types: Sequence[str]) -> Statement:
    """Let the import change many entities of *types*."""
    return Statement(
        """UPDATE imports SET confirmed_types = ARRAY(SELECT DISTINCT unnest(confirmed_types || %s::text[]) ORDER BY 1)
        WHERE namespace = %s AND epoch = %s AND id = %s""",
        (packed_text(types), *key),
    )


def change_state(key: ImportKey, before: State, after: State, next_offset: int) -> Statement:
    """Move the import from one state to the next; does nothing if another call has, or if there were more chunks."""
    return Statement(
        """UPDATE imports SET state = %s, update_time = now()
        WHERE namespace = %s AND epoch = %s AND id = %s AND state = %s AND next_offset = %s""",
        (int(after), *key, int(before), next_offset),
    )


def compare(key: ImportKey, type_id: str, place: tuple[str, str], limit: int) -> Statement:
    """Look at the next *limit* live entities of *type_id* after *place*, and keep those that no row named.

    One row: the number of entities looked at. Nothing is kept if another call has gone on from *place*.
    """
    after_id = place[1] if place[0] == type_id else ""
    return Statement(
        """WITH page AS MATERIALIZED (
            SELECT id, revision FROM entities WHERE namespace = %s AND type = %s AND id > %s AND delete_time IS NULL
            ORDER BY id LIMIT %s
        ), absent AS MATERIALIZED (
            SELECT page.* FROM page LEFT JOIN LATERAL (SELECT true AS named FROM import_names WHERE namespace = %s
                AND epoch = %s AND import_id = %s AND type = %s AND id = page.id LIMIT 1) n ON true
            WHERE n.named IS NULL
        ), moved AS (
            UPDATE imports SET compared_type = %s, compared_id = coalesce((SELECT max(id) FROM page), %s),
                compared = compared + (SELECT count(*) FROM page),
                missing = missing + (SELECT count(*) FROM absent), update_time = now()
            WHERE namespace = %s AND epoch = %s AND id = %s AND state = %s
                AND compared_type = %s AND compared_id = %s RETURNING 1
        ), kept AS (
            INSERT INTO import_missing (namespace, epoch, import_id, type, id, revision)
            SELECT %s, %s, %s, %s, absent.* FROM moved, absent
        )
        SELECT count(*) FROM page""",
        (
            *(key.namespace, type_id, after_id, limit),
            *(*key, type_id),
            *(type_id, after_id, *key, int(State.COMPARING), *place),
            *(*key, type_id),
        ),
    )


def select_missing(key: ImportKey, limit: int) -> Statement:
    """Rows (type, id, revision) of the first *limit* missing entities that are not handled yet."""
    return Statement(
        """SELECT type, id, revision FROM import_missing WHERE namespace = %s AND epoch = %s AND import_id = %s
        ORDER BY type, id LIMIT %s""",
        (*key, limit),
    )


def select_missing_types(key: ImportKey, types: Sequence[str]) -> Statement:
    """A row (type) for each of *types* that has a missing entity, in their order."""
    return Statement(
        """SELECT k.type FROM unnest(%s::text[]) AS k (type) CROSS JOIN LATERAL (SELECT FROM import_missing
            WHERE namespace = %s AND epoch = %s AND import_id = %s AND type = k.type LIMIT 1) m ORDER BY k.type""",
        (packed_text(types), *key),
    )


def record_handled(key: ImportKey, before: int, handled: Sequence[EntityKey], deleted: int) -> Statement:
    """Strike out *handled*, *deleted* of which were deleted; does nothing if another call has.

    *before*: how many were handled before.
    """
    types, ids = zip(*handled, strict=True)
    return Statement(
        """WITH moved AS (
            UPDATE imports SET handled = handled + %s, deleted = deleted + %s, update_time = now()
            WHERE namespace = %s AND epoch = %s AND id = %s AND handled = %s AND state = %s RETURNING 1
        )
        DELETE FROM import_missing WHERE EXISTS (SELECT 1 FROM moved) AND ctid = ANY(ARRAY(
            SELECT m.ctid FROM unnest(%s::text[], %s::text[]) AS k (type, id)
            CROSS JOIN LATERAL (SELECT ctid FROM import_missing WHERE namespace = %s AND epoch = %s
                AND import_id = %s AND type = k.type AND id = k.id LIMIT 1) m))""",
        (
            *(len(handled), deleted, *key, before, int(State.DELETING)),
            *(packed_text(types), packed_text(ids), *key),
        ),
    )


def forget_old(namespace: str, limit: int) -> Statement:
    """Mark imports that nothing was heard of for a week: nobody goes on with one from now. Rows (epoch, id)."""
    return Statement(
        """UPDATE imports SET state = %s WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM imports WHERE namespace = %s AND update_time < now() - interval '7 days'
            ORDER BY epoch, id LIMIT %s FOR UPDATE)) RETURNING epoch, id""",
        (int(State.FORGOTTEN), namespace, limit),
    )


def forget_parts(key: ImportKey, at_once: int) -> list[Statement]:
    """Statements, each to be repeated until it answers with less than *at_once* rows, that remove an import's rows."""
    return [Statement(_FORGET.replace("a_part", part), (*key, at_once)) for part in _PARTS]


def forget_import(key: ImportKey) -> Statement:
    """Remove the import itself, when its parts are gone."""
    return Statement("DELETE FROM imports WHERE namespace = %s AND epoch = %s AND id = %s", key)
