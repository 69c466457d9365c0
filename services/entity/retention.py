"""How far back the log of a namespace goes, who chose that, and who holds it back.

A unit may go when it is older than the policy's age, or when there are more revisions than the policy wants and it is
older than 24 hours. A lease keeps what its consumer has not acknowledged, but nothing that is older than twice the age.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from services.entity import retention_store as store
from services.entity.reads import current_head
from services.entity.retention_store import LEASE_FACTOR, MIN_AGE, Lease, Policy
from services.runtime import changelog
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head, select_revision_at
from services.runtime.database import Database, Row, Statement, pipeline
from services.runtime.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of one log, and what may go.

    ``oldest`` is when the oldest unit that is left was committed. ``due`` is the horizon that the policy asks for now,
    ``unheld`` the highest one that no lease can prevent, ``next`` what follows from both and the leases.
    ``cut_time`` is when the oldest unit may go.
    """

    head: Head
    policy: Policy
    leases: Sequence[Lease]
    oldest: datetime | None
    due: int
    unheld: int
    next: int
    cut_time: datetime | None

    def holds_back(self, lease: Lease) -> bool:
        """Whether more could go if *lease* had been told more."""
        return lease.acknowledged < self.due and self.unheld < self.due


async def read_retention(database: Database, namespace: Namespace, minimum: MinRevision | None = None) -> Retention:
    """The retention of *namespace*, as of now."""
    head_rows, policy_rows, lease_rows, moment_rows = await database.read(
        namespace.id,
        changelog.select_head(namespace.id),
        store.select_policy(namespace.id),
        store.select_leases(namespace.id),
        store.select_now_and_oldest(namespace.id),
    )
    head = current_head(namespace, head_rows, minimum)
    policy = store.policy_of(policy_rows)
    leases = [Lease(*row) for row in lease_rows]
    now, oldest = moment_rows[0]
    if oldest is None:
        return Retention(head, policy, leases, None, head.horizon, head.horizon, head.horizon, None)
    by_age, any_age, unheld = await database.read(
        namespace.id,
        select_revision_at(namespace.id, now - policy.max_age),
        select_revision_at(namespace.id, now - MIN_AGE),
        select_revision_at(namespace.id, now - LEASE_FACTOR * policy.max_age),
    )
    too_many = head.revision - policy.max_revisions if policy.max_revisions else 0
    due = max(head.horizon, min(max(_revision(by_age), too_many), _revision(any_age)))
    bound = max(head.horizon, _revision(unheld))
    needed = leases[0].acknowledged if leases else due
    next_ = max(head.horizon, min(due, max(needed, bound)))
    if leases and needed <= head.horizon:
        cut_time = oldest + LEASE_FACTOR * policy.max_age
    else:
        cut_time = oldest + (MIN_AGE if too_many > head.horizon else policy.max_age)
    return Retention(head, policy, leases, oldest, due, bound, next_, cut_time)


def _revision(rows: Sequence[Row]) -> int:
    return int(rows[0][0]) if rows else 0


async def in_life(
    database: Database,
    namespace: Namespace,
    *statements: Statement,
    check: Callable[[Head, Sequence[list[Row]]], None] = lambda head, rows: None,
) -> None:
    """Do *statements* in one transaction under the lock of this life of *namespace*.

    *check* sees the head and the rows of *statements* before they are committed, and raises to refuse.

    Raises:
        Unavailable: another life is being removed, or this one.
    """
    async with database.connection() as connection:
        try:
            _, _, _, head_rows, *rows = await pipeline(
                connection,
                Statement("BEGIN"),
                Statement("SELECT set_config('app.namespace', %s, true)", (namespace.id,)),
                changelog.begin_life(namespace.id, namespace.epoch),
                changelog.select_head(namespace.id),
                *statements,
            )
            if not head_rows:
                raise Unavailable("OVERLOADED", "this life of the namespace is over")
            check(current_head(namespace, head_rows), rows)
            await connection.commit()
        finally:
            if not connection.closed:
                await connection.rollback()


async def choose(database: Database, namespace: Namespace, policy: Policy, chosen: Collection[str]) -> None:
    """Let what is *chosen* of *policy* hold from now on; the next step of a cut goes by it."""
    await in_life(database, namespace, store.put_policy(namespace.id, policy, chosen))
