"""``SubscriptionService``: parse, one step, render."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from copy import deepcopy
from datetime import timedelta
from typing import Final

import orjson
from strandline.stream.v1 import subscription_pb2
from strandline.stream.v1 import subscription_service_pb2 as pb

from services.runtime.call import Call, Namespace
from services.runtime.errors import invalid_field
from services.runtime.page_tokens import binding_of, open_token, page_size, seal
from services.runtime.rpc import breaking_off
from services.stream.checkpoint import MAX_PARKED, Parked
from services.stream.definitions import MAX_ACK_DEADLINE, MIN_ACK_DEADLINE, duration, fields_of
from services.stream.deliveries import Deliveries
from services.stream.parked_changes import ParkedChanges
from services.stream.pulls import Pulls
from services.stream.request_store import RequestId
from services.stream.subscription_names import name_of, named, note
from services.stream.subscription_store import COMPACTED
from services.stream.subscriptions import MAX_SUBSCRIPTIONS, Status, Subscriptions, etag_of
from services.stream.webhooks import describe

SERVICE: Final = "strandline.stream.v1.SubscriptionService"
MAX_MESSAGES: Final = 100
MAX_WAIT: Final = timedelta(seconds=10)
State = subscription_pb2.Subscription


class SubscriptionHandlers:
    """The handlers of ``SubscriptionService``."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        parked: ParkedChanges,
        deliveries: Deliveries,
        pulls: Pulls,
        token_key: bytes,
    ) -> None:
        self._subscriptions = subscriptions
        self._parked = parked
        self._deliveries = deliveries
        self._pulls = pulls
        self._token_key = token_key

    async def create_subscription(
        self, request: pb.CreateSubscriptionRequest, call: Call
    ) -> pb.CreateSubscriptionResponse:
        namespace, id, rehearsed = _parent(request.parent, call), request.subscription_id, request.validate_only
        status = await self._subscriptions.create(
            namespace, id, request.subscription, _request_id(request, call), validate_only=rehearsed
        )
        if not rehearsed:
            call.response_headers["location"] = f"/v1/{name_of(namespace, id)}"
            self._managed(namespace, id, "made", call)
        return pb.CreateSubscriptionResponse(subscription=_rendered(namespace, status, is_made=not rehearsed))

    async def get_subscription(self, request: pb.GetSubscriptionRequest, call: Call) -> pb.GetSubscriptionResponse:
        namespace, id = named(request.name, call)
        status = await self._subscriptions.get(namespace, id)
        return pb.GetSubscriptionResponse(subscription=_rendered(namespace, status))

    async def list_subscriptions(
        self, request: pb.ListSubscriptionsRequest, call: Call
    ) -> pb.ListSubscriptionsResponse:
        namespace = _parent(request.parent, call)
        binding = binding_of("subscriptions", namespace.id, namespace.epoch)
        after = open_token(self._token_key, binding, request.page_token).decode() if request.page_token else ""
        size = min(page_size(request.page_size), MAX_SUBSCRIPTIONS)
        statuses, end = await self._subscriptions.list(namespace, after, size)
        return pb.ListSubscriptionsResponse(
            subscriptions=[_rendered(namespace, status) for status in statuses],
            next_page_token=seal(self._token_key, binding, end.encode()) if end else "",
        )

    async def update_subscription(
        self, request: pb.UpdateSubscriptionRequest, call: Call
    ) -> pb.UpdateSubscriptionResponse:
        namespace, id = named(request.subscription.name, call, "subscription.name")
        asked, rehearsed = request.subscription, request.validate_only
        fields = fields_of(request.update_mask, asked)
        etag, _ = call.expected_etag(asked.etag)
        status = await self._subscriptions.update(
            namespace, id, asked, fields, etag, _request_id(request, call), validate_only=rehearsed
        )
        if not rehearsed:
            self._managed(namespace, id, "changed", call)
        return pb.UpdateSubscriptionResponse(subscription=_rendered(namespace, status))

    async def delete_subscription(
        self, request: pb.DeleteSubscriptionRequest, call: Call
    ) -> pb.DeleteSubscriptionResponse:
        namespace, id = named(request.name, call)
        etag, _ = call.expected_etag(request.etag)
        await self._subscriptions.delete(namespace, id, etag)
        note(call, "removed", request.name)
        return pb.DeleteSubscriptionResponse()

    async def pull(self, request: pb.PullRequest, call: Call) -> pb.PullResponse:
        namespace, id = named(request.name, call)
        wait = duration(request.wait, "wait", timedelta(0), MAX_WAIT).total_seconds() if request.HasField("wait") else 0
        limit = request.max_messages or MAX_MESSAGES
        return pb.PullResponse(deliveries=await self._pulls.pull(call, namespace, id, limit, wait))

    async def streaming_pull(
        self, request: pb.StreamingPullRequest, call: Call
    ) -> AsyncIterator[pb.StreamingPullResponse]:
        namespace, id = named(request.name, call)
        share = request.max_unacknowledged or MAX_MESSAGES
        async with aclosing(self._pulls.stream(call, namespace, id, share, breaking_off())) as batches:
            async for deliveries in batches:
                yield pb.StreamingPullResponse(deliveries=deliveries)

    async def ack(self, request: pb.AckRequest, call: Call) -> pb.AckResponse:
        namespace, id = named(request.name, call)
        return pb.AckResponse(stale_ack_ids=await self._deliveries.ack(namespace, id, request.ack_ids))

    async def nack(self, request: pb.NackRequest, call: Call) -> pb.NackResponse:
        namespace, id = named(request.name, call)
        if request.action == pb.NackRequest.SKIP:
            stale = await self._deliveries.ack(namespace, id, request.ack_ids)
        elif request.action == pb.NackRequest.PARK:
            stale = await self._deliveries.park(namespace, id, request.ack_ids, "NACK")
        else:
            stale = await self._deliveries.retry(namespace, id, request.ack_ids)
        return pb.NackResponse(stale_ack_ids=stale)

    async def modify_ack_deadline(
        self, request: pb.ModifyAckDeadlineRequest, call: Call
    ) -> pb.ModifyAckDeadlineResponse:
        namespace, id = named(request.name, call)
        time = duration(request.ack_deadline, "ack_deadline", MIN_ACK_DEADLINE, MAX_ACK_DEADLINE)
        stale = await self._deliveries.extend(namespace, id, request.ack_ids, time)
        return pb.ModifyAckDeadlineResponse(stale_ack_ids=stale)

    async def list_parked(self, request: pb.ListParkedRequest, call: Call) -> pb.ListParkedResponse:
        namespace, id = named(request.name, call)
        binding = binding_of("parked", namespace.id, namespace.epoch, id)
        after = ("", 0, 0)
        if request.page_token:
            after = tuple(orjson.loads(open_token(self._token_key, binding, request.page_token)))
        parked, more = await self._parked.list(namespace, id, after, page_size(request.page_size))
        answer = pb.ListParkedResponse()
        for change, park_time in parked:
            answer.parked.append(_parked(namespace, change))
            answer.parked[-1].park_time.FromDatetime(park_time)
        if more:
            last = parked[-1][0]
            answer.next_page_token = seal(self._token_key, binding, orjson.dumps((last.key, *last.position)))
        return answer

    async def replay_parked(self, request: pb.ReplayParkedRequest, call: Call) -> pb.ReplayParkedResponse:
        namespace, id = named(request.name, call)
        keys = {_key(namespace, subject, index) for index, subject in enumerate(request.subjects)}
        replayed, parked, lost = await self._parked.replay(namespace, id, keys)
        self._managed(namespace, id, f"replayed {replayed} parked changes of", call)
        return pb.ReplayParkedResponse(replayed_count=replayed, parked_count=parked, lost_count=lost)

    async def seek(self, request: pb.SeekRequest, call: Call) -> pb.SeekResponse:
        namespace, id = named(request.name, call)
        status = await self._subscriptions.seek(namespace, id, request.start)
        self._managed(namespace, id, f"moved to {status.progress.group.cursor}", call)
        return pb.SeekResponse(subscription=_rendered(namespace, status))

    def _managed(self, namespace: Namespace, id: str, done: str, call: Call) -> None:
        """Let whoever delivers look at the subscription, and leave a trace of what was *done* to it."""
        self._deliveries.wake(namespace, id)
        note(call, done, name_of(namespace, id))


def _parent(parent: str, call: Call) -> Namespace:
    namespace = call.allowed_namespace()
    if parent != f"namespaces/{namespace.id}":
        raise invalid_field("parent", "must be namespaces/{namespace}")
    return namespace


def _request_id(request: pb.CreateSubscriptionRequest | pb.UpdateSubscriptionRequest, call: Call) -> RequestId | None:
    """What the caller calls *request*; None: nothing."""
    if not (id := call.request_id(request.request_id)):
        return None
    body = deepcopy(request)
    body.ClearField("request_id")
    body.DiscardUnknownFields()
    digest = hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
    return RequestId(call.actor, type(request).DESCRIPTOR.name, id, digest)


def _rendered(namespace: Namespace, status: Status, *, is_made: bool = True) -> subscription_pb2.Subscription:
    """*status* for its readers; without what only one has that *is_made*."""
    definition, group = status.definition, status.progress.group
    message = subscription_pb2.Subscription.FromString(definition.definition)
    message.name = name_of(namespace, definition.id)
    message.state = State.ACTIVE
    if is_made:
        message.uid = definition.uid
        message.etag = etag_of(definition)
        message.create_time.FromDatetime(definition.create_time)
        message.update_time.FromDatetime(definition.update_time)
    if status.progress.state == COMPACTED:
        message.state = State.COMPACTED
    elif group.parked >= MAX_PARKED:
        message.state = State.STALLED
    message.lag.revisions = max(0, status.head - group.checkpoint)
    message.lag.age.FromTimedelta(status.age)
    message.checkpoint_revision = group.checkpoint
    message.in_flight_count = group.in_flight
    message.parked_count = group.parked
    if status.webhook is not None:
        describe(message.push, status.webhook)
        message.push.secret = status.secret
    return message


def _parked(namespace: Namespace, change: Parked) -> subscription_pb2.ParkedChange:
    revision, index = change.position
    type_id, slash, entity_id = change.key.partition("/")
    return subscription_pb2.ParkedChange(
        id=f"{namespace.epoch}.{revision}.{index}",
        subject=f"namespaces/{namespace.id}/types/{type_id}" + (f"/entities/{entity_id}" if slash else ""),
        revision=revision,
        index=index,
        kind=change.kind,  # type: ignore[arg-type]  # as it was read from the log
        attempts=change.attempts,
        reason=change.reason,
    )


def _key(namespace: Namespace, subject: str, index: int) -> str:
    """The key of an entity, or a type, by its name."""
    prefix, _, rest = subject.partition("/types/")
    type_id, _, entity_id = rest.partition("/entities/")
    if prefix != f"namespaces/{namespace.id}" or not type_id:
        raise invalid_field(f"subjects[{index}]", "must be the name of an entity or a type in the namespace")
    return f"{type_id}/{entity_id}" if entity_id else type_id
