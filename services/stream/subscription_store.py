"""The SQL of subscriptions: their definitions, how far each has come, and what is parked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import orjson

from services.runtime.call import Namespace
from services.runtime.database import (
    Connection,
    Database,
    Row,
    Statement,
    packed_int8,
    packed_text,
    pipeline,
)
from services.runtime.errors import NotFound
from services.stream.checkpoint import Group, Outstanding, Parked, Position

ACTIVE: Final = 1
COMPACTED: Final = 2


@dataclass(frozen=True, slots=True)
class Definition:
    """What its owner asked for. *definition* is a serialized ``Subscription``, *version* counts updates."""

    id: str
    uid: str
    epoch: str
    version: int
    definition: bytes
    create_time: datetime
    update_time: datetime


@dataclass(slots=True)
class Progress:
    """How far a subscription has come: *state*, and the group."""

    state: int
    group: Group


@dataclass(slots=True)
class Locked:
    """A subscription whose row lock is held; what becomes of *progress* is written when the lock is given up.

    *now* is the database's clock, in microseconds since the epoch: all replicas go by it.
    """

    connection: Connection
    definition: Definition
    progress: Progress
    now: int
    statements: list[Statement] = field(default_factory=list)

    async def query(self, statement: Statement) -> list[Row]:
        """Rows of *statement*, in this transaction."""
        (rows,) = await pipeline(self.connection, statement)
        return rows


def insert(namespace: str, definition: Definition, progress: Progress) -> list[Statement]:
    """Make a subscription. The first statement has a row if its id was free."""
    parameters = (
        namespace,
        definition.id,
        definition.uid,
        definition.epoch,
        definition.version,
        definition.definition,
        definition.create_time,
        definition.update_time,
    )
    group = progress.group
    return [
        Statement(
            """INSERT INTO subscriptions (namespace, id, uid, epoch, version, definition, create_time, update_time)
            VALUES (%s, %s, %s::uuid, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING 1""",
            parameters,
        ),
        Statement(
            """INSERT INTO subscription_progress (namespace, id, state, cursor_revision, next_delivery, outstanding)
            VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING""",
            (namespace, definition.id, progress.state, group.cursor, group.next_delivery, _encode(group)),
        ),
        due_at_once(namespace, definition.id),
    ]


def count(namespace: str) -> Statement:
    """One row (count)."""
    return Statement("SELECT count(*) FROM subscriptions WHERE namespace = %s", (namespace,))


def select_page(namespace: str, after: str, limit: int) -> Statement:
    """Rows for ``listed``, by id."""
    return Statement(
        """SELECT s.id, s.uid, s.epoch, s.version, s.definition, s.create_time, s.update_time,
            p.state, p.cursor_revision, p.next_delivery, p.parked, p.outstanding
        FROM (SELECT * FROM subscriptions WHERE namespace = %s AND id > %s ORDER BY id LIMIT %s) s
        CROSS JOIN LATERAL (SELECT * FROM subscription_progress WHERE namespace = %s AND id = s.id LIMIT 1) p
        ORDER BY s.id""",
        (namespace, after, limit, namespace),
    )


def listed(rows: Sequence[Row]) -> list[tuple[Definition, Progress]]:
    """The subscriptions in the rows of ``select_page``."""
    return [(_definition(row[:7]), _progress(row[7:])) for row in rows]


def select(namespace: str, id: str) -> list[Statement]:
    """Statements whose rows ``found`` understands."""
    return [_select_definition(namespace, id), _select_progress(namespace, id, lock=False)]


def found(rows: Sequence[Sequence[Row]]) -> tuple[Definition, Progress] | None:
    definitions, progresses = rows
    return (_definition(definitions[0]), _progress(progresses[0])) if definitions and progresses else None


def update(namespace: str, id: str, definition: bytes) -> Statement:
    """Change the definition; of a subscription whose lock is held."""
    return Statement(
        """UPDATE subscriptions SET definition = %s, version = version + 1, update_time = clock_timestamp()
        WHERE namespace = %s AND id = %s""",
        (definition, namespace, id),
    )


def delete(namespace: str, id: str, uid: str) -> list[Statement]:
    """Remove a subscription, if it is still the one called *uid*, and all that belongs to it."""
    it = (namespace, id, uid)
    return [
        Statement(
            """WITH it AS (DELETE FROM subscriptions WHERE namespace = %s AND id = %s AND uid = %s::uuid RETURNING id)
            DELETE FROM subscription_progress WHERE namespace = %s AND id = (SELECT id FROM it) RETURNING 1""",
            (*it, namespace),
        ),
        # Only if the first one removed it.
        Statement(
            """DELETE FROM subscription_parked WHERE namespace = %s AND subscription = %s
                AND NOT EXISTS (SELECT FROM subscriptions WHERE namespace = %s AND id = %s)""",
            (namespace, id, namespace, id),
        ),
        Statement(
            """DELETE FROM subscription_upkeep WHERE namespace = %s AND id = %s
                AND NOT EXISTS (SELECT FROM subscriptions WHERE namespace = %s AND id = %s)""",
            (namespace, id, namespace, id),
        ),
    ]


def of_this_life(held: Locked | None, namespace: Namespace) -> Locked:
    """*held*, unless it is of another life of *namespace*.

    Raises:
        NotFound: it is, or there is none.
    """
    if held is None or held.definition.epoch != namespace.epoch:
        raise no_such_subscription()
    return held


def no_such_subscription() -> NotFound:
    return NotFound("NOT_FOUND", "there is no such subscription")


@asynccontextmanager
async def locked(database: Database, namespace: str, id: str) -> AsyncIterator[Locked | None]:
    """A transaction that holds the lock of a subscription; None: there is none. Committed unless the block fails."""
    async with database.connection() as connection:
        try:
            rows = await pipeline(
                connection,
                Statement("BEGIN"),
                _choose(namespace),
                _select_progress(namespace, id, lock=True),
                # In a statement of its own, so that it sees what was committed before the lock was had.
                _select_definition(namespace, id),
                Statement("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"),
            )
            if not rows[2] or not rows[3]:
                await connection.rollback()
                yield None
                return
            held = Locked(connection, _definition(rows[3][0]), _progress(rows[2][0]), rows[4][0][0])
            before = _written(held.progress)
            yield held
            await pipeline(connection, *_save(namespace, id, held, before), Statement("COMMIT"))
        except BaseException:
            if not connection.closed:
                await connection.rollback()
            raise


def _save(namespace: str, id: str, held: Locked, before: tuple[object, ...]) -> list[Statement]:
    statements = list(held.statements)
    group = held.progress.group
    after = _written(held.progress)
    if after != before:
        statements.append(
            Statement(
                """UPDATE subscription_progress
                SET state = %s, cursor_revision = %s, next_delivery = %s, parked = %s, outstanding = %s
                WHERE namespace = %s AND id = %s""",
                (*after, namespace, id),
            )
        )
    if group.newly_parked:
        statements.append(_insert_parked(namespace, id, group.newly_parked))
    return statements


async def in_transaction(database: Database, namespace: str, *statements: Statement) -> list[list[Row]]:
    """Rows of each of *statements*, in one transaction."""
    async with database.connection() as connection:
        try:
            rows = await pipeline(connection, Statement("BEGIN"), _choose(namespace), *statements, Statement("COMMIT"))
        except BaseException:
            if not connection.closed:
                await connection.rollback()
            raise
        return rows[2:-1]


# What is parked


def parked_among(namespace: str, id: str, keys: Collection[str]) -> Statement:
    """Rows (key) of those *keys* of which something is parked."""
    return Statement(
        """SELECT k.key FROM unnest(%s::text[]) AS k (key) CROSS JOIN LATERAL (
            SELECT FROM subscription_parked WHERE namespace = %s AND subscription = %s AND key = k.key LIMIT 1) p""",
        (packed_text(keys), namespace, id),
    )


def select_parked(namespace: str, id: str, after: tuple[str, int, int], limit: int) -> Statement:
    """Rows (key, revision, index, kind, attempts, reason, park_time) after the place *after*, in order."""
    return Statement(
        """SELECT key, revision, index, kind, attempts, reason, park_time FROM subscription_parked
        WHERE namespace = %s AND subscription = %s AND (key, revision, index) > (%s, %s, %s)
        ORDER BY key, revision, index LIMIT %s""",
        (namespace, id, *after, limit),
    )


def select_parked_of(namespace: str, id: str, keys: Collection[str]) -> Statement:
    """Rows (key, revision, index, kind, attempts, reason) of *keys*."""
    return Statement(
        """SELECT p.key, p.revision, p.index, p.kind, p.attempts, p.reason FROM unnest(%s::text[]) AS k (key)
        CROSS JOIN LATERAL (SELECT * FROM subscription_parked
            WHERE namespace = %s AND subscription = %s AND key = k.key ORDER BY revision, index OFFSET 0) p""",
        (packed_text(keys), namespace, id),
    )


def select_parked_keys(namespace: str, id: str, limit: int) -> Statement:
    """Rows (key, how many of it are parked), by key; of the first *limit* changes that are parked."""
    return Statement(
        """SELECT key, count(*) FROM (SELECT key FROM subscription_parked
            WHERE namespace = %s AND subscription = %s ORDER BY key, revision, index LIMIT %s) p
        GROUP BY key ORDER BY key""",
        (namespace, id, limit),
    )


def delete_parked_of(namespace: str, id: str, keys: Collection[str]) -> Statement:
    return Statement(
        "DELETE FROM subscription_parked WHERE namespace = %s AND subscription = %s AND key = ANY(%s::text[])",
        (namespace, id, packed_text(keys)),
    )


def delete_parked_after(namespace: str, id: str, revision: int) -> Statement:
    """A row for each that was removed."""
    return Statement(
        """DELETE FROM subscription_parked WHERE namespace = %s AND subscription = %s AND revision > %s
        RETURNING 1""",
        (namespace, id, revision),
    )


def oldest_parked(namespace: str, id: str) -> Statement:
    """One row (revision, null without any). Reads what is parked, 10,000 rows at most: upkeep and seeks ask."""
    return Statement(
        "SELECT min(revision) FROM subscription_parked WHERE namespace = %s AND subscription = %s", (namespace, id)
    )


def _insert_parked(namespace: str, id: str, parked: Sequence[Parked]) -> Statement:
    return Statement(
        """INSERT INTO subscription_parked
            (namespace, subscription, key, revision, index, kind, attempts, reason, park_time)
        SELECT %s, %s, key, revision, index, kind, attempts, reason, clock_timestamp()
        FROM unnest(%s::text[], %s::int8[], %s::int8[], %s::int8[], %s::int8[], %s::text[])
            AS p (key, revision, index, kind, attempts, reason)""",
        (
            namespace,
            id,
            packed_text(change.key for change in parked),
            packed_int8(change.position.revision for change in parked),
            packed_int8(change.position.index for change in parked),
            packed_int8(change.kind for change in parked),
            packed_int8(change.attempts for change in parked),
            packed_text(change.reason for change in parked),
        ),
    )


# When to look after a subscription again


def due_at_once(namespace: str, id: str) -> Statement:
    return Statement(
        """INSERT INTO subscription_upkeep (namespace, id, due_time) VALUES (%s, %s, now())
        ON CONFLICT (namespace, id) DO UPDATE SET due_time = excluded.due_time""",
        (namespace, id),
    )


def select_due(limit: int) -> Statement:
    """Rows (namespace, id), the most overdue first."""
    return Statement(
        "SELECT namespace, id FROM subscription_upkeep WHERE due_time <= now() ORDER BY due_time LIMIT %s", (limit,)
    )


def claim(namespace: str, id: str, seconds: float) -> Statement:
    """A row if it is due still: then it is not for so many *seconds*, and the caller's to look after."""
    return Statement(
        """UPDATE subscription_upkeep SET due_time = now() + make_interval(secs => %s)
        WHERE namespace = %s AND id = %s AND due_time <= now() RETURNING 1""",
        (seconds, namespace, id),
    )


# Encoding


def _choose(namespace: str) -> Statement:
    return Statement("SELECT set_config('app.namespace', %s, true)", (namespace,))


def _select_definition(namespace: str, id: str) -> Statement:
    return Statement(
        """SELECT id, uid, epoch, version, definition, create_time, update_time FROM subscriptions
        WHERE namespace = %s AND id = %s""",
        (namespace, id),
    )


def _select_progress(namespace: str, id: str, *, lock: bool) -> Statement:
    statement = Statement(
        """SELECT state, cursor_revision, next_delivery, parked, outstanding FROM subscription_progress
        WHERE namespace = %s AND id = %s""",
        (namespace, id),
    )
    return Statement(statement.sql + " FOR UPDATE", statement.params) if lock else statement


def _definition(row: Row) -> Definition:
    id, uid, *rest = row
    return Definition(id, str(uid), *rest)


def _progress(row: Row) -> Progress:
    state, cursor, next_delivery, parked, outstanding = row
    items = [
        Outstanding(Position(revision, index), key, kind, attempts, delivery, bool(in_flight), due)
        for revision, index, key, kind, attempts, delivery, in_flight, due in orjson.loads(outstanding)
    ]
    return Progress(state, Group(cursor, next_delivery, parked, {item.position: item for item in items}))


def _written(progress: Progress) -> tuple[object, ...]:
    group = progress.group
    return progress.state, group.cursor, group.next_delivery, group.parked, _encode(group)


def _encode(group: Group) -> bytes:
    return orjson.dumps(
        [
            (*item.position, item.key, item.kind, item.attempts, item.delivery, int(item.in_flight), item.due)
            for item in group.outstanding.values()
        ]
    )
