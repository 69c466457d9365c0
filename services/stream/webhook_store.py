"""The SQL of webhooks: their secrets, how they fare, and the log of what was sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from services.runtime.database import Database, Row, Statement, packed_int8, packed_text, packed_timestamptz, pipeline
from services.stream.webhook_policy import Health

MAX_DELIVERIES: Final = 1000
"""Attempts that are remembered, for each webhook."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook as it is stored; *attempts* is the number of its last delivery. The secrets are sealed."""

    secret: bytes
    previous_secret: bytes | None
    previous_secret_expire_time: datetime | None
    attempts: int
    health: Health


NEW: Final = Webhook(b"", None, None, 0, Health())
"""One that nothing was sent to yet, without the secret that it is to have."""


@dataclass(frozen=True, slots=True)
class Found:
    """A webhook and the subscription that it belongs to; *definition* is a serialized ``Subscription``."""

    uid: str
    epoch: str
    definition: bytes
    webhook: Webhook


@dataclass(slots=True)
class Locked:
    """A webhook whose row lock is held, and what is to be written before it is given up."""

    uid: str
    epoch: str
    webhook: Webhook
    statements: list[Statement] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt, with its number; ``outcome`` is a number of ``WebhookDelivery.Outcome``."""

    number: int
    message_id: str
    revision: int
    index: int
    attempt: int
    send_time: datetime
    latency: timedelta
    outcome: int
    status: int
    detail: str


def insert(namespace: str, subscription: str, uid: str, secret: bytes) -> list[Statement]:
    """Make the subscription push, if it is the one called *uid*."""
    return [
        Statement(
            """INSERT INTO webhooks (namespace, subscription, secret)
            SELECT namespace, id, %s FROM subscriptions WHERE namespace = %s AND id = %s AND uid = %s::uuid""",
            (secret, namespace, subscription, uid),
        ),
        Statement(
            """INSERT INTO webhook_work (namespace, subscription)
            SELECT namespace, id FROM subscriptions WHERE namespace = %s AND id = %s AND uid = %s::uuid""",
            (namespace, subscription, uid),
        ),
    ]


def delete(namespace: str, subscription: str) -> Statement:
    """Let the subscription push no more, and forget its secrets and deliveries."""
    return Statement("DELETE FROM webhooks WHERE namespace = %s AND subscription = %s", (namespace, subscription))


def select(namespace: str, subscription: str) -> Statement:
    """A row for ``found``, if the subscription pushes."""
    return Statement(
        """SELECT s.uid, s.epoch, s.definition, w.secret, w.previous_secret, w.previous_secret_expire_time,
            w.attempts, w.disable_reason, w.disable_time, w.failing_since, w.failures
        FROM subscriptions s, webhooks w
        WHERE s.namespace = %s AND s.id = %s AND w.namespace = %s AND w.subscription = %s""",
        (namespace, subscription, namespace, subscription),
    )


def found(rows: Sequence[Row]) -> Found | None:
    """What the rows of ``select`` tell."""
    if not rows:
        return None
    uid, epoch, definition, *webhook = rows[0]
    return Found(str(uid), epoch, definition, _webhook(webhook))


@asynccontextmanager
async def locked(database: Database, namespace: str, subscription: str) -> AsyncIterator[Locked | None]:
    """A transaction that holds the lock of a webhook; None: there is none. Committed unless the block fails."""
    async with database.connection() as connection:
        try:
            *_, rows = await pipeline(
                connection,
                Statement("BEGIN"),
                Statement("SELECT set_config('app.namespace', %s, true)", (namespace,)),
                Statement(
                    select(namespace, subscription).sql + " FOR UPDATE OF w",
                    (namespace, subscription, namespace, subscription),
                ),
            )
            there = found(rows)
            held = Locked(there.uid, there.epoch, there.webhook) if there is not None else None
            yield held
            await pipeline(connection, *(held.statements if held else ()), Statement("COMMIT"))
        except BaseException:
            if not connection.closed:
                await connection.rollback()
            raise


def set_secrets(
    namespace: str, subscription: str, secret: bytes, previous: bytes, expire_time: datetime | None
) -> Statement:
    """Sign with *secret* from now on, and until *expire_time* with *previous* too; None: no longer."""
    return Statement(
        """UPDATE webhooks SET secret = %s, previous_secret = %s, previous_secret_expire_time = %s
        WHERE namespace = %s AND subscription = %s""",
        (secret, None if expire_time is None else previous, expire_time, namespace, subscription),
    )


def set_health(namespace: str, subscription: str, health: Health) -> list[Statement]:
    """How it fares now; one that is disabled is served no more."""
    changed = Statement(
        """UPDATE webhooks SET disable_reason = %s, disable_time = %s, failing_since = %s, failures = %s
        WHERE namespace = %s AND subscription = %s""",
        (
            health.disable_reason,
            health.disable_time,
            health.failing_since,
            health.failures,
            namespace,
            subscription,
        ),
    )
    if not health.is_disabled:
        return [changed]
    work = "DELETE FROM webhook_work WHERE namespace = %s AND subscription = %s"
    return [changed, Statement(work, (namespace, subscription))]


def enable(namespace: str, subscription: str) -> list[Statement]:
    """Forget the failures, and serve it."""
    work = "INSERT INTO webhook_work (namespace, subscription) VALUES (%s, %s) ON CONFLICT DO NOTHING"
    return [*set_health(namespace, subscription, Health()), Statement(work, (namespace, subscription))]


def select_work() -> Statement:
    """Rows (namespace, subscription) of every webhook that is to be served, in any namespace."""
    return Statement("SELECT namespace, subscription FROM webhook_work ORDER BY namespace, subscription")


def log(namespace: str, subscription: str, deliveries: Sequence[Delivery]) -> list[Statement]:
    """Remember *deliveries*, which follow the last one without a gap, and forget the oldest. The lock must be held."""
    newest = deliveries[-1].number
    return [
        Statement(
            "UPDATE webhooks SET attempts = %s WHERE namespace = %s AND subscription = %s",
            (newest, namespace, subscription),
        ),
        Statement(
            """INSERT INTO webhook_deliveries (namespace, subscription, number, message_id, revision, index, attempt,
                send_time, latency, outcome, status, detail)
            SELECT %s, %s, number, message_id, revision, index, attempt,
                send_time, microseconds * interval '1 microsecond', outcome, status, detail
            FROM unnest(%s::int8[], %s::text[], %s::int8[], %s::int8[], %s::int8[], %s::timestamptz[],
                %s::int8[], %s::int8[], %s::int8[], %s::text[])
                AS sent (number, message_id, revision, index, attempt,
                    send_time, microseconds, outcome, status, detail)""",
            (
                namespace,
                subscription,
                packed_int8(one.number for one in deliveries),
                packed_text(one.message_id for one in deliveries),
                packed_int8(one.revision for one in deliveries),
                packed_int8(one.index for one in deliveries),
                packed_int8(one.attempt for one in deliveries),
                packed_timestamptz(one.send_time for one in deliveries),
                packed_int8(one.latency // timedelta(microseconds=1) for one in deliveries),
                packed_int8(one.outcome for one in deliveries),
                packed_int8(one.status for one in deliveries),
                packed_text(one.detail for one in deliveries),
            ),
        ),
        Statement(
            "DELETE FROM webhook_deliveries WHERE namespace = %s AND subscription = %s AND number <= %s",
            (namespace, subscription, newest - MAX_DELIVERIES),
        ),
    ]


def select_deliveries(namespace: str, subscription: str, before: int, limit: int) -> Statement:
    """Rows for ``Delivery``, those with a number below *before*, the newest first."""
    return Statement(
        """SELECT number, message_id, revision, index, attempt, send_time, latency, outcome, status, detail
        FROM webhook_deliveries WHERE namespace = %s AND subscription = %s AND number < %s
        ORDER BY number DESC LIMIT %s""",
        (namespace, subscription, before, limit),
    )


def _webhook(row: Sequence[Any]) -> Webhook:
    secret, previous_secret, expire_time, attempts, *health = row
    return Webhook(secret, previous_secret, expire_time, attempts, Health(*health))
