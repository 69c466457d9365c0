"""The SQL of entities and index entries, set-based, with arrays packed by hand.

Every statement begins at the namespace and follows a primary key. Joins with an array of keys are fenced (LATERAL,
LIMIT): joined freely, a planner without statistics compares every key with every row of the namespace.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final, LiteralString, NamedTuple

from services.entity.content import Entry
from services.entity.model import MAX_STORED_BYTES, EntityKey, StoredEntity
from services.runtime.database import (
    Row,
    Statement,
    packed_bool,
    packed_bytea,
    packed_few,
    packed_int8,
    packed_jsonb,
    packed_text,
    packed_timestamptz,
)

_MOMENT = """to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
ENTITY_FIELDS: Final = {
    "name": "'namespaces/' || namespace || '/types/' || type || '/entities/' || id",
    "uid": "uid",
    "etag": "'\"' || revision || '\"'",
    "revision": "revision",
    "created_by": "created_by",
    **{name: _MOMENT.format(name) for name in ("create_time", "delete_time", "expire_time")},
}
"""The entity's own fields of a row of ``entities``, as SQL: see ``services.runtime.filters.attributes``."""


class EntityRow(NamedTuple):
    """An entity as it will be stored, and the index entries (deleted, entry) that it leaves and takes.

    ``due_moved``: the moment at which it is to expire while it lives (or never) is another one than before. ``new``:
    nothing is stored under the key, not even a deleted entity.
    """

    key: EntityKey
    uid: str
    revision: int
    create_time: datetime
    delete_time: datetime | None
    expire_time: datetime | None
    created_by: str
    json: bytes
    message: bytes
    due_moved: bool
    new: bool
    removed: Collection[tuple[bool, Entry]]
    added: Collection[tuple[bool, Entry]]


_INSERT_ENTITIES: Final[LiteralString] = """INSERT INTO entities (namespace, type, id, uid, revision, create_time,
    delete_time, expire_time, created_by, data, message)
SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::text[], %s::int8[], %s::timestamptz[], %s::timestamptz[],
    %s::timestamptz[], %s::text[], %s::jsonb[], %s::bytea[])"""
_OR_REPLACE: Final[LiteralString] = """ ON CONFLICT (namespace, type, id) DO UPDATE SET uid = excluded.uid,
    revision = excluded.revision, create_time = excluded.create_time, delete_time = excluded.delete_time,
    expire_time = excluded.expire_time, created_by = excluded.created_by, data = excluded.data,
    message = excluded.message"""
_INSERT_ENTRIES: Final[LiteralString] = """INSERT INTO index_entries (namespace, index_id, deleted, key, id)
SELECT %s, * FROM unnest(%s::int8[], %s::bool[], %s::bytea[], %s::text[])"""


def select_entities(namespace: str, keys: Sequence[EntityKey]) -> Statement:
    """Rows for ``entity_of`` of those of *keys* that exist, deleted ones too."""
    types, ids = zip(*keys, strict=True)
    return Statement(
        """SELECT e.type, e.id, e.uid, e.revision, e.create_time, e.delete_time, e.expire_time, e.created_by,
            e.data::text, e.message
        FROM unnest(%s::text[], %s::text[]) AS k (type, id)
        CROSS JOIN LATERAL (SELECT * FROM entities WHERE namespace = %s AND type = k.type AND id = k.id LIMIT 1) e""",
        (packed_few(types), packed_text(ids), namespace),
    )


def select_some_entities(namespace: str, keys: Sequence[EntityKey], max_bytes: int) -> Statement:
    """As ``select_entities``; what is beyond *max_bytes* comes with null for its data and message.

    Without an order for the sum, which would cost a sort: any of *keys* may be the ones beyond. Few keys, as nearly
    always, cannot be too much, and are not summed up.
    """
    if len(keys) * MAX_STORED_BYTES <= max_bytes:
        return select_entities(namespace, keys)
    types, ids = zip(*keys, strict=True)
    return Statement(
        """SELECT type, id, uid, revision, create_time, delete_time, expire_time, created_by,
            CASE WHEN bytes <= %s THEN data::text END, CASE WHEN bytes <= %s THEN message END
        FROM (SELECT e.*, sum(octet_length(e.message)) OVER (ROWS UNBOUNDED PRECEDING) AS bytes
            FROM unnest(%s::text[], %s::text[]) AS k (type, id)
            CROSS JOIN LATERAL (SELECT * FROM entities
                WHERE namespace = %s AND type = k.type AND id = k.id LIMIT 1) e) sized""",
        (max_bytes, max_bytes, packed_few(types), packed_text(ids), namespace),
    )


def entity_of(row: Row) -> tuple[EntityKey, StoredEntity]:
    """The entity in a row of ``select_entities``."""
    return EntityKey(row[0], row[1]), StoredEntity(*row[2:])


def select_holders(namespace: str, entries: Collection[Entry]) -> Statement:
    """Rows (index id, key, id) of live entities that have one of *entries*; of each entry at most two."""
    return Statement(
        """SELECT k.index_id, k.key, e.id FROM unnest(%s::int8[], %s::bytea[]) AS k (index_id, key)
        CROSS JOIN LATERAL (SELECT id FROM index_entries WHERE namespace = %s AND index_id = k.index_id
            AND NOT deleted AND key = k.key LIMIT 2) e""",
        (packed_int8(index_id for index_id, _ in entries), packed_bytea(key for _, key in entries), namespace),
    )


def select_live(namespace: str, keys: Collection[EntityKey]) -> Statement:
    """Rows (type, id) of those of *keys* that are live."""
    types, ids = zip(*keys, strict=True)
    return Statement(
        """SELECT e.type, e.id FROM unnest(%s::text[], %s::text[]) AS k (type, id)
        CROSS JOIN LATERAL (SELECT type, id FROM entities WHERE namespace = %s AND type = k.type AND id = k.id
            AND delete_time IS NULL LIMIT 1) e""",
        (packed_text(types), packed_text(ids), namespace),
    )


def select_referrers(namespace: str, entries: Collection[Entry], limit: int, *, total: int | None = None) -> Statement:
    """Rows (index id, key, id) of live entities that have one of *entries*: *limit* of each, at most *total*."""
    return Statement(
        """SELECT k.index_id, k.key, e.id FROM unnest(%s::int8[], %s::bytea[]) AS k (index_id, key)
        CROSS JOIN LATERAL (SELECT id FROM index_entries WHERE namespace = %s AND index_id = k.index_id
            AND NOT deleted AND key = k.key LIMIT %s) e
        LIMIT %s::int8""",
        (
            packed_int8(index_id for index_id, _ in entries),
            packed_bytea(key for _, key in entries),
            namespace,
            limit,
            total,
        ),
    )


def write_entities(namespace: str, rows: Sequence[EntityRow], building: Collection[int]) -> list[Statement]:
    """Statements that store *rows*, all of different entities, and move their index entries.

    What the lock has shown to be new is inserted without asking again, which would take a second walk down each index.
    Only in the indexes *building* may an entry be there already.
    """
    statements = []
    if new := [row for row in rows if row.new]:
        statements.append(_put_entities(_INSERT_ENTITIES, namespace, new))
    if known := [row for row in rows if not row.new]:
        statements.append(_put_entities(_INSERT_ENTITIES + _OR_REPLACE, namespace, known))
    # In the order of the primary key, so that neighbours are written to the same pages.
    removed = sorted((index_id, dead, key, row.key.id) for row in rows for dead, (index_id, key) in row.removed)
    if removed:
        statements.append(_remove_entries(namespace, removed))
    added = sorted((index_id, dead, key, row.key.id) for row in rows for dead, (index_id, key) in row.added)
    if perhaps_there := [entry for entry in added if entry[0] in building]:
        statements.append(fill_entries(namespace, perhaps_there))
        added = [entry for entry in added if entry[0] not in building]
    if added:
        statements.append(Statement(_INSERT_ENTRIES, (namespace, *_entry_columns(added))))
    if moved := [row for row in rows if row.due_moved]:
        statements += _move_expirations(namespace, moved)
    return statements


def _put_entities(sql: LiteralString, namespace: str, rows: Sequence[EntityRow]) -> Statement:
    return Statement(
        sql,
        (
            namespace,
            packed_few(row.key.type for row in rows),
            packed_text(row.key.id for row in rows),
            packed_text(row.uid for row in rows),
            packed_int8(row.revision for row in rows),
            packed_timestamptz(row.create_time for row in rows),
            packed_timestamptz(row.delete_time for row in rows),
            packed_timestamptz(row.expire_time for row in rows),
            packed_few(row.created_by for row in rows),
            packed_jsonb(row.json for row in rows),
            packed_bytea(row.message for row in rows),
        ),
    )


def _move_expirations(namespace: str, rows: Sequence[EntityRow]) -> list[Statement]:
    """Statements after which exactly those of *rows* that live and will expire are waited for."""
    mortal = [row for row in rows if row.delete_time is None and row.expire_time is not None]
    others = [row for row in rows if row.delete_time is not None or row.expire_time is None]
    statements = []
    if others:
        statements.append(
            Statement(
                """DELETE FROM expirations WHERE ctid = ANY(ARRAY(
                    SELECT e.ctid FROM unnest(%s::text[], %s::text[]) AS k (type, id)
                    CROSS JOIN LATERAL (SELECT ctid FROM expirations
                        WHERE namespace = %s AND type = k.type AND id = k.id LIMIT 1) e))""",
                (
                    packed_text(row.key.type for row in others),
                    packed_text(row.key.id for row in others),
                    namespace,
                ),
            )
        )
    if mortal:
        statements.append(
            Statement(
                """INSERT INTO expirations (namespace, type, id, due_time)
                SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::timestamptz[])
                ON CONFLICT (namespace, type, id) DO UPDATE SET due_time = excluded.due_time, attempts = 0""",
                (
                    namespace,
                    packed_text(row.key.type for row in mortal),
                    packed_text(row.key.id for row in mortal),
                    packed_timestamptz(row.expire_time for row in mortal),
                ),
            )
        )
    return statements


def remove_entity(namespace: str, key: EntityKey, entries: Collection[Entry]) -> list[Statement]:
    """Statements that remove a deleted entity, with its index *entries*."""
    statements = [Statement("DELETE FROM entities WHERE namespace = %s AND type = %s AND id = %s", (namespace, *key))]
    if entries:
        statements.append(_remove_entries(namespace, sorted((index, True, entry, key.id) for index, entry in entries)))
    return statements


def fill_entries(namespace: str, entries: Sequence[tuple[int, bool, bytes, str]]) -> Statement:
    """Insert (index id, deleted, key, id); an entry that is there already is no error (an index being filled)."""
    return Statement(_INSERT_ENTRIES + " ON CONFLICT DO NOTHING", (namespace, *_entry_columns(entries)))


def _remove_entries(namespace: str, entries: Sequence[tuple[int, bool, bytes, str]]) -> Statement:
    return Statement(
        """DELETE FROM index_entries WHERE ctid = ANY(ARRAY(
            SELECT e.ctid
            FROM unnest(%s::int8[], %s::bool[], %s::bytea[], %s::text[]) AS k (index_id, deleted, key, id)
            CROSS JOIN LATERAL (SELECT ctid FROM index_entries WHERE namespace = %s AND index_id = k.index_id
                AND deleted = k.deleted AND key = k.key AND id = k.id LIMIT 1) e))""",
        (*_entry_columns(entries), namespace),
    )


def _entry_columns(entries: Sequence[tuple[int, bool, bytes, str]]) -> tuple[object, ...]:
    index_ids, deleted, keys, ids = zip(*entries, strict=True)
    return packed_int8(index_ids), packed_bool(deleted), packed_bytea(keys), packed_text(ids)


def read_entities(namespace: str, keys: Sequence[EntityKey], max_bytes: int) -> Statement:
    """For each of *keys* a row (columns of ``select_head``, its place from 1 on, message or null), deleted ones too.

    Together they take up to *max_bytes*: of many keys, those that need more than their share come with null for the
    message; the last column is true for them. No rows: the namespace has no head yet. Sets the namespace by itself.
    """
    types, ids = zip(*keys, strict=True)
    asked = (namespace, packed_text(types), packed_text(ids))
    if len(keys) * MAX_STORED_BYTES <= max_bytes:
        return Statement("SELECT epoch, revision, horizon, place, message, false FROM read_entities(%s, %s, %s)", asked)
    # A share for each, not a sum, so that nothing has to be put in order; the length is known without the content.
    share = max_bytes // len(keys)
    return Statement(
        """SELECT epoch, revision, horizon, place, CASE WHEN octet_length(message) <= %s THEN message END,
            octet_length(message) > %s
        FROM read_entities(%s, %s, %s)""",
        (share, share, *asked),
    )


def select_batch(namespace: str, type_id: str, ids: Sequence[str], max_bytes: int) -> Statement:
    """Rows (id, message) of the live ones of *ids*, in their order; beyond *max_bytes* the message is null."""
    return Statement(
        """SELECT id, CASE WHEN position = 1 OR bytes <= %s THEN message END
        FROM (SELECT e.id, e.message, k.n, sum(octet_length(e.message)) OVER (ORDER BY k.n) AS bytes,
                row_number() OVER (ORDER BY k.n) AS position
            FROM unnest(%s::text[]) WITH ORDINALITY AS k (id, n)
            CROSS JOIN LATERAL (SELECT * FROM entities WHERE namespace = %s AND type = %s AND id = k.id
                AND delete_time IS NULL LIMIT 1) e) sized
        ORDER BY n""",
        (max_bytes, packed_text(ids), namespace, type_id),
    )
