"""The log: what was committed, in order, encoded once and ready to be sent on.

Four tables in the database of every owner of a log (``LOG_TABLES``, made by the service's first migration):

``heads``     one row per namespace: epoch, newest revision, its commit time, and the horizon
``units``     one row per revision: the serialized ``strandline.stream.v1.Unit``
``versions``  (namespace, type, id, revision) to a slice of a unit: history is an index onto the log, not a second copy
``requests``  what was answered to a request id: see ``request_ids``
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import LiteralString, NamedTuple

from services.runtime import wire
from services.runtime.database import (
    Database,
    Row,
    Statement,
    packed_bytea,
    packed_few,
    packed_int8,
    packed_text,
    packed_timestamptz,
)
from services.runtime.errors import OutOfRange, refusal_of

MAX_UNIT_BYTES = 3 * 2**20

# Tags of strandline.stream.v1.Change: entity and previous, type and previous_type.
_ENTITY_TAGS = (b"\x12", b"\x1a")
_TYPE_TAGS = (b"\x22", b"\x2a")
# Values of strandline.stream.v1.Change.Kind.
CREATED, UPDATED, DELETED, UNDELETED, PURGED, EXPIRED, SCHEMA_CHANGED = range(1, 8)

LOG_TABLES: tuple[LiteralString, ...] = (
    # A head is never removed, so that its row lock orders everything, also the end of one life of a namespace and the
    # beginning of the next. "dead" are the epochs that nothing may be written in any more; the epoch is empty while
    # there is no life: readers see no such head.
    """CREATE TABLE heads (
        namespace text COLLATE "C" PRIMARY KEY,
        epoch text NOT NULL,
        revision bigint NOT NULL DEFAULT 0,
        commit_time timestamptz NOT NULL DEFAULT '1970-01-01Z',
        horizon bigint NOT NULL DEFAULT 0,
        dead text[] NOT NULL DEFAULT '{}'
    ) WITH (fillfactor = 50)""",
    """CREATE TABLE units (
        namespace text COLLATE "C" NOT NULL,
        revision bigint NOT NULL,
        commit_time timestamptz NOT NULL,
        body bytea NOT NULL,
        PRIMARY KEY (namespace, revision)
    )""",
    # Not compressed, so that one version is a slice that is read without the rest of its unit.
    "ALTER TABLE units ALTER COLUMN body SET STORAGE EXTERNAL",
    """CREATE TABLE versions (
        namespace text COLLATE "C" NOT NULL,
        type text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        revision bigint NOT NULL,
        kind smallint NOT NULL,
        start integer NOT NULL,
        length integer NOT NULL,
        PRIMARY KEY (namespace, type, id, revision)
    )""",
    """CREATE TABLE requests (
        namespace text COLLATE "C" NOT NULL,
        principal text COLLATE "C" NOT NULL,
        method text COLLATE "C" NOT NULL,
        request_id text COLLATE "C" NOT NULL,
        body_hash bytea NOT NULL,
        revision bigint NOT NULL,
        answer bytea NOT NULL,
        create_time timestamptz NOT NULL,
        PRIMARY KEY (namespace, request_id, principal, method)
    )""",
    # For the janitor alone. Without the namespace in it, nobody who looks for a request id can be led astray by it.
    "CREATE INDEX requests_create_time ON requests (create_time)",
    # Taking the lock first, and in a statement of its own, is what makes every later statement of the transaction see
    # all earlier commits of the namespace: under READ COMMITTED each one has a snapshot taken after the lock.
    """CREATE FUNCTION lock_head(wanted text) RETURNS TABLE (epoch text, revision bigint, commit_time timestamptz)
    LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM set_config('app.namespace', wanted, true);
        RETURN QUERY SELECT h.epoch, h.revision, greatest(h.commit_time + interval '1 us', clock_timestamp())
            FROM heads h WHERE h.namespace = wanted FOR UPDATE;
    END $$""",
)


def row_security(table: LiteralString) -> tuple[LiteralString, ...]:
    """Statements that hide other namespaces' rows of *table*, from its owner too."""
    mine: LiteralString = "namespace = current_setting('app.namespace', true)"
    return (
        "ALTER TABLE " + table + " ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE " + table + " FORCE ROW LEVEL SECURITY",
        "CREATE POLICY namespace ON " + table + " USING (" + mine + ") WITH CHECK (" + mine + ")",
    )


# Heads hold no content and are read for many namespaces at once; only writing them is restricted.
LOG_ROW_SECURITY: tuple[LiteralString, ...] = (
    *row_security("heads"),
    "CREATE POLICY positions ON heads FOR SELECT USING (true)",
    *row_security("units"),
    *row_security("versions"),
    *row_security("requests"),
)


@dataclass(frozen=True, slots=True)
class Head:
    """The position of one log; nothing at or below *horizon* can be read any more."""

    namespace: str
    epoch: str
    revision: int
    horizon: int = 0


class Change(NamedTuple):
    """One change of a unit. *entity* and *previous* are serialized ``Entity`` (for a type: ``EntityType``)."""

    kind: int
    type: str
    id: str
    entity: bytes = b""
    previous: bytes = b""


class Version(NamedTuple):
    """Where one version of an entity lies inside its unit."""

    type: str
    id: str
    kind: int
    start: int
    length: int


class LoggedUnit(NamedTuple):
    """A unit as the log keeps it."""

    revision: int
    commit_time: datetime
    body: bytes
    versions: tuple[Version, ...]


def encode_unit(
    revision: int, commit_time: datetime, actor: str, request_id: str, changes: Sequence[Change], field: str = ""
) -> LoggedUnit:
    """Serialize a unit. ``UNIT_TOO_LARGE`` (of *field*) above 3 MiB, new and previous data included."""
    raw_id = request_id.encode()
    header = b"".join(
        (
            wire.integer(1, revision),
            wire.timestamp(2, commit_time),
            _text_of_many(3, actor),
            b"\x22" + wire.varint(len(raw_id)) + raw_id if raw_id else b"",
        )
    )
    parts = [header]
    at = len(header)
    versions = []
    for change in changes:
        kind, type_id, entity_id, entity, previous = change
        tags = _TYPE_TAGS if kind == SCHEMA_CHANGED else _ENTITY_TAGS
        # Before the entity, and after it.
        before, after = b"\x08" + wire.varint(kind), b""
        if entity:
            before += tags[0] + wire.varint(len(entity))
        if previous:
            after = tags[1] + wire.varint(len(previous)) + previous
        size = len(before) + len(entity) + len(after)
        prefix = b"\x2a" + wire.varint(size)
        if kind != SCHEMA_CHANGED:
            start = at + len(prefix) + len(before)
            versions.append(Version(type_id, entity_id, kind, start, len(entity)))
        parts += (prefix, before, entity, after)
        at += len(prefix) + size
    if at > MAX_UNIT_BYTES:
        message = f"the unit takes {at} bytes in the feed, old and new content together; split it"
        raise refusal_of(field, "UNIT_TOO_LARGE", message, limit=str(MAX_UNIT_BYTES))
    return LoggedUnit(revision, commit_time, b"".join(parts), tuple(versions))


_text_of_many = lru_cache(maxsize=2048)(wire.text)  # principals: few, and short


LOCK_HEAD: LiteralString = "SELECT epoch, revision, commit_time FROM lock_head(%s)"


def begin_life(namespace: str, epoch: str) -> Statement:
    """Make the head, or take over that of a namespace without a life; nothing if *epoch* is dead or another lives.

    The conflict takes the row lock, so the condition is about the newest row.
    """
    return Statement(
        """INSERT INTO heads (namespace, epoch) VALUES (%s, %s)
        ON CONFLICT (namespace) DO UPDATE SET epoch = excluded.epoch, revision = 0, horizon = 0
            WHERE heads.epoch = '' AND excluded.epoch <> ALL (heads.dead)""",
        (namespace, epoch),
    )


def end_life(namespace: str, epoch: str, mark: str) -> Statement:
    """Let nothing be written in the life *epoch* from now on; if it is the present one, its head says *mark*."""
    return Statement(
        """INSERT INTO heads (namespace, epoch, dead) VALUES (%s, '', ARRAY[%s])
        ON CONFLICT (namespace) DO UPDATE SET dead = heads.dead || excluded.dead,
            epoch = CASE WHEN heads.epoch = ANY (excluded.dead) THEN %s ELSE heads.epoch END
            WHERE NOT heads.dead @> excluded.dead""",
        (namespace, epoch, mark),
    )


def append(namespace: str, units: Sequence[LoggedUnit]) -> list[Statement]:
    """Statements that write *units* and their versions, and move the head."""
    statements = []
    if units:
        last = units[-1]
        statements.append(
            Statement(
                """WITH new_units AS (
                    INSERT INTO units (namespace, revision, commit_time, body)
                    SELECT %s, * FROM unnest(%s::int8[], %s::timestamptz[], %s::bytea[])
                )
                UPDATE heads SET revision = %s, commit_time = %s WHERE namespace = %s""",
                (
                    namespace,
                    packed_int8(unit.revision for unit in units),
                    packed_timestamptz(unit.commit_time for unit in units),
                    packed_bytea(unit.body for unit in units),
                    last.revision,
                    last.commit_time,
                    namespace,
                ),
            )
        )
    versions = [(unit.revision, version) for unit in units for version in unit.versions]
    if versions:
        statements.append(
            Statement(
                """INSERT INTO versions (namespace, type, id, revision, kind, start, length)
                SELECT %s, * FROM unnest(%s::text[], %s::text[], %s::int8[], %s::int8[], %s::int8[], %s::int8[])""",
                (
                    namespace,
                    packed_few(version.type for _, version in versions),
                    packed_text(version.id for _, version in versions),
                    packed_int8(revision for revision, _ in versions),
                    packed_int8(version.kind for _, version in versions),
                    packed_int8(version.start for _, version in versions),
                    packed_int8(version.length for _, version in versions),
                ),
            )
        )
    return statements


def select_head(namespace: str) -> Statement:
    """The head, as a row for ``head_of``."""
    return Statement("SELECT epoch, revision, horizon FROM heads WHERE namespace = %s AND epoch <> ''", (namespace,))


def head_of(namespace: str, rows: Sequence[Row], epoch: str) -> Head:
    """The head read by ``select_head``; a namespace that nothing was written to yet is at 0 of *epoch*."""
    return Head(namespace, *rows[0]) if rows else Head(namespace, epoch, 0)


async def read_heads(database: Database, namespaces: Sequence[str]) -> list[Head]:
    """The heads of those *namespaces* that have one."""
    (rows,) = await database.read(
        "",
        Statement(
            "SELECT namespace, epoch, revision, horizon FROM heads WHERE namespace = ANY(%s::text[]) AND epoch <> ''",
            (packed_text(namespaces),),
        ),
    )
    return [Head(*row) for row in rows]


async def read_units(
    database: Database, namespace: str, after: int, to: int, max_bytes: int
) -> tuple[Head | None, list[bytes]]:
    """The head, and the units in ``(after, to]`` (to 0: the head) up to *max_bytes*, at least one if there is one.

    Raises:
        OutOfRange: *after* lies below the horizon (COMPACTED).
    """
    head_rows, rows = await database.read(
        namespace,
        select_head(namespace),
        # The running sum stops the read; a window over the whole rest of the log would read all of it, hence the limit.
        Statement(
            """SELECT body FROM (
                SELECT revision, body, sum(octet_length(body)) OVER (ORDER BY revision) - octet_length(body) AS before
                FROM (SELECT revision, body FROM units WHERE namespace = %s AND revision > %s AND revision <= %s
                    ORDER BY revision LIMIT 5000) page
            ) sized WHERE before = 0 OR before + octet_length(body) <= %s ORDER BY revision""",
            (namespace, after, to or 2**62, max_bytes),
        ),
    )
    if not head_rows:
        return None, []
    head = head_of(namespace, head_rows, "")
    if after < head.horizon:
        raise OutOfRange(
            "COMPACTED", "that part of the log is gone; start with a snapshot", horizon_revision=str(head.horizon)
        )
    return head, [body for (body,) in rows]


def select_revision_at(namespace: str, moment: datetime) -> Statement:
    """One row (revision, its commit time, whether *moment* is still to come): the newest revision at *moment*.

    The revision is that of the horizon when *moment* lies before everything that is left; its time is null when it is
    not known any more, or when it is 0. Commit times rise with revisions, so this is a binary search over the primary
    key. No row: nothing was written yet.
    """
    return Statement(
        """WITH RECURSIVE search (low, high) AS (
            SELECT horizon, revision FROM heads WHERE namespace = %s AND epoch <> ''
            UNION ALL
            SELECT CASE WHEN early THEN middle ELSE low END, CASE WHEN early THEN high ELSE middle - 1 END
            FROM (SELECT low, high, middle,
                    (SELECT commit_time <= %s FROM units WHERE namespace = %s AND revision = middle) AS early
                FROM (SELECT low, high, (low + high + 1) / 2 AS middle FROM search WHERE low < high) halved) tested
        )
        SELECT low, (SELECT commit_time FROM units WHERE namespace = %s AND revision = low), %s > clock_timestamp()
        FROM search WHERE low >= high""",
        (namespace, moment, namespace, namespace, moment),
    )


async def find_revision(database: Database, namespace: str, moment: datetime) -> tuple[int, Head | None]:
    """The last revision committed at or before *moment* (the horizon's, at first 0, before that), and the head."""
    head_rows, rows = await database.read(namespace, select_head(namespace), select_revision_at(namespace, moment))
    if not head_rows:
        return 0, None
    return rows[0][0], head_of(namespace, head_rows, "")


def select_versions(namespace: str, keys: Sequence[tuple[str, str]], revision: int) -> Statement:
    """Rows (type, id, kind, serialized Entity) of each (type, id): its newest version at or before *revision*.

    The subqueries are fenced (LIMIT, OFFSET 0): joined freely, a planner without statistics reads the whole log once
    and compares every key with every row.
    """
    types, ids = zip(*keys, strict=True)
    return Statement(
        """SELECT k.type, k.id, v.kind, u.entity
        FROM unnest(%s::text[], %s::text[]) AS k (type, id)
        CROSS JOIN LATERAL (SELECT * FROM versions WHERE namespace = %s AND type = k.type AND id = k.id
            AND revision <= %s ORDER BY revision DESC LIMIT 1) v
        CROSS JOIN LATERAL (SELECT substring(body FROM v.start + 1 FOR v.length) AS entity FROM units
            WHERE namespace = %s AND revision = v.revision OFFSET 0) u""",
        (packed_text(types), packed_text(ids), namespace, revision, namespace),
    )
