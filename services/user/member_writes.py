"""Units that give, change and take away roles. A namespace always keeps one owner."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.runtime.committer import Stamp
from services.runtime.database import Statement
from services.runtime.errors import AlreadyExists, FailedPrecondition, NotFound
from services.user import ledger_sql as sql
from services.user import records
from services.user.ledger import Facts, Plan, SystemUnit, body_hash, check_etag, is_last_owner
from services.user.model import Member, Role
from services.user.render import member_message


@dataclass(kw_only=True, eq=False)
class _MemberUnit(SystemUnit):
    """A write to one membership, exclusive on the namespace: see ``namespace_writes``."""

    namespace_id: str
    user_id: str

    def __post_init__(self) -> None:
        self.exclusive = frozenset({("namespace", self.namespace_id)})
        self.namespaces = (self.namespace_id,)
        self.members = ((self.namespace_id, self.user_id),)
        self.records = (records.membership_key(self.namespace_id, self.user_id),)

    @property
    def key(self) -> records.Key:
        return records.membership_key(self.namespace_id, self.user_id)

    def held(self, facts: Facts) -> Member:
        """The member as it is; NOT_FOUND if there is none."""
        member = facts.members.get((self.namespace_id, self.user_id))
        if member is None:
            raise NotFound("NOT_FOUND", "there is no such member")
        return member

    def audited(self, action: str) -> Statement:
        return sql.insert_audit(action, self.actor, self.namespace_id, self.user_id)


@dataclass(kw_only=True, eq=False)
class CreateMember(_MemberUnit):
    """A role for a user who has none."""

    role: Role

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shared = frozenset({("user", self.user_id)})
        self.body_hash = body_hash(self.namespace_id, self.user_id, self.role)
        self.users = (self.user_id,)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        facts.owned_namespace(self.namespace_id, self.actor)
        registration = facts.users.get(self.user_id)
        if registration is None or not registration.verified:
            raise NotFound("NOT_FOUND", "there is no such user")
        if (self.namespace_id, self.user_id) in facts.members:
            raise AlreadyExists("ALREADY_EXISTS", "the user is a member already")
        moment = stamp.commit_time
        member = Member(self.namespace_id, self.user_id, self.role, stamp.revision, moment, moment)
        return Plan(
            changes=(records.created(self.key, records.membership_data(member), self.actor, stamp),),
            statements=(sql.insert_member(member), self.audited("member_created")),
            answer=member_message(member).SerializeToString(),
        )


@dataclass(kw_only=True, eq=False)
class UpdateMember(_MemberUnit):
    """Another role."""

    role: Role
    etag: str = ""
    etag_by_header: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.body_hash = body_hash(self.namespace_id, self.user_id, self.role, self.etag)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        facts.owned_namespace(self.namespace_id, self.actor)
        held = self.held(facts)
        check_etag(self.etag, self.etag_by_header, held.revision)
        if held.role is self.role:
            return Plan(answer=member_message(held).SerializeToString())
        if is_last_owner(facts, held):
            raise FailedPrecondition("LAST_OWNER", "a namespace must keep one owner: appoint another one first")
        member = replace(held, role=self.role, revision=stamp.revision, update_time=stamp.commit_time)
        data = records.membership_data(member)
        return Plan(
            changes=(records.updated(self.key, data, facts.records[self.key], self.actor, stamp),),
            statements=(sql.update_member(member), self.audited("member_updated")),
            answer=member_message(member).SerializeToString(),
        )


@dataclass(kw_only=True, eq=False)
class DeleteMember(_MemberUnit):
    """No role any more."""

    etag: str = ""
    etag_by_header: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.body_hash = body_hash(self.namespace_id, self.user_id, self.etag)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        facts.owned_namespace(self.namespace_id, self.actor)
        held = self.held(facts)
        check_etag(self.etag, self.etag_by_header, held.revision)
        if is_last_owner(facts, held):
            raise FailedPrecondition("LAST_OWNER", "a namespace must keep one owner: appoint another one first")
        return Plan(
            changes=(records.deleted(self.key, facts.records[self.key], self.actor, stamp),),
            statements=(sql.delete_members(self.namespace_id, [self.user_id]), self.audited("member_deleted")),
            answer=member_message(held).SerializeToString(),
        )
