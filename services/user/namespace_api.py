"""Handlers of ``NamespaceService``."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import TypeVar

from strandline.user.v1 import namespace_service_pb2 as pb
from strandline.user.v1 import user_pb2

from services.runtime.call import Call, Quota
from services.runtime.changelog import head_of
from services.runtime.database import Database, Row, Statement
from services.runtime.errors import InvalidArgument, NotFound, PermissionDenied, Violation, invalid_field
from services.runtime.page_tokens import binding_of, open_token, page_size, seal
from services.runtime.units import Receipt
from services.user import ledger_sql as sql
from services.user.deletions import Deletions
from services.user.ledger import SystemLog
from services.user.member_writes import CreateMember, DeleteMember, UpdateMember
from services.user.model import (
    SYSTEM,
    Role,
    check_member_name,
    check_namespace_id,
    check_namespace_name,
    check_quota_name,
    check_user_id,
)
from services.user.namespace_writes import CreateNamespace, DeleteNamespace, UpdateNamespace, UpdateQuota
from services.user.render import member_message, namespace_message

_NAMESPACE_FIELDS = {"displayName": "display_name", "massChangeGuard": "mass_change_guard"}

T = TypeVar("T")


class NamespaceHandlers:
    """Tenants and who belongs to them."""

    def __init__(self, database: Database, system: SystemLog, deletions: Deletions, page_key: bytes) -> None:
        self._database = database
        self._system = system
        self._deletions = deletions
        self._page_key = page_key

    async def create_namespace(self, request: pb.CreateNamespaceRequest, call: Call) -> pb.CreateNamespaceResponse:
        check_namespace_id(request.namespace_id)
        receipt = await self._system.commit(
            CreateNamespace(
                actor=call.actor,
                method="CreateNamespace",
                request_id=call.request_id(request.request_id),
                validate_only=request.validate_only,
                namespace_id=request.namespace_id,
                epoch=secrets.token_hex(4),
                display_name=request.namespace.display_name,
                mass_change_guard=request.namespace.mass_change_guard != user_pb2.Namespace.OFF,
            )
        )
        namespace = _namespace(receipt, call)
        call.response_headers["location"] = f"/v1/{namespace.name}"
        return pb.CreateNamespaceResponse(namespace=namespace, revision=receipt.revision, epoch=receipt.epoch)

    async def get_namespace(self, request: pb.GetNamespaceRequest, call: Call) -> pb.GetNamespaceResponse:
        namespace_id = check_namespace_name(request.name, "name")
        rows = await self._read(call, sql.act_for([namespace_id]), sql.select_namespaces([namespace_id]))
        if not rows:
            raise NotFound("NOT_FOUND", "there is no such namespace, or you are not a member of it")
        return pb.GetNamespaceResponse(namespace=namespace_message(sql.namespace_of(rows[0])))

    async def list_namespaces(self, request: pb.ListNamespacesRequest, call: Call) -> pb.ListNamespacesResponse:
        binding = binding_of("namespaces", call.actor)
        after, size = self._page(request.page_token, binding, request.page_size)
        listing = sql.list_namespaces(call.actor, after, size + 1)
        rows = await self._read(call, sql.act_for(user_id=call.actor), listing)
        namespaces = [sql.namespace_of(row) for row in rows]
        page, token = self._cut(namespaces, size, binding, [namespace.id for namespace in namespaces])
        return pb.ListNamespacesResponse(namespaces=map(namespace_message, page), next_page_token=token)

    async def update_namespace(self, request: pb.UpdateNamespaceRequest, call: Call) -> pb.UpdateNamespaceResponse:
        wanted = request.namespace
        fields = _masked_fields(request.update_mask, wanted)
        etag, by_header = call.expected_etag(request.etag, wanted.etag)
        receipt = await self._system.commit(
            UpdateNamespace(
                actor=call.actor,
                method="UpdateNamespace",
                request_id=call.request_id(request.request_id),
                validate_only=request.validate_only,
                namespace_id=check_namespace_name(wanted.name, "namespace.name"),
                display_name=wanted.display_name if "display_name" in fields else None,
                mass_change_guard=wanted.mass_change_guard != wanted.OFF if "mass_change_guard" in fields else None,
                etag=etag,
                etag_by_header=by_header,
            )
        )
        return pb.UpdateNamespaceResponse(
            namespace=_namespace(receipt, call), revision=receipt.revision, epoch=receipt.epoch
        )

    async def update_quota(self, request: pb.UpdateQuotaRequest, call: Call) -> pb.UpdateQuotaResponse:
        if call.principal is None or not call.principal.is_administrator:
            raise PermissionDenied("ROLE_INSUFFICIENT", "only an administrator of the platform sets quotas")
        wanted = request.quota
        receipt = await self._system.commit(
            UpdateQuota(
                actor=call.actor,
                method="UpdateQuota",
                request_id=call.request_id(request.request_id),
                validate_only=request.validate_only,
                namespace_id=check_quota_name(wanted.name, "quota.name"),
                quota=Quota(wanted.max_entities, wanted.max_bytes, wanted.max_writes_per_second),
            )
        )
        quota = _namespace(receipt, call).quota
        return pb.UpdateQuotaResponse(quota=quota, revision=receipt.revision, epoch=receipt.epoch)

    async def delete_namespace(self, request: pb.DeleteNamespaceRequest, call: Call) -> pb.DeleteNamespaceResponse:
        etag, by_header = call.expected_etag(request.etag)
        receipt = await self._system.commit(
            DeleteNamespace(
                actor=call.actor,
                method="DeleteNamespace",
                request_id=call.request_id(request.request_id),
                validate_only=request.validate_only,
                namespace_id=check_namespace_name(request.name, "name"),
                etag=etag,
                etag_by_header=by_header,
            )
        )
        self._deletions.wake()
        return pb.DeleteNamespaceResponse(
            namespace=_namespace(receipt, call), revision=receipt.revision, epoch=receipt.epoch
        )

    async def create_member(self, request: pb.CreateMemberRequest, call: Call) -> pb.CreateMemberResponse:
        receipt = await self._system.commit(
            CreateMember(
                actor=call.actor,
                method="CreateMember",
                request_id=call.request_id(request.request_id),
                validate_only=request.validate_only,
                namespace_id=check_namespace_name(request.parent, "parent"),
                user_id=check_user_id(request.member.user_id, "member.user_id"),
                role=_role(request.member),
            )
        )
        member = _member(receipt, call)
        call.response_headers["location"] = f"/v1/{member.name}"
        return pb.CreateMemberResponse(member=member, revision=receipt.revision, epoch=receipt.epoch)

    async def list_members(self, request: pb.ListMembersRequest, call: Call) -> pb.ListMembersResponse:
        namespace_id = check_namespace_name(request.parent, "parent")
        binding = binding_of("members", namespace_id, call.allowed_namespace().epoch)
        after, size = self._page(request.page_token, binding, request.page_size)
        rows = await self._read(call, sql.act_for([namespace_id]), sql.list_members(namespace_id, after, size + 1))
        members = [sql.member_of(row) for row in rows]
        page, token = self._cut(members, size, binding, [member.user_id for member in members])
        return pb.ListMembersResponse(members=map(member_message, page), next_page_token=token)

    async def update_member(self, request: pb.UpdateMemberRequest, call: Call) -> pb.UpdateMemberResponse:
        if unknown := set(request.update_mask) - {"role", "*"}:
            raise invalid_field("update_mask", f"names {min(unknown)!r}; only role can be changed")
        namespace_id, user_id = check_member_name(request.member.name, "member.name")
        etag, by_header = call.expected_etag(request.etag, request.member.etag)
        receipt = await self._system.commit(
            UpdateMember(
                actor=call.actor,
                method="UpdateMember",
                request_id=call.request_id(request.request_id),
                validate_only=request.validate_only,
                namespace_id=namespace_id,
                user_id=user_id,
                role=_role(request.member),
                etag=etag,
                etag_by_header=by_header,
            )
        )
        return pb.UpdateMemberResponse(member=_member(receipt, call), revision=receipt.revision, epoch=receipt.epoch)

    async def delete_member(self, request: pb.DeleteMemberRequest, call: Call) -> pb.DeleteMemberResponse:
        namespace_id, user_id = check_member_name(request.name, "name")
        etag, by_header = call.expected_etag(request.etag)
        receipt = await self._system.commit(
            DeleteMember(
                actor=call.actor,
                method="DeleteMember",
                request_id=call.request_id(request.request_id),
                validate_only=request.validate_only,
                namespace_id=namespace_id,
                user_id=user_id,
                etag=etag,
                etag_by_header=by_header,
            )
        )
        return pb.DeleteMemberResponse(member=_member(receipt, call), revision=receipt.revision, epoch=receipt.epoch)

    async def _read(self, call: Call, act_for: Statement, statement: Statement) -> list[Row]:
        """Rows of *statement* and the position of `system`, from one snapshot that is not older than demanded."""
        _, head_rows, rows = await self._database.read(SYSTEM, act_for, sql.HEAD, statement)
        head = head_of(SYSTEM, head_rows, "")
        call.min_revision(0).check(head.revision, head.epoch)
        call.position(head.revision, head.epoch)
        return rows

    def _page(self, token: str, binding: bytes, size: int) -> tuple[str, int]:
        after = open_token(self._page_key, binding, token).decode() if token else ""
        return after, page_size(size)

    def _cut(self, found: Sequence[T], size: int, binding: bytes, ids: Sequence[str]) -> tuple[Sequence[T], str]:
        """A page of at most *size*, and the token of the next one if *found* holds more."""
        if len(found) <= size:
            return found, ""
        return found[:size], seal(self._page_key, binding, ids[size - 1].encode())


def _namespace(receipt: Receipt, call: Call) -> user_pb2.Namespace:
    call.position(receipt.revision, receipt.epoch)
    return user_pb2.Namespace.FromString(receipt.answer)


def _member(receipt: Receipt, call: Call) -> user_pb2.Member:
    call.position(receipt.revision, receipt.epoch)
    return user_pb2.Member.FromString(receipt.answer)


def _role(member: user_pb2.Member) -> Role:
    try:
        return Role(member.role)
    except ValueError:
        raise invalid_field("member.role", "must be VIEWER, EDITOR or OWNER") from None


def _masked_fields(mask: Iterable[str], wanted: user_pb2.Namespace) -> set[str]:
    """The fields to change: those in *mask*, or, without one, those that are set."""
    named = {_NAMESPACE_FIELDS.get(path, path) for path in mask}
    known = set(_NAMESPACE_FIELDS.values())
    if not named:
        return {name for name in known if getattr(wanted, name)}
    if unknown := named - known - {"*"}:
        violations = [Violation("update_mask", f"{path!r} cannot be changed") for path in sorted(unknown)]
        raise InvalidArgument("INVALID_FIELD", f"update_mask: {violations[0].message}", violations=violations)
    return known if "*" in named else named
