"""The log: what was committed, in order, encoded once and ready to be sent on.

Four tables in the database of every owner of a log (``LOG_TABLES``, made by the service's first migration):

``heads``     one row per namespace: epoch, newest revision, its commit time, and the horizon
``units``     one row per revision: the serialized ``strandline.stream.v1.Unit``
``versions``  (namespace, type, id, revision) to a slice of a unit: history is an index onto the log, not a second copy
``requests``  what was answered to a request id, for 24 hours; one row for many units of one request
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
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
from services.runtime.errors import InvalidArgument, OutOfRange

MAX_UNIT_BYTES = 3 * 2**20
# Numbers of units of one request that one row of answers may span.
MAX_SPAN = 4096

# Answered requests that one transaction removes.
FORGET_AT_ONCE = 5000

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
    revision: int, commit_time: datetime, actor: str, request_id: str, changes: Sequence[Change]
) -> LoggedUnit:
    """Serialize a unit. ``UNIT_TOO_LARGE`` above 3 MiB, new and previous data included."""
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
        raise InvalidArgument(
            "UNIT_TOO_LARGE",
            f"the unit takes {at} bytes in the feed, old and new content together; split it",
            limit=str(MAX_UNIT_BYTES),
        )
    return LoggedUnit(revision, commit_time, b"".join(parts), tuple(versions))


_text_of_many = lru_cache(maxsize=2048)(wire.text)  # principals: few, and short


class Share(NamedTuple):
    """Which one a unit is of the many that were asked for by one *request*; *number* is not negative."""

    request: str
    number: int

    @property
    def request_id(self) -> str:
        """Like no id that a caller may choose, because of the dot."""
        return f"{self.request}.{self.number}"


class AnsweredRequest(NamedTuple):
    """What a request id was answered with; those of one request that have a *share* are kept together."""

    principal: str
    method: str
    request_id: str
    body_hash: bytes
    revision: int
    answer: bytes
    share: Share | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.principal, self.method, self.request_id)


# One share in a row of many: number, revision, length of the hash, of the answer; then both.
_SHARE = struct.Struct("!QQBI")


def kept_together(answers: Iterable[AnsweredRequest]) -> list[AnsweredRequest]:
    """*answers* as rows: those with shares of one request in one, whose id ends with the last number in it."""
    rows: list[AnsweredRequest] = []
    shares: dict[tuple[str, str, str, int], list[AnsweredRequest]] = {}
    for answer in answers:
        if answer.share is None:
            rows.append(answer)
        else:
            request, number = answer.share
            shares.setdefault((answer.principal, answer.method, request, number // MAX_SPAN), []).append(answer)
    for (principal, method, request, _), some in shares.items():
        packed = bytearray()
        last = 0
        for _, _, _, body_hash, revision, answer_, share in some:
            assert share is not None
            last = max(last, share.number)
            packed += _SHARE.pack(share.number, revision, len(body_hash), len(answer_)) + body_hash + answer_
        rows.append(AnsweredRequest(principal, method, _row_id(request, last), b"", some[-1].revision, bytes(packed)))
    return rows


def _row_id(request: str, last: int) -> str:
    """The id of a row of shares: by the hash sign it is told from any other; digits sort as numbers do."""
    return f"{request}#{last:012d}"


def answered_requests(rows: Iterable[Row]) -> Iterable[AnsweredRequest]:
    """The answers in the rows of ``find_requests``."""
    for row in rows:
        principal, method, request_id, _, _, content = row
        request, is_of_many, _ = request_id.partition("#")
        if not is_of_many:
            yield AnsweredRequest(*row)
            continue
        at = 0
        while at < len(content):
            number, revision, hash_length, length = _SHARE.unpack_from(content, at)
            at += _SHARE.size
            body_hash, answer = content[at : at + hash_length], content[at + hash_length : at + hash_length + length]
            at += hash_length + length
            share = Share(request, number)
            yield AnsweredRequest(principal, method, share.request_id, body_hash, revision, answer, share)


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


def ranges_of(request_ids: Iterable[str], shares: Iterable[Share]) -> set[tuple[str, str]]:
    """First and last id of the rows, in the order of ids, that hold *request_ids* and *shares*, and maybe others.

    A row of shares has its id from the last of them, so those with the wanted ones begin at the first wanted one, and
    end where no row can reach back to the last one.
    """
    ranges = {(request_id, request_id) for request_id in request_ids}
    numbers: dict[str, list[int]] = {}
    for request, number in shares:
        numbers.setdefault(request, []).append(number)
    ranges.update((_row_id(id_, min(some)), _row_id(id_, max(some) + MAX_SPAN)) for id_, some in numbers.items())
    return ranges


def find_requests(namespace: str, request_ids: Iterable[str], shares: Iterable[Share] = ()) -> Statement:
    """Rows for ``answered_requests`` of those already answered, and maybe of others.

    Written so that only the primary key can serve it, one range at a time (OFFSET 0 fences, and the age is no condition
    that the janitor's index understands): a plan made while the table was empty stays with its connection, and
    the other index would walk everything that was asked in 24 hours, for every batch.
    """
    ranges = ranges_of(request_ids, shares)
    return Statement(
        """SELECT r.* FROM unnest(%s::text[], %s::text[]) AS k (first, last)
        CROSS JOIN LATERAL (SELECT principal, method, request_id, body_hash, revision, answer FROM requests
            WHERE namespace = %s AND request_id >= k.first AND request_id <= k.last
                AND create_time + interval '24 hours' > now() OFFSET 0) r""",
        (packed_text(first for first, _ in ranges), packed_text(last for _, last in ranges), namespace),
    )


def append(namespace: str, units: Sequence[LoggedUnit], answers: Sequence[AnsweredRequest]) -> list[Statement]:
    """Statements that write *units*, their versions, what was answered, and move the head."""
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
    if answers:
        answers = kept_together(answers)
        statements.append(
            Statement(
                """INSERT INTO requests
                    (namespace, principal, method, request_id, body_hash, revision, answer, create_time)
                SELECT %s, *, now()
                FROM unnest(%s::text[], %s::text[], %s::text[], %s::bytea[], %s::int8[], %s::bytea[])
                ON CONFLICT (namespace, request_id, principal, method) DO UPDATE SET body_hash = excluded.body_hash,
                    revision = excluded.revision, answer = excluded.answer, create_time = excluded.create_time""",
                (
                    namespace,
                    packed_few(answer.principal for answer in answers),
                    packed_few(answer.method for answer in answers),
                    packed_text(answer.request_id for answer in answers),
                    packed_bytea(answer.body_hash for answer in answers),
                    packed_int8(answer.revision for answer in answers),
                    packed_bytea(answer.answer for answer in answers),
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


async def forget_requests(database: Database, namespace: str) -> None:
    """Remove what was answered more than 24 hours ago, in transactions of some milliseconds."""
    forgotten = FORGET_AT_ONCE
    while forgotten == FORGET_AT_ONCE:
        async with database.connection() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.namespace', %s, true)", (namespace,))
            cursor = await connection.execute(
                """DELETE FROM requests WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM requests WHERE namespace = %s AND create_time < now() - interval '24 hours'
                    ORDER BY create_time LIMIT %s))""",
                (namespace, FORGET_AT_ONCE),
            )
            forgotten = cursor.rowcount
