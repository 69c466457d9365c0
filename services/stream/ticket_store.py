"""Which tickets were redeemed: the one thing about them that replicas must agree on."""

from __future__ import annotations

from datetime import UTC, datetime

from services.runtime.database import Database, Statement

# Rows belong to nobody's namespace.
_NAMESPACE = "system"
# How much clocks may differ: until then an expired ticket is remembered, lest a slow clock takes it for a live one.
_SKEW_SECONDS = 300

_FORGET = "DELETE FROM redeemed_tickets WHERE namespace = %s AND expire_time < %s"
_REMEMBER = """
    INSERT INTO redeemed_tickets (namespace, expire_time, ticket) VALUES (%s, %s, %s)
    ON CONFLICT DO NOTHING
    RETURNING 1"""


async def redeem(database: Database, ticket: str, expires: float, now: float) -> bool:
    """Whether *ticket*, which expires at *expires*, was not redeemed before; from now on it is. All in seconds."""
    _, first = await database.write(_NAMESPACE, forget(now), remember(ticket, expires))
    return bool(first)


def forget(now: float) -> Statement:
    """Forget tickets that expired so long before *now* that no replica takes them."""
    return Statement(_FORGET, (_NAMESPACE, datetime.fromtimestamp(now - _SKEW_SECONDS, UTC)))


def remember(ticket: str, expires: float) -> Statement:
    """Remember *ticket*; a row if it was not known."""
    return Statement(_REMEMBER, (_NAMESPACE, datetime.fromtimestamp(expires, UTC), ticket))
