"""``WebhookService``: parse, one step, render."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from strandline.stream.v1 import subscription_pb2, webhook_pb2
from strandline.stream.v1 import webhook_service_pb2 as pb

from services.runtime.call import Call, Namespace
from services.runtime.errors import invalid_field
from services.runtime.ids import uuid7
from services.runtime.page_tokens import binding_of, open_token, page_size, seal
from services.stream import webhook_store as store
from services.stream.webhook_messages import trial_message
from services.stream.webhooks import Webhooks, describe, no_such_webhook

logger = logging.getLogger(__name__)

SERVICE: Final = "strandline.stream.v1.WebhookService"
OVERLAP: Final = timedelta(hours=24)
_NAME: Final = re.compile(r"namespaces/([^/]+)/subscriptions/([^/]+)")
_NEWEST: Final = 2**62


class WebhookHandlers:
    """The handlers of ``WebhookService``."""

    def __init__(self, webhooks: Webhooks, token_key: bytes) -> None:
        self._webhooks = webhooks
        self._token_key = token_key

    async def rotate_webhook_secret(
        self, request: pb.RotateWebhookSecretRequest, call: Call
    ) -> pb.RotateWebhookSecretResponse:
        namespace, subscription = _named(request.name, call)
        overlap = request.overlap.ToTimedelta() if request.HasField("overlap") else OVERLAP
        secret, expiry = await self._webhooks.rotate(namespace, subscription, overlap)
        _note(call, "rotated the secret of", request.name)
        answer = pb.RotateWebhookSecretResponse(secret=secret)
        if expiry is not None:
            answer.previous_secret_expire_time.FromDatetime(expiry)
        return answer

    async def test_webhook(self, request: pb.TestWebhookRequest, call: Call) -> pb.TestWebhookResponse:
        namespace, subscription = _named(request.name, call)
        target = await self._webhooks.target(namespace.id, subscription)
        if target is None or target.namespace.epoch != namespace.epoch:
            raise no_such_webhook()
        sent = await self._webhooks.send(target, trial_message(target.name, uuid7(), datetime.now(UTC)))
        _note(call, "tested", request.name)
        _, (delivery,) = await self._webhooks.record(target, [(sent, 1)])
        return pb.TestWebhookResponse(delivery=_rendered(delivery))

    async def enable_webhook(self, request: pb.EnableWebhookRequest, call: Call) -> pb.EnableWebhookResponse:
        namespace, subscription = _named(request.name, call)
        found = await self._webhooks.enable(namespace, subscription)
        _note(call, "enabled", request.name)
        push = subscription_pb2.Subscription.FromString(found.definition).push
        describe(push, found.webhook)
        return pb.EnableWebhookResponse(push=push)

    async def list_webhook_deliveries(
        self, request: pb.ListWebhookDeliveriesRequest, call: Call
    ) -> pb.ListWebhookDeliveriesResponse:
        namespace, subscription = _named(request.parent, call, "parent")
        binding = binding_of("deliveries", namespace.id, namespace.epoch, subscription)
        before = int(open_token(self._token_key, binding, request.page_token)) if request.page_token else _NEWEST
        size = page_size(request.page_size)
        found = await self._webhooks.deliveries(namespace, subscription, before, size + 1)
        answer = pb.ListWebhookDeliveriesResponse(deliveries=map(_rendered, found[:size]))
        if len(found) > size:
            answer.next_page_token = seal(self._token_key, binding, str(found[size - 1].number).encode())
        return answer


def _note(call: Call, done: str, name: str) -> None:
    """Leave a trace of who looked after what."""
    logger.info("%s %s %s", call.actor, done, name)


def _named(name: str, call: Call, field: str = "name") -> tuple[Namespace, str]:
    namespace = call.allowed_namespace()
    match = _NAME.fullmatch(name)
    if match is None or match[1] != namespace.id:
        raise invalid_field(field, "must be namespaces/{namespace}/subscriptions/{subscription}")
    return namespace, match[2]


def _rendered(delivery: store.Delivery) -> webhook_pb2.WebhookDelivery:
    message = webhook_pb2.WebhookDelivery(
        number=delivery.number,
        message_id=delivery.message_id,
        revision=delivery.revision,
        index=delivery.index,
        attempt=delivery.attempt,
        outcome=delivery.outcome,  # type: ignore[arg-type]  # as it was stored
        status=delivery.status,
        detail=delivery.detail,
    )
    message.send_time.FromDatetime(delivery.send_time)
    message.latency.FromTimedelta(delivery.latency)
    return message
