"""SQL inside the committer's transaction: what deciding needs, and what is written once it was decided.

Also the reads of namespaces and members, which share one snapshot with the head of ``system``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from services.runtime.call import Quota
from services.runtime.changelog import select_head
from services.runtime.database import Row, Statement, packed_text
from services.user.model import SYSTEM, EndReason, Member, Namespace, Role

HEAD = select_head(SYSTEM)
NOBODY = "00000000-0000-0000-0000-000000000000"
"""The least uuid, and no user's."""


def namespace_of(row: Row) -> Namespace:
    """A row of a statement that reads namespaces."""
    return Namespace(*row[:8], Quota(*row[8:]))  # type: ignore[call-arg]  # mypy lets the first star fill everything


def member_of(row: Row) -> Member:
    """A row of a statement that reads members."""
    namespace, user_id, role, *rest = row
    return Member(namespace, user_id, Role(role), *rest)


def act_for(namespaces: Collection[str] = (), user_id: str = "") -> Statement:
    """Whom the rest of the transaction acts for, as row-level security is told; must come before what it is for.

    It may read and write *namespaces* and their members, and read what *user_id* is a member of.
    """
    return Statement(
        "SELECT set_config('app.tenants', %s::text[]::text, true), set_config('app.user', %s, true)",
        (packed_text(namespaces), user_id),
    )


# What is read


def select_namespaces(ids: Collection[str]) -> Statement:
    """Those that exist, in any state."""
    return Statement(
        """SELECT n.id, n.epoch, n.display_name, n.mass_change_guard, n.deleting, n.revision, n.create_time,
            n.update_time, n.max_entities, n.max_bytes, n.max_writes_per_second
        FROM namespaces n WHERE id = ANY(%s)""",
        (packed_text(ids),),
    )


def select_members(keys: Collection[tuple[str, str]]) -> Statement:
    """The members (namespace, user) named by *keys*.

    The ids are cast before the join: behind row-level security an index is not asked for what a cast yields.
    """
    return Statement(
        """SELECT m.namespace, m.user_id::text, m.role, m.revision, m.create_time, m.update_time
        FROM unnest(%s::text[], %s::uuid[]) AS k (namespace, user_id)
        JOIN members m ON m.namespace = k.namespace AND m.user_id = k.user_id""",
        (packed_text(namespace for namespace, _ in keys), packed_text(user_id for _, user_id in keys)),
    )


def select_owners(namespaces: Collection[str]) -> Statement:
    """Rows (namespace, user) of every owner."""
    return Statement(
        "SELECT namespace, user_id::text FROM members WHERE namespace = ANY(%s) AND role = %s",
        (packed_text(namespaces), int(Role.OWNER)),
    )


def select_users(ids: Collection[str]) -> Statement:
    """Rows (id, verified, address taken by another verified user)."""
    return Statement(
        """SELECT u.id::text, u.email_verified, EXISTS (SELECT FROM users o
            WHERE o.email_index = u.email_index AND o.email_verified AND o.id <> u.id)
        FROM users u WHERE u.id = ANY(%s::uuid[])""",
        (packed_text(ids),),
    )


def select_tokens(hashes: Collection[bytes]) -> Statement:
    """Rows (hash) of the verification tokens that may still be presented."""
    return Statement(
        "SELECT token_hash FROM verifications WHERE token_hash = ANY(%s) AND expire_time > now()", (list(hashes),)
    )


def select_sessions(ids: Collection[str]) -> Statement:
    """Rows (id, user, ended)."""
    return Statement(
        "SELECT id::text, user_id::text, end_time IS NOT NULL FROM sessions WHERE id = ANY(%s::uuid[])",
        (packed_text(ids),),
    )


def list_namespaces(user_id: str, after: str, limit: int) -> Statement:
    """The living namespaces that a user is a member of, by id."""
    return Statement(
        """SELECT n.id, n.epoch, n.display_name, n.mass_change_guard, n.deleting, n.revision, n.create_time,
            n.update_time, n.max_entities, n.max_bytes, n.max_writes_per_second
        FROM members m JOIN namespaces n ON n.id = m.namespace
        WHERE m.user_id = %s::uuid AND m.namespace > %s AND NOT n.deleting ORDER BY m.namespace LIMIT %s""",
        (user_id, after, limit),
    )


def list_members(namespace: str, after: str, limit: int) -> Statement:
    """Members by user id; *after* "" is the beginning."""
    return Statement(
        # Ordered by the column, not by the text of the same name, which would sort all members for each page.
        """SELECT namespace, user_id::text, role, revision, create_time, update_time FROM members
        WHERE namespace = %s AND user_id > %s::uuid ORDER BY members.user_id LIMIT %s""",
        (namespace, after or NOBODY, limit),
    )


def select_access(namespace: str, user_id: str) -> Statement:
    """Row (namespace columns, role or NULL); none if there is no such namespace."""
    return Statement(
        """SELECT n.id, n.epoch, n.display_name, n.mass_change_guard, n.deleting, n.revision, n.create_time,
            n.update_time, n.max_entities, n.max_bytes, n.max_writes_per_second, m.role
        FROM namespaces n LEFT JOIN members m ON m.namespace = n.id AND m.user_id = %s::uuid WHERE n.id = %s""",
        (user_id, namespace),
    )


def select_living_session(session_id: str) -> Statement:
    """A row if the session may still be used."""
    return Statement(
        "SELECT 1 FROM sessions WHERE id = %s::uuid AND end_time IS NULL AND expire_time > now()", (session_id,)
    )


def select_deleting() -> Statement:
    """Rows (id, epoch) of the namespaces whose deletion is not complete."""
    return Statement("SELECT id, epoch FROM namespaces WHERE deleting ORDER BY update_time")


# What is written


def insert_namespace(namespace: Namespace) -> Statement:
    return Statement(
        """INSERT INTO namespaces (id, epoch, display_name, mass_change_guard, revision, create_time, update_time)
        VALUES (%s, %s, %s, %s, %s, %s, %s)""",
        (
            namespace.id,
            namespace.epoch,
            namespace.display_name,
            namespace.mass_change_guard,
            namespace.revision,
            namespace.create_time,
            namespace.update_time,
        ),
    )


def update_namespace(namespace: Namespace) -> Statement:
    return Statement(
        """UPDATE namespaces SET display_name = %s, mass_change_guard = %s, deleting = %s, revision = %s,
            update_time = %s, max_entities = %s, max_bytes = %s, max_writes_per_second = %s
        WHERE id = %s""",
        (
            namespace.display_name,
            namespace.mass_change_guard,
            namespace.deleting,
            namespace.revision,
            namespace.update_time,
            namespace.quota.max_entities,
            namespace.quota.max_bytes,
            namespace.quota.max_writes_per_second,
            namespace.id,
        ),
    )


def delete_namespace(namespace_id: str) -> Statement:
    return Statement("DELETE FROM namespaces WHERE id = %s", (namespace_id,))


def insert_member(member: Member) -> Statement:
    return Statement(
        """INSERT INTO members (namespace, user_id, role, revision, create_time, update_time)
        VALUES (%s, %s::uuid, %s, %s, %s, %s)""",
        (
            member.namespace,
            member.user_id,
            int(member.role),
            member.revision,
            member.create_time,
            member.update_time,
        ),
    )


def update_member(member: Member) -> Statement:
    return Statement(
        """UPDATE members SET role = %s, revision = %s, update_time = %s
        WHERE namespace = %s AND user_id = %s::uuid""",
        (int(member.role), member.revision, member.update_time, member.namespace, member.user_id),
    )


def delete_members(namespace: str, user_ids: Sequence[str]) -> Statement:
    return Statement(
        "DELETE FROM members WHERE namespace = %s AND user_id = ANY(%s::uuid[])", (namespace, packed_text(user_ids))
    )


def verify_user(user_id: str) -> Statement:
    """The address is this user's now; other registrations of it, and all its tokens, are gone."""
    return Statement(
        """WITH verified AS (UPDATE users SET email_verified = true WHERE id = %s::uuid RETURNING id, email_index),
            tokens AS (DELETE FROM verifications v USING verified WHERE v.user_id = verified.id)
        DELETE FROM users u USING verified
        WHERE u.email_index = verified.email_index AND NOT u.email_verified AND u.id <> verified.id""",
        (user_id,),
    )


def end_session(session_id: str, reason: EndReason, moment: datetime) -> Statement:
    return Statement(
        "UPDATE sessions SET end_time = %s, end_reason = %s WHERE id = %s::uuid", (moment, str(reason), session_id)
    )


def insert_audit(action: str, actor: str, namespace: str, subject: str) -> Statement:
    """A line of the audit trail. Ids only."""
    return Statement(
        "INSERT INTO audit (action, actor, namespace, subject) VALUES (%s, %s, %s, %s)",
        (action, actor, namespace, subject),
    )
