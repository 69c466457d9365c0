"""``RetentionService``: parse, choose or read, render."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from datetime import timedelta
from typing import Final

from strandline.entity.v1 import retention_service_pb2 as pb

from services.entity import retention_store
from services.entity.calls import namespace_of_call
from services.entity.retention import Retention, choose, read_retention
from services.entity.retention_store import DEFAULT_AGE, LEASE_FACTOR, MAX_AGE, MIN_AGE, Policy
from services.runtime.call import Call
from services.runtime.database import Database
from services.runtime.errors import invalid_field
from services.runtime.masks import no_commas

SERVICE: Final = "strandline.entity.v1.RetentionService"
_FIELDS: Final = frozenset({"max_age", "max_revisions"})
_IN_JSON: Final = {"maxAge": "max_age", "maxRevisions": "max_revisions"}


class RetentionHandlers:
    """The handlers of ``RetentionService``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_retention(self, request: pb.GetRetentionRequest, call: Call) -> pb.GetRetentionResponse:
        namespace = namespace_of_call(call)
        _check_name(request.name, namespace.id, "name")
        retention = await read_retention(self._database, namespace, call.min_revision(request.min_revision))
        head = retention.head
        call.position(head.revision, head.epoch)
        return pb.GetRetentionResponse(
            retention=_rendered(retention, retention.policy), revision=head.revision, epoch=head.epoch
        )

    async def update_retention(self, request: pb.UpdateRetentionRequest, call: Call) -> pb.UpdateRetentionResponse:
        namespace = namespace_of_call(call)
        _check_name(request.retention.name, namespace.id, "retention.name")
        (rows,) = await self._database.read(namespace.id, retention_store.select_policy(namespace.id))
        chosen = _chosen(request)
        policy = replace(_changed(request, chosen, retention_store.policy_of(rows)), updated_by=call.actor)
        if not request.validate_only:
            await choose(self._database, namespace, policy, chosen)
        retention = await read_retention(self._database, namespace)
        head = retention.head
        call.position(head.revision, head.epoch)
        return pb.UpdateRetentionResponse(
            retention=_rendered(retention, policy if request.validate_only else retention.policy),
            revision=head.revision,
            epoch=head.epoch,
        )


def _check_name(name: str, namespace: str, field: str) -> None:
    if name != f"namespaces/{namespace}/retention":
        raise invalid_field(field, "must be namespaces/{namespace}/retention")


def _chosen(request: pb.UpdateRetentionRequest) -> frozenset[str]:
    """The fields that *request* takes from its retention."""
    asked = frozenset(_IN_JSON.get(text, text) for text in request.update_mask) or _given(request) & _FIELDS
    if "*" in asked:
        return _FIELDS
    if unknown := asked - _FIELDS:
        text = min(unknown)
        raise invalid_field("update_mask", f"{text[:100]!r} is none of max_age, max_revisions, *{no_commas(text)}")
    return asked


def _given(request: pb.UpdateRetentionRequest) -> frozenset[str]:
    return frozenset(field.name for field, _ in request.retention.ListFields())


def _changed(request: pb.UpdateRetentionRequest, chosen: Collection[str], policy: Policy) -> Policy:
    """*policy* with what is *chosen* of the retention in *request*."""
    if "max_age" in chosen:
        max_age = request.retention.max_age.ToTimedelta() if "max_age" in _given(request) else DEFAULT_AGE
        if not MIN_AGE <= max_age <= MAX_AGE:
            raise invalid_field("retention.max_age", f"must be 24 hours to {MAX_AGE.days} days")
        if max_age % timedelta(seconds=1):
            raise invalid_field("retention.max_age", "must be whole seconds")
        policy = replace(policy, max_age=max_age)
    if "max_revisions" in chosen:
        policy = replace(policy, max_revisions=request.retention.max_revisions)
    return policy


def _rendered(retention: Retention, policy: Policy) -> pb.Retention:
    head = retention.head
    message = pb.Retention(
        name=f"namespaces/{head.namespace}/retention",
        max_revisions=policy.max_revisions,
        horizon_revision=head.horizon,
        head_revision=head.revision,
        next_horizon_revision=retention.next,
        updated_by=policy.updated_by if policy.update_time else "",
    )
    message.max_age.FromTimedelta(policy.max_age)
    message.max_lease_age.FromTimedelta(LEASE_FACTOR * policy.max_age)
    for field, moment in (
        (message.horizon_time, retention.oldest),
        (message.next_cut_time, retention.cut_time),
        (message.update_time, policy.update_time),
    ):
        if moment is not None:
            field.FromDatetime(moment)
    for lease in retention.leases:
        rendered = message.leases.add(
            name=lease.name,
            types=lease.types,
            fields=lease.fields,
            acknowledged_revision=lease.acknowledged,
            holds_back=retention.holds_back(lease),
        )
        rendered.expire_time.FromDatetime(lease.expire_time)
    return message
