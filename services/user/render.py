"""Values as the messages that callers see."""

from __future__ import annotations

from strandline.user.v1 import user_pb2 as pb

from services.user.model import Member, Namespace, etag


def namespace_message(namespace: Namespace) -> pb.Namespace:
    """*namespace* as its members see it."""
    message = pb.Namespace(
        name=f"namespaces/{namespace.id}",
        display_name=namespace.display_name,
        mass_change_guard=pb.Namespace.ON if namespace.mass_change_guard else pb.Namespace.OFF,
        epoch=namespace.epoch,
        state=pb.Namespace.DELETING if namespace.deleting else pb.Namespace.ACTIVE,
        etag=etag(namespace.revision),
        quota=quota_message(namespace),
    )
    message.create_time.FromDatetime(namespace.create_time)
    message.update_time.FromDatetime(namespace.update_time)
    return message


def quota_message(namespace: Namespace) -> pb.Quota:
    """What an administrator has set for *namespace*."""
    quota = namespace.quota
    return pb.Quota(
        name=f"namespaces/{namespace.id}/quota",
        max_entities=quota.max_entities,
        max_bytes=quota.max_bytes,
        max_writes_per_second=quota.max_writes_per_second,
    )


def member_message(member: Member) -> pb.Member:
    """*member* as the members of the namespace see it."""
    message = pb.Member(
        name=f"namespaces/{member.namespace}/members/{member.user_id}",
        user_id=member.user_id,
        role=pb.Member.Role.ValueType(member.role),
        etag=etag(member.revision),
    )
    message.create_time.FromDatetime(member.create_time)
    message.update_time.FromDatetime(member.update_time)
    return message
