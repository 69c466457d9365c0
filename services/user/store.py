"""SQL of accounts: users, verifications, sessions, throttles, the audit trail.

Functions take the transaction and never commit. What is decided under the lock of ``system`` is in ``ledger_sql``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg
from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from services.runtime.database import CONNECT_TIMEOUT
from services.runtime.errors import Unavailable
from services.user.model import Account, EndReason, SealedUser, Session
from services.user.schema import audit, sessions, throttles, user_keys, users, verifications

PENDING_LIFE = timedelta(hours=72)
"""How long a mailed token may be presented, and an unverified registration is kept."""


def open_engine(url: str, *, size: int = 8) -> AsyncEngine:
    """An engine for *url*, as libpq understands it. Connects when first used."""

    async def connect() -> psycopg.AsyncConnection[Any]:
        return await psycopg.AsyncConnection.connect(url, connect_timeout=CONNECT_TIMEOUT)

    return create_async_engine(
        "postgresql+psycopg://",
        async_creator=connect,
        pool_size=size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT,
        pool_pre_ping=True,  # connections die with the server they were to
        hide_parameters=True,
    )


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One transaction; failures of the database are raised as psycopg's own, which callers are shown as retriable."""
    try:
        async with engine.begin() as tx:
            yield tx
    except DBAPIError as failure:
        if failure.orig is None:
            raise
        raise failure.orig from None
    except PoolTimeoutError:
        raise Unavailable("OVERLOADED", "too many calls wait for the store; retry") from None


async def count_attempt(tx: AsyncConnection, purpose: str, key: bytes) -> float:
    """Count an attempt and return 0; or the seconds that *key* is blocked for, and count nothing.

    Attempts are counted before their outcome is known, in one statement, so that many at once cannot slip through.
    From the fifth on each blocks the next one for twice as long, from 2 s up to 15 min. A day without any forgets.
    """
    counted = await tx.execute(
        text(
            # The clock, not now(): of two transactions the one that waited for the row may have begun first.
            """INSERT INTO throttles AS held (purpose, key, attempts, last_time, blocked_until)
            VALUES (:purpose, :key, 1, clock_timestamp(), '-infinity')
            ON CONFLICT (purpose, key) DO UPDATE SET
                attempts = CASE WHEN held.last_time < now() - interval '1 day' THEN 1 ELSE held.attempts + 1 END,
                last_time = clock_timestamp(),
                blocked_until = CASE
                    WHEN held.attempts < 4 OR held.last_time < now() - interval '1 day' THEN '-infinity'
                    ELSE clock_timestamp() + make_interval(secs => least(900, power(2, least(held.attempts, 20) - 3)))
                END
            WHERE held.blocked_until <= clock_timestamp()
            RETURNING attempts"""
        ),
        {"purpose": purpose, "key": key},
    )
    if counted.one_or_none() is not None:
        return 0.0
    blocked_until = throttles.c.blocked_until
    seconds = func.extract("epoch", blocked_until - func.clock_timestamp())
    blocked = await tx.scalar(select(seconds).where(throttles.c.purpose == purpose, throttles.c.key == key))
    return max(1.0, float(blocked or 0))


async def forget_attempts(tx: AsyncConnection, purpose: str, key: bytes) -> None:
    """Start counting again: an attempt succeeded."""
    await tx.execute(delete(throttles).where(throttles.c.purpose == purpose, throttles.c.key == key))


async def insert_pending_user(tx: AsyncConnection, user: SealedUser, token_hash: bytes | None) -> None:
    """Keep a registration until its token is presented. Others of the same address stand beside it."""
    await tx.execute(
        insert(users).values(
            id=user.id,
            email_index=user.email_index,
            administrator=user.administrator,
            password_hash=user.password_hash,
            email=user.email,
            given_name=user.given_name,
            family_name=user.family_name,
        )
    )
    await tx.execute(
        insert(user_keys).values(user_id=user.id, kek_version=user.kek_version, wrapped_key=user.wrapped_key)
    )
    if token_hash is not None:
        await tx.execute(
            insert(verifications).values(token_hash=token_hash, user_id=user.id, expire_time=func.now() + PENDING_LIFE)
        )


async def find_pending_user(tx: AsyncConnection, token_hash: bytes) -> str | None:
    """Whose registration a mailed token completes."""
    found: str | None = await tx.scalar(
        select(verifications.c.user_id).where(
            verifications.c.token_hash == token_hash, verifications.c.expire_time > func.now()
        )
    )
    return found


async def find_account(tx: AsyncConnection, email_index: bytes) -> Account | None:
    """The verified account of an address."""
    row = (
        await tx.execute(
            select(users.c.id, users.c.password_hash, users.c.administrator).where(
                users.c.email_index == email_index, users.c.email_verified
            )
        )
    ).one_or_none()
    return None if row is None else Account(*row)


async def get_user(tx: AsyncConnection, user_id: str) -> tuple[SealedUser, datetime] | None:
    """A user as stored, and when they registered."""
    row = (
        await tx.execute(
            select(
                users.c.id,
                users.c.email_index,
                users.c.password_hash,
                users.c.email,
                users.c.given_name,
                users.c.family_name,
                user_keys.c.kek_version,
                user_keys.c.wrapped_key,
                users.c.administrator,
                users.c.create_time,
            )
            .join(user_keys, user_keys.c.user_id == users.c.id)
            .where(users.c.id == user_id)
        )
    ).one_or_none()
    return None if row is None else (SealedUser(*row[:-1]), row[-1])


async def make_administrator(tx: AsyncConnection, user_id: str) -> None:
    """Let the user's tokens carry the scope ``admin``."""
    await tx.execute(update(users).where(users.c.id == user_id).values(administrator=True))


async def replace_password_hash(tx: AsyncConnection, account: Account, password_hash: str) -> None:
    """Store another hash of the account's password, unless the password was changed meanwhile."""
    await tx.execute(
        update(users)
        .where(users.c.id == account.user_id, users.c.password_hash == account.password_hash)
        .values(password_hash=password_hash)
    )


async def insert_session(tx: AsyncConnection, session_id: str, user_id: str, life: timedelta) -> None:
    """Begin a session at generation 0, over after *life* whatever happens."""
    await tx.execute(insert(sessions).values(id=session_id, user_id=user_id, expire_time=func.now() + life))


async def lock_session(tx: AsyncConnection, session_id: str) -> tuple[Session, bool, datetime] | None:
    """A session, whether its user is an administrator, and the time; nobody else changes the session until the end."""
    row = (
        await tx.execute(
            select(
                sessions.c.id,
                sessions.c.user_id,
                sessions.c.generation,
                sessions.c.rotate_time,
                sessions.c.expire_time,
                sessions.c.end_reason,
                users.c.administrator,
                # Not now(): the wait for the lock may have been long.
                func.clock_timestamp(),
            )
            .join(users, users.c.id == sessions.c.user_id)
            .where(sessions.c.id == session_id)
            .with_for_update(of=sessions)
        )
    ).one_or_none()
    if row is None:
        return None
    reason = None if row.end_reason is None else EndReason(row.end_reason)
    return Session(*row[:5], reason), row.administrator, row[-1]


async def rotate_session(tx: AsyncConnection, session: Session, now: datetime) -> None:
    """Move *session* to its next generation."""
    await tx.execute(
        update(sessions).where(sessions.c.id == session.id).values(generation=session.generation + 1, rotate_time=now)
    )


async def record(tx: AsyncConnection, action: str, actor: str, subject: str = "") -> None:
    """Add a line to the audit trail. Ids only."""
    await tx.execute(insert(audit).values(action=action, actor=actor, subject=subject))


async def sweep(tx: AsyncConnection) -> None:
    """Remove what time has made useless: dead registrations, sessions and throttles."""
    await tx.execute(delete(users).where(~users.c.email_verified, users.c.create_time < func.now() - PENDING_LIFE))
    # A day longer than it lives, so that a token of it is refused for what it is.
    await tx.execute(delete(sessions).where(sessions.c.expire_time < func.now() - timedelta(days=1)))
    await tx.execute(delete(throttles).where(throttles.c.last_time < func.now() - timedelta(days=1)))
