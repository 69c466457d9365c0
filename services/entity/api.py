"""``EntityService``: parse, one read or one commit, render."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from google.protobuf.message import Message
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import entity_service_pb2 as pb

from services.entity.aggregates import Aggregator
from services.entity.calls import WriteRequest, answer_with, as_of, limited, namespace_of_call, writing
from services.entity.counts import Counter
from services.entity.figures import parse_aggregates, render_aggregates
from services.entity.history import History
from services.entity.ledger import encode_answer
from services.entity.limits import Confirmations, available_writes
from services.entity.lists import Lister, Query
from services.entity.model import (
    EntityKey,
    check_entity_id,
    entity_name,
    parse_entity_name,
    parse_namespace,
    parse_type_name,
)
from services.entity.mutations import (
    Kind,
    Mutation,
    creation,
    given_expiry,
    only_operates,
    parse_mutation,
    parse_update_mask,
    replacement,
)
from services.entity.preconditions import parse_precondition
from services.entity.purge import Purger
from services.entity.purges import Purges
from services.entity.reads import Reader
from services.entity.writes import Writer, Written
from services.runtime import rpc, wire
from services.runtime.call import Call
from services.runtime.errors import Error, NotFound, Violation, invalid_field
from services.runtime.filters.paths import name_of
from services.runtime.ids import uuid7
from services.runtime.masks import masked, parse_mask
from services.runtime.wire import JsonObject

SERVICE: Final = "strandline.entity.v1.EntityService"


class EntityHandlers:
    """The handlers of ``EntityService``. Responses are put together from stored bytes wherever that is possible."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        lister: Lister,
        counter: Counter,
        aggregator: Aggregator,
        history: History,
        purger: Purger,
        purges: Purges,
        confirmations: Confirmations,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._lister = lister
        self._counter = counter
        self._aggregator = aggregator
        self._history = history
        self._purger = purger
        self._purges = purges
        self._confirmations = confirmations

    async def create_entity(self, request: pb.CreateEntityRequest, call: Call) -> bytes:
        type_id = parse_type_name(request.parent, "parent")
        entity_id = check_entity_id(request.entity_id, "entity_id") if request.entity_id else uuid7()
        key, named = EntityKey(type_id, entity_id), bool(request.entity_id)
        name = entity_name(namespace_of_call(call).id, key)
        expiry = given_expiry(request.entity, "entity")
        mutation = creation(name, key, _data(request.entity), "entity.data", named=named, expiry=expiry)
        return await self._write(request, call, "CreateEntity", mutation, located=True)

    async def update_entity(self, request: pb.UpdateEntityRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        etag, by_if_match = call.expected_etag(request.etag)
        mask = parse_update_mask(request.update_mask, "update_mask")
        operates = only_operates(request, request.entity.HasField("data"))
        mutation = replacement(
            request.entity.name,
            parse_entity_name(request.entity.name, namespace.id, "entity.name"),
            _data(request.entity) if mask.takes_content and not operates else {},
            "entity.data",
            mask=mask.paths,
            etag=etag or request.entity.etag,
            by_if_match=by_if_match,
            allow_missing=request.allow_missing,
            operations=request.operations,
            expiry=given_expiry(request.entity, "entity", masked=mask.takes_expiry),
        )
        return await self._write(
            request, call, "UpdateEntity", mutation, confirm_operation_id=request.confirm_operation_id
        )

    async def delete_entity(self, request: pb.DeleteEntityRequest, call: Call) -> bytes:
        etag, by_if_match = call.expected_etag(request.etag)
        key = parse_entity_name(request.name, namespace_of_call(call).id, "name")
        mutation = Mutation(
            Kind.DELETE,
            request.name,
            key,
            "name",
            etag=etag,
            by_if_match=by_if_match,
            allow_missing=request.allow_missing,
        )
        return await self._write(
            request, call, "DeleteEntity", mutation, confirm_operation_id=request.confirm_operation_id
        )

    async def undelete_entity(self, request: pb.UndeleteEntityRequest, call: Call) -> bytes:
        etag, by_if_match = call.expected_etag(request.etag)
        key = parse_entity_name(request.name, namespace_of_call(call).id, "name")
        mutation = Mutation(Kind.UNDELETE, request.name, key, "name", etag=etag, by_if_match=by_if_match)
        return await self._write(request, call, "UndeleteEntity", mutation)

    async def purge_entity(self, request: pb.PurgeEntityRequest, call: Call) -> pb.PurgeEntityResponse:
        etag, by_if_match = call.expected_etag(request.etag)
        key = parse_entity_name(request.name, namespace_of_call(call).id, "name")
        limits = limited(writing(request, call, "PurgeEntity"), self._confirmations, request.confirm_operation_id)
        receipt = await self._purges.purge(limits, request.name, key, etag, by_if_match)
        call.position(receipt.revision, receipt.epoch)
        return pb.PurgeEntityResponse(name=request.name, revision=receipt.revision, epoch=receipt.epoch)

    async def transact(self, request: pb.TransactRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        mutations = [
            parse_mutation(message, namespace.id, f"mutations[{place}]")
            for place, message in enumerate(request.mutations)
        ]
        if len({mutation.key for mutation in mutations}) < len(mutations):
            raise invalid_field("mutations", "an entity is named twice")
        preconditions = [
            parse_precondition(message, namespace.id, f"preconditions[{place}]")
            for place, message in enumerate(request.preconditions)
        ]
        if not mutations and not preconditions:
            raise invalid_field("mutations", "there are neither mutations nor preconditions")
        limits = limited(writing(request, call, "Transact"), self._confirmations, request.confirm_operation_id)
        written = await self._writer.transact(limits, mutations, preconditions, indexed=True)
        call.position(written.revision, namespace.epoch)
        return encode_answer(written.outcomes) + wire.integer(2, written.revision) + wire.text(3, namespace.epoch)

    async def batch_write(self, request: pb.BatchWriteRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        mutations = [
            _parsed_or_refused(message, namespace.id, f"writes[{place}]")
            for place, message in enumerate(request.writes)
        ]
        limits = limited(writing(request, call, "BatchWrite"), self._confirmations, request.confirm_operation_id)
        outcomes = await self._writer.batch(limits, mutations)
        revision = max((item.revision for item in outcomes if isinstance(item, Written)), default=0)
        if not revision:
            revision = (await self._reader.head(namespace)).revision
        call.position(revision, namespace.epoch)
        results = b"".join(
            wire.delimited(1, _batch_result(message, outcome))
            for message, outcome in zip(request.writes, outcomes, strict=True)
        )
        return results + wire.integer(2, revision) + wire.text(3, namespace.epoch)

    async def get_entity(self, request: pb.GetEntityRequest, call: Call) -> bytes:
        namespace = namespace_of_call(call)
        key = parse_entity_name(request.name, namespace.id, "name")
        mask = parse_mask(request.read_mask, "read_mask")
        minimum = call.min_revision(request.min_revision)
        if (moment := as_of(request)) is not None:
            head, message = await self._history.get(namespace, key, moment, minimum)
        else:
            head, message = await self._reader.get(namespace, key)
            minimum.check(head.revision, head.epoch)
        if message is None:
            raise NotFound("NOT_FOUND", f"there is no {request.name}", name=request.name)
        return answer_with(call, masked(message, mask), head.revision, head.epoch)

    async def batch_get_entities(self, request: pb.BatchGetEntitiesRequest, call: Call) -> bytes:
        type_id = parse_type_name(request.parent, "parent")
        ids = [check_entity_id(entity_id, f"ids[{place}]") for place, entity_id in enumerate(request.ids)]
        mask = parse_mask(request.read_mask, "read_mask")
        minimum = call.min_revision(request.min_revision)
        ids = list(dict.fromkeys(ids))
        if (moment := as_of(request)) is not None:
            read = await self._history.batch(namespace_of_call(call), type_id, ids, moment, minimum)
        else:
            read = await self._reader.batch(namespace_of_call(call), type_id, ids)
            minimum.check(read.head.revision, read.head.epoch)
        head = read.head
        call.position(head.revision, head.epoch)
        found, missing, unread = [], [], []
        for entity_id in ids:
            if entity_id not in read.messages:
                missing.append(wire.text(2, entity_id))
            elif (message := read.messages[entity_id]) is None:
                unread.append(wire.text(3, entity_id))
            else:
                found.append(wire.delimited(1, masked(message, mask)))
        return b"".join((*found, *missing, *unread)) + wire.integer(4, head.revision) + wire.text(5, head.epoch)

    async def list_entities(self, request: pb.ListEntitiesRequest, call: Call) -> bytes:
        query = Query(
            parse_type_name(request.parent, "parent"),
            request.filter,
            request.order_by,
            request.page_size,
            request.page_token,
            request.show_deleted,
            request.search,
        )
        mask = parse_mask(request.read_mask, "read_mask")
        minimum = call.min_revision(request.min_revision)
        if (moment := as_of(request)) is not None:
            page = await self._history.page(namespace_of_call(call), query, moment, minimum)
        else:
            page = await self._lister.page(namespace_of_call(call), query, minimum)
        call.position(page.head.revision, page.head.epoch)
        entities = [masked(message, mask) for message in page.messages] if mask else page.messages
        return (
            b"".join([b"\x0a%b%b" % (wire.varint(len(entity)), entity) for entity in entities])
            + wire.text(2, page.next_page_token)
            + wire.integer(3, page.head.revision)
            + wire.text(4, page.head.epoch)
        )

    async def get_usage(self, request: pb.GetUsageRequest, call: Call) -> pb.GetUsageResponse:
        namespace = namespace_of_call(call)
        if request.name != (name := f"namespaces/{namespace.id}/usage"):
            raise invalid_field("name", "must be namespaces/{namespace}/usage")
        head, rows, budget = await self._reader.usage(namespace, call.min_revision(request.min_revision))
        call.position(head.revision, head.epoch)
        quota = namespace.quota
        usage = pb.Usage(
            name=name,
            max_entities=quota.max_entities,
            max_bytes=quota.max_bytes,
            max_writes_per_second=quota.max_writes_per_second,
        )
        for type_id, entities, size in rows:
            if type_id:
                usage.types.add(type=type_id, entities=entities, bytes=size)
            else:
                usage.entities, usage.bytes = entities, size
        if quota.max_writes_per_second:
            usage.available_writes = int(available_writes(quota, budget, datetime.now(UTC)))
        return pb.GetUsageResponse(usage=usage, revision=head.revision, epoch=head.epoch)

    async def count_entities(self, request: pb.CountEntitiesRequest, call: Call) -> pb.CountEntitiesResponse:
        type_id, minimum = parse_type_name(request.parent, "parent"), call.min_revision(request.min_revision)
        namespace = namespace_of_call(call)
        counted = await self._counter.count(
            namespace, type_id, request.filter, minimum, show_deleted=request.show_deleted
        )
        call.position(counted.head.revision, counted.head.epoch)
        return pb.CountEntitiesResponse(
            count=counted.count,
            at_least=counted.at_least,
            revision=counted.head.revision,
            epoch=counted.head.epoch,
        )

    async def aggregate_entities(
        self, request: pb.AggregateEntitiesRequest, call: Call
    ) -> pb.AggregateEntitiesResponse:
        minimum = call.min_revision(request.min_revision)
        asked = parse_aggregates(request)
        found = await self._aggregator.aggregate(namespace_of_call(call), asked, minimum)
        call.position(found.head.revision, found.head.epoch)
        return render_aggregates(found)

    async def purge_namespace(self, request: pb.PurgeNamespaceRequest, call: Call) -> pb.PurgeNamespaceResponse:
        namespace_id = parse_namespace(f"namespaces/{request.namespace_id}", "namespace_id")
        return pb.PurgeNamespaceResponse(done=await self._purger.purge(namespace_id, request.epoch))

    async def _write(
        self,
        request: WriteRequest,
        call: Call,
        method: str,
        mutation: Mutation,
        *,
        located: bool = False,
        confirm_operation_id: str = "",
    ) -> bytes:
        namespace = namespace_of_call(call)
        limits = limited(writing(request, call, method), self._confirmations, confirm_operation_id)
        revision, outcome = await self._writer.write_one(limits, mutation)
        if located:
            call.response_headers["location"] = f"/v1/{outcome.name}"
        return answer_with(call, outcome.message, revision, namespace.epoch)


def _data(entity: entity_pb2.Entity) -> JsonObject:
    if not entity.HasField("data"):
        raise invalid_field("entity.data", "is required")
    return wire.decode_struct(entity.data, "entity.data")


def _parsed_or_refused(message: entity_pb2.Mutation, namespace: str, field: str) -> Mutation | Error:
    try:
        return parse_mutation(message, namespace, field)
    except Error as failure:
        return failure


def _batch_result(message: entity_pb2.Mutation, outcome: Written | BaseException) -> bytes:
    """``BatchWriteResponse.Result``: of a failed write, with the name as it was given."""
    if isinstance(outcome, Written):
        (left,) = outcome.outcomes
        return (
            wire.delimited(1, b"")
            + wire.text(2, left.name)
            + wire.integer(3, left.revision)
            + wire.integer(4, left.made)
        )
    if not isinstance(outcome, Exception):
        raise outcome
    if isinstance(outcome, Error):
        outcome.violations = tuple(map(_by_name, outcome.violations))
    status: Message = rpc.status_of(outcome, "BatchWrite")
    operation = message.WhichOneof("operation")
    name = getattr(message, operation).name if operation is not None else ""
    return wire.delimited(1, status.SerializeToString()) + wire.text(2, name)


def _by_name(violation: Violation) -> Violation:
    """*violation* with its pointer as a name: the edge gives pointers a field of their own only outside of results."""
    return Violation(name_of(violation.pointer), violation.message) if violation.pointer else violation
