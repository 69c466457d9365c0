"""Writes to ``system``: each decided under the lock of its head, with its rows written in the same transaction."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from services.runtime.call import Namespace as Life
from services.runtime.changelog import Change, select_versions
from services.runtime.committer import Committer, Decision, Stamp
from services.runtime.database import Row, Statement
from services.runtime.errors import Aborted, NotFound
from services.runtime.units import Receipt, Unit
from services.user import ledger_sql as sql
from services.user.model import Member, Namespace, Role, etag
from services.user.records import Key

_NEWEST = 2**62


@dataclass(frozen=True, slots=True)
class Registration:
    """What verifying a user must know of them."""

    verified: bool
    address_taken: bool


@dataclass(frozen=True, slots=True)
class SessionState:
    """What ending a session must know of it."""

    user_id: str
    ended: bool


@dataclass(slots=True)
class Facts:
    """What was read under the lock. Nobody else changes any of it until the transaction ends."""

    namespaces: dict[str, Namespace]
    members: dict[tuple[str, str], Member]
    owners: dict[str, set[str]]
    users: dict[str, Registration]
    tokens: set[bytes]
    sessions: dict[str, SessionState]
    records: dict[Key, bytes]

    def owned_namespace(self, namespace_id: str, actor: str) -> Namespace:
        """A living namespace that *actor* still owns: the check at the door was before the lock.

        Raises:
            NotFound: it is gone, or the actor is no owner any more.
        """
        namespace = self.namespaces.get(namespace_id)
        if namespace is None or namespace.deleting or actor not in self.owners[namespace_id]:
            raise NotFound("NOT_FOUND", "there is no such namespace, or you are no owner of it any more")
        return namespace


@dataclass(frozen=True, slots=True)
class Plan:
    """What one unit does: changes of records, the rows that go with them, and the answer to keep."""

    changes: Sequence[Change] = ()
    statements: Sequence[Statement] = ()
    answer: bytes = b""


@dataclass(kw_only=True, eq=False)
class SystemUnit(Unit):
    """One write to ``system``; subclasses name the facts they need and decide."""

    body_hash: bytes = b""
    exclusive: frozenset[Hashable] = frozenset()
    namespaces: Sequence[str] = field(default=(), init=False)
    members: Sequence[tuple[str, str]] = field(default=(), init=False)
    users: Sequence[str] = field(default=(), init=False)
    tokens: Sequence[bytes] = field(default=(), init=False)
    sessions: Sequence[str] = field(default=(), init=False)
    records: Sequence[Key] = field(default=(), init=False)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        """What this unit does; raises ``Error`` to refuse."""
        raise NotImplementedError


class SystemLedger:
    """The user service's part of a commit."""

    def reads(self, namespace: str, units: Sequence[SystemUnit]) -> Sequence[Statement]:
        """Everything that the *units* name, one statement per kind; the rest of the transaction acts for them alone."""
        namespaces = {name for unit in units for name in unit.namespaces}
        return [
            sql.act_for(namespaces),
            sql.select_namespaces(namespaces),
            sql.select_members({key for unit in units for key in unit.members}),
            sql.select_owners(namespaces),
            sql.select_users({user_id for unit in units for user_id in unit.users}),
            sql.select_tokens({token for unit in units for token in unit.tokens}),
            sql.select_sessions({session for unit in units for session in unit.sessions}),
            select_versions(namespace, list({key for unit in units for key in unit.records}), _NEWEST),
        ]

    def open_round(self, namespace: str, units: Sequence[SystemUnit], rows: Sequence[list[Row]]) -> SystemRound:
        """A round over the facts in *rows*."""
        _, namespaces, members, owner_rows, users, tokens, sessions, records = rows
        owners: dict[str, set[str]] = defaultdict(set)
        for namespace_id, user_id in owner_rows:
            owners[namespace_id].add(user_id)
        return SystemRound(
            Facts(
                namespaces={row[0]: sql.namespace_of(row) for row in namespaces},
                members={(row[0], row[1]): sql.member_of(row) for row in members},
                owners=owners,
                users={user_id: Registration(*rest) for user_id, *rest in users},
                tokens={token for (token,) in tokens},
                sessions={session_id: SessionState(*rest) for session_id, *rest in sessions},
                records={(type_id, record_id): entity for type_id, record_id, _, entity in records},
            )
        )


class SystemRound:
    """One batch. Footprints are disjoint, so no unit sees what another one of the batch will write."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._statements: dict[SystemUnit, Sequence[Statement]] = {}

    def decide(self, unit: SystemUnit, stamp: Stamp) -> Decision:
        plan = unit.decide(self._facts, stamp)
        self._statements[unit] = plan.statements
        return Decision(plan.changes, plan.answer)

    def writes(self, accepted: Sequence[tuple[SystemUnit, Stamp]]) -> Sequence[Statement]:
        return list(chain.from_iterable(self._statements[unit] for unit, _ in accepted))


class SystemLog:
    """The committer of ``system``."""

    def __init__(self, committer: Committer[SystemUnit], life: Life) -> None:
        self._committer = committer
        self._life = life

    async def commit(self, unit: SystemUnit) -> Receipt:
        """Commit *unit*; see ``Committer.commit``."""
        return await self._committer.commit(self._life, unit)


def body_hash(*parts: Any) -> bytes:
    """What makes two requests the same: their values, whatever their bytes were."""
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def check_etag(expected: str, by_header: bool, revision: int) -> None:
    """ETAG_MISMATCH unless *expected* is empty or the etag of *revision*."""
    if expected and expected != etag(revision):
        raise Aborted(
            "ETAG_MISMATCH",
            "it was changed meanwhile; read it again",
            http_status=412 if by_header else None,
            etag=etag(revision),
        )


def is_last_owner(facts: Facts, member: Member) -> bool:
    """Whether nobody would own the namespace without *member*."""
    return member.role is Role.OWNER and facts.owners[member.namespace] == {member.user_id}
