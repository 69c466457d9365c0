"""The SQL of retention: policies, leases, and where the log may be cut."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.runtime.database import Row, Statement, packed_int8, packed_text

MIN_AGE: Final = timedelta(hours=24)
"""Nothing younger is ever cut, whatever a policy says."""
MAX_AGE: Final = timedelta(days=3650)
DEFAULT_AGE: Final = timedelta(days=30)
LEASE_FACTOR: Final = 2
"""No lease keeps what is older than so many times the policy's age."""
MAX_LEASES: Final = 1000
"""Of consumers; and as many of states that are being read."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is kept: units younger than *max_age*, and of those no more than *max_revisions* (0: any number).

    ``update_time`` and ``updated_by`` say who chose it; None and empty: nobody, it is the default.
    """

    max_age: timedelta = DEFAULT_AGE
    max_revisions: int = 0
    update_time: datetime | None = None
    updated_by: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A consumer that has seen everything up to *acknowledged*."""

    name: str
    types: Sequence[str]
    fields: Sequence[str]
    acknowledged: int
    expire_time: datetime


def select_policy(namespace: str) -> Statement:
    """A row for ``policy_of``, if one was chosen."""
    return Statement(
        "SELECT max_age, max_revisions, update_time, updated_by FROM retentions WHERE namespace = %s", (namespace,)
    )


def policy_of(rows: Sequence[Row]) -> Policy:
    """The policy in the rows of ``select_policy``."""
    return Policy(*rows[0]) if rows else Policy()


def put_policy(namespace: str, policy: Policy, chosen: Collection[str]) -> Statement:
    """Choose of *policy* what is *chosen*, the names of its fields; what another has chosen of the rest stays."""
    return Statement(
        """INSERT INTO retentions (namespace, max_age, max_revisions, update_time, updated_by)
        VALUES (%s, %s, %s, now(), %s)
        ON CONFLICT (namespace) DO UPDATE SET
            max_age = CASE WHEN %s THEN excluded.max_age ELSE retentions.max_age END,
            max_revisions = CASE WHEN %s THEN excluded.max_revisions ELSE retentions.max_revisions END,
            update_time = excluded.update_time, updated_by = excluded.updated_by""",
        (
            namespace,
            policy.max_age,
            policy.max_revisions,
            policy.updated_by,
            "max_age" in chosen,
            "max_revisions" in chosen,
        ),
    )


READING_PREFIX: Final = "reading:"
"""Of the names of leases that hold a state for whoever pages through it: no consumer may choose such a name."""


def select_leases(namespace: str) -> Statement:
    """Rows for ``Lease`` of those that live, the most needy first."""
    return Statement(
        """SELECT name, types, fields, acknowledged_revision, expire_time FROM consumer_leases
        WHERE namespace = %s AND expire_time > now() ORDER BY acknowledged_revision, name LIMIT %s""",
        (namespace, 2 * MAX_LEASES),
    )


def put_lease(
    namespace: str, name: str, types: Sequence[str], fields: Sequence[str], acknowledged: int, ttl: timedelta
) -> Statement:
    """Make or renew a lease."""
    return Statement(
        """INSERT INTO consumer_leases (namespace, name, types, fields, acknowledged_revision, expire_time)
        VALUES (%s, %s, %s, %s, %s, now() + %s)
        ON CONFLICT (namespace, name) DO UPDATE SET types = excluded.types, fields = excluded.fields,
            acknowledged_revision = excluded.acknowledged_revision, expire_time = excluded.expire_time""",
        (namespace, name, packed_text(types), packed_text(fields), acknowledged, ttl),
    )


def count_leases(namespace: str, but: str) -> Statement:
    """How many leases of the kind of the one called *but* live, without that: consumers', or those of reading."""
    return Statement(
        """SELECT count(*) FROM consumer_leases WHERE namespace = %s AND expire_time > now() AND name <> %s
            AND starts_with(name, %s) = %s""",
        (namespace, but, READING_PREFIX, but.startswith(READING_PREFIX)),
    )


def delete_lease(namespace: str, name: str) -> Statement:
    return Statement("DELETE FROM consumer_leases WHERE namespace = %s AND name = %s", (namespace, name))


def forget_leases(namespace: str) -> Statement:
    """Remove those that expired."""
    return Statement("DELETE FROM consumer_leases WHERE namespace = %s AND expire_time <= now()", (namespace,))


def select_now_and_oldest(namespace: str) -> Statement:
    """One row (now, commit time of the oldest unit that is left or null)."""
    return Statement(
        """SELECT clock_timestamp(), (SELECT commit_time FROM units WHERE namespace = %s ORDER BY revision LIMIT 1)""",
        (namespace,),
    )


def select_units_to_cut(namespace: str, after: int, to: int, limit: int, max_bytes: int) -> Statement:
    """Rows (revision, body) of units in ``(after, to]``, at least one if there is one."""
    return Statement(
        """SELECT revision, body FROM (
            SELECT revision, body, sum(octet_length(body)) OVER (ORDER BY revision) - octet_length(body) AS before
            FROM (SELECT revision, body FROM units WHERE namespace = %s AND revision > %s AND revision <= %s
                ORDER BY revision LIMIT %s) page
        ) sized WHERE before <= %s ORDER BY revision""",
        (namespace, after, to, limit, max_bytes),
    )


def move_horizon(namespace: str, epoch: str, before: int, after: int, unheld: int) -> Statement:
    """Move the horizon from *before* to *after*; one row if it was there, and no lease above *unheld* forbids it."""
    return Statement(
        """UPDATE heads SET horizon = %s WHERE namespace = %s AND epoch = %s AND horizon = %s
            AND (%s <= %s OR NOT EXISTS (SELECT FROM consumer_leases
                WHERE namespace = %s AND expire_time > now() AND acknowledged_revision < %s))
        RETURNING 1""",
        (after, namespace, epoch, before, after, unheld, namespace, after),
    )


def delete_units(namespace: str, after: int, to: int) -> Statement:
    """Remove the units in ``(after, to]``."""
    return Statement(
        "DELETE FROM units WHERE namespace = %s AND revision > %s AND revision <= %s", (namespace, after, to)
    )


def delete_versions(namespace: str, versions: Sequence[tuple[str, str, int]]) -> Statement:
    """Remove *versions*: (type, id, revision)."""
    return Statement(
        """DELETE FROM versions WHERE ctid = ANY(ARRAY(
            SELECT v.ctid FROM unnest(%s::text[], %s::text[], %s::int8[]) AS k (type, id, revision)
            CROSS JOIN LATERAL (SELECT ctid FROM versions
                WHERE namespace = %s AND type = k.type AND id = k.id AND revision = k.revision LIMIT 1) v))""",
        (
            packed_text(type_id for type_id, _, _ in versions),
            packed_text(entity_id for _, entity_id, _ in versions),
            packed_int8(revision for _, _, revision in versions),
            namespace,
        ),
    )
