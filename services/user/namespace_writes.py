"""Units that make, change and remove namespaces.

Each is exclusive on its namespace, members included: whether somebody is the last owner must not be decided twice at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

from services.runtime.call import Quota
from services.runtime.changelog import Change
from services.runtime.committer import Stamp
from services.runtime.errors import AlreadyExists, NotFound
from services.user import ledger_sql as sql
from services.user import records
from services.user.ledger import Facts, Plan, SystemUnit, body_hash, check_etag
from services.user.model import Member, Namespace, Role
from services.user.render import namespace_message


@dataclass(kw_only=True, eq=False)
class CreateNamespace(SystemUnit):
    """A new namespace, owned by the actor alone."""

    namespace_id: str
    epoch: str
    display_name: str
    mass_change_guard: bool

    def __post_init__(self) -> None:
        self.exclusive = frozenset({("namespace", self.namespace_id)})
        self.body_hash = body_hash(self.namespace_id, self.display_name, self.mass_change_guard)
        self.namespaces = (self.namespace_id,)
        self.records = (records.namespace_key(self.namespace_id),)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        if self.namespace_id in facts.namespaces:
            raise AlreadyExists("ALREADY_EXISTS", "the namespace id is taken")
        moment = stamp.commit_time
        namespace = Namespace(
            id=self.namespace_id,
            epoch=self.epoch,
            display_name=self.display_name,
            mass_change_guard=self.mass_change_guard,
            deleting=False,
            revision=stamp.revision,
            create_time=moment,
            update_time=moment,
        )
        owner = Member(self.namespace_id, self.actor, Role.OWNER, stamp.revision, moment, moment)
        membership = records.membership_key(owner.namespace, owner.user_id)
        return Plan(
            changes=(
                records.created(
                    records.namespace_key(namespace.id), records.namespace_data(namespace), self.actor, stamp
                ),
                records.created(membership, records.membership_data(owner), self.actor, stamp),
            ),
            statements=(
                sql.insert_namespace(namespace),
                sql.insert_member(owner),
                sql.insert_audit("namespace_created", self.actor, namespace.id, ""),
            ),
            answer=namespace_message(namespace).SerializeToString(),
        )


@dataclass(kw_only=True, eq=False)
class _ExistingNamespace(SystemUnit):
    """A change of one namespace by one of its owners."""

    namespace_id: str
    etag: str = ""
    etag_by_header: bool = False

    def __post_init__(self) -> None:
        self.exclusive = frozenset({("namespace", self.namespace_id)})
        self.namespaces = (self.namespace_id,)
        self.records = (records.namespace_key(self.namespace_id),)

    def change(self, facts: Facts, stamp: Stamp, namespace: Namespace, action: str) -> Plan:
        """The plan that makes *namespace* what it is from *stamp* on."""
        changed = replace(namespace, revision=stamp.revision, update_time=stamp.commit_time)
        key = records.namespace_key(self.namespace_id)
        data = records.namespace_data(changed)
        return Plan(
            changes=(records.updated(key, data, facts.records[key], self.actor, stamp),),
            statements=(
                sql.update_namespace(changed),
                sql.insert_audit(action, self.actor, self.namespace_id, ""),
            ),
            answer=namespace_message(changed).SerializeToString(),
        )


@dataclass(kw_only=True, eq=False)
class UpdateNamespace(_ExistingNamespace):
    """New values for some fields; None leaves a field alone."""

    display_name: str | None
    mass_change_guard: bool | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.body_hash = body_hash(self.namespace_id, self.display_name, self.mass_change_guard, self.etag)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        held = facts.owned_namespace(self.namespace_id, self.actor)
        check_etag(self.etag, self.etag_by_header, held.revision)
        wanted = replace(
            held,
            display_name=held.display_name if self.display_name is None else self.display_name,
            mass_change_guard=held.mass_change_guard if self.mass_change_guard is None else self.mass_change_guard,
        )
        if wanted == held:
            return Plan(answer=namespace_message(held).SerializeToString())
        return self.change(facts, stamp, wanted, "namespace_updated")


@dataclass(kw_only=True, eq=False)
class UpdateQuota(_ExistingNamespace):
    """New limits, set by an administrator of the platform, who need not be a member."""

    quota: Quota

    def __post_init__(self) -> None:
        super().__post_init__()
        self.body_hash = body_hash(self.namespace_id, astuple(self.quota))

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        held = facts.namespaces.get(self.namespace_id)
        if held is None or held.deleting:
            raise NotFound("NOT_FOUND", "there is no such namespace")
        if self.quota == held.quota:
            return Plan(answer=namespace_message(held).SerializeToString())
        return self.change(facts, stamp, replace(held, quota=self.quota), "quota_updated")


@dataclass(kw_only=True, eq=False)
class DeleteNamespace(_ExistingNamespace):
    """The beginning of the end: NOT_FOUND from now on; ``deletions`` does the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.body_hash = body_hash(self.namespace_id, self.etag)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        held = facts.owned_namespace(self.namespace_id, self.actor)
        check_etag(self.etag, self.etag_by_header, held.revision)
        return self.change(facts, stamp, replace(held, deleting=True), "namespace_deleted")


@dataclass(kw_only=True, eq=False)
class _DyingNamespace(SystemUnit):
    """A step of a deletion. It does nothing if another process was faster, or the id has begun another life."""

    namespace_id: str
    epoch: str

    def __post_init__(self) -> None:
        self.exclusive = frozenset({("namespace", self.namespace_id)})
        self.namespaces = (self.namespace_id,)

    def is_dying(self, facts: Facts) -> bool:
        namespace = facts.namespaces.get(self.namespace_id)
        return namespace is not None and namespace.deleting and namespace.epoch == self.epoch


@dataclass(kw_only=True, eq=False)
class RemoveMembers(_DyingNamespace):
    """Take away the roles of some members; at most 500 at once, so that the unit stays small."""

    user_ids: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.members = [(self.namespace_id, user_id) for user_id in self.user_ids]
        self.records = [records.membership_key(self.namespace_id, user_id) for user_id in self.user_ids]

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        if not self.is_dying(facts):
            return Plan()
        left = [user_id for user_id in self.user_ids if (self.namespace_id, user_id) in facts.members]
        return Plan(
            changes=[self._removal(facts, user_id, stamp) for user_id in left],
            statements=(sql.delete_members(self.namespace_id, left),),
        )

    def _removal(self, facts: Facts, user_id: str, stamp: Stamp) -> Change:
        key = records.membership_key(self.namespace_id, user_id)
        return records.deleted(key, facts.records[key], self.actor, stamp)


@dataclass(kw_only=True, eq=False)
class FinishDeletion(_DyingNamespace):
    """Nothing is left of the namespace; its id is free for another life."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.records = (records.namespace_key(self.namespace_id),)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        if not self.is_dying(facts):
            return Plan()
        key = records.namespace_key(self.namespace_id)
        return Plan(
            changes=(records.deleted(key, facts.records[key], self.actor, stamp),),
            statements=(
                sql.delete_namespace(self.namespace_id),
                sql.insert_audit("namespace_removed", self.actor, self.namespace_id, ""),
            ),
        )
