"""The SQL of what is counted under the lock: usage by type, mass changes by type and principal, the write budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final, NamedTuple

from services.runtime.database import Row, Statement, packed_int8, packed_text

WINDOW_MINUTES: Final = 10
"""How long a principal's changes are held against them; an import's count as long as it is remembered."""
IMPORT: Final = "import:"
"""Begins the scope of an import, where otherwise a principal stands."""

Scope = tuple[str, str]
"""(type, principal or import)."""


class Changed(NamedTuple):
    """Entities that were changed in a scope's window, those of them that were deleted, and since which revision."""

    changed: int = 0
    deleted: int = 0
    since: int = 2**62


class Budget(NamedTuple):
    """Writes that may still be made, as of a moment."""

    tokens: float
    update_time: datetime


def select_usage(namespace: str) -> Statement:
    """Rows (type, entities, bytes); there are as many as the namespace has or had types."""
    return Statement("SELECT type, entities, bytes FROM usage WHERE namespace = %s ORDER BY type", (namespace,))


def select_total(namespace: str) -> Statement:
    """A row (entities, bytes) of the namespace as a whole, if anything was counted."""
    return Statement("SELECT entities, bytes FROM usage WHERE namespace = %s AND type = ''", (namespace,))


def add_usage(namespace: str, added: Mapping[str, tuple[int, int]]) -> Statement:
    """Add (live entities, bytes) to the counts of types, and of '' for the namespace."""
    types = sorted(added)
    return Statement(
        """INSERT INTO usage (namespace, type, entities, bytes)
        SELECT %s, * FROM unnest(%s::text[], %s::int8[], %s::int8[])
        ON CONFLICT (namespace, type) DO UPDATE SET entities = usage.entities + excluded.entities,
            bytes = usage.bytes + excluded.bytes""",
        (
            namespace,
            packed_text(types),
            packed_int8(added[type_][0] for type_ in types),
            packed_int8(added[type_][1] for type_ in types),
        ),
    )


def select_mass_changes(namespace: str, scopes: Collection[Scope]) -> Statement:
    """Rows (type, scope, changed, deleted, since, live entities of the type) of *scopes*, summed over their windows.

    The three sums are null where nothing was changed.
    """
    types, principals = zip(*scopes, strict=True)
    return Statement(
        """SELECT k.type, k.scope, c.*, coalesce(u.entities, 0)
        FROM unnest(%s::text[], %s::text[]) AS k (type, scope)
        LEFT JOIN LATERAL (SELECT sum(changed)::int8, sum(deleted)::int8, min(since) FROM mass_changes
            WHERE namespace = %s AND type = k.type AND scope = k.scope AND minute >= CASE
                WHEN starts_with(k.scope, %s) THEN 0
                ELSE floor(extract(epoch FROM clock_timestamp()) / 60)::int8 - %s END
            OFFSET 0) c ON true
        LEFT JOIN LATERAL (SELECT entities FROM usage WHERE namespace = %s AND type = k.type LIMIT 1) u ON true""",
        (packed_text(types), packed_text(principals), namespace, IMPORT, WINDOW_MINUTES, namespace),
    )


def add_mass_changes(namespace: str, minute: int, added: Mapping[Scope, Changed]) -> Statement:
    """Add to the counts of scopes, in the minute since 1970 that they fall into."""
    scopes = sorted(added)
    return Statement(
        """INSERT INTO mass_changes (namespace, minute, type, scope, changed, deleted, since)
        SELECT %s, %s, * FROM unnest(%s::text[], %s::text[], %s::int8[], %s::int8[], %s::int8[])
        ON CONFLICT (namespace, type, scope, minute) DO UPDATE SET
            changed = mass_changes.changed + excluded.changed, deleted = mass_changes.deleted + excluded.deleted""",
        (
            namespace,
            minute,
            packed_text(type_ for type_, _ in scopes),
            packed_text(scope for _, scope in scopes),
            packed_int8(added[scope].changed for scope in scopes),
            packed_int8(added[scope].deleted for scope in scopes),
            packed_int8(added[scope].since for scope in scopes),
        ),
    )


def forget_mass_changes(namespace: str) -> Statement:
    """Remove what no window reaches any more; an import's counts stay for seven days."""
    return Statement(
        """DELETE FROM mass_changes WHERE namespace = %s AND minute < floor(extract(epoch FROM now()) / 60)::int8
            - CASE WHEN starts_with(scope, %s) THEN 10080 ELSE 60 END""",
        (namespace, IMPORT),
    )


def select_budget(namespace: str) -> Statement:
    """A row for ``Budget``, if writes were counted before."""
    return Statement("SELECT tokens, update_time FROM write_budgets WHERE namespace = %s", (namespace,))


def budget_of(rows: Collection[Row]) -> Budget | None:
    """The budget in the rows of ``select_budget``."""
    return next((Budget(*row) for row in rows), None)


def put_budget(namespace: str, budget: Budget) -> Statement:
    """Store what is left."""
    return Statement(
        """INSERT INTO write_budgets (namespace, tokens, update_time) VALUES (%s, %s, %s)
        ON CONFLICT (namespace) DO UPDATE SET tokens = excluded.tokens, update_time = excluded.update_time""",
        (namespace, budget.tokens, budget.update_time),
    )
