"""``WebhookService``: parse, one step, render."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from strandline.stream.v1 import subscription_pb2, webhook_pb2
from strandline.stream.v1 import webhook_service_pb2 as pb

from services.runtime.call import Call
from services.runtime.ids import uuid7
from services.runtime.page_tokens import binding_of, open_token, page_size, seal
from services.stream import webhook_store as store
from services.stream.deliveries import Deliveries
from services.stream.subscription_names import named, note
from services.stream.webhook_messages import trial_message
from services.stream.webhooks import Webhooks, describe

SERVICE: Final = "strandline.stream.v1.WebhookService"
OVERLAP: Final = timedelta(hours=24)
_NEWEST: Final = 2**62


class WebhookHandlers:
    """The handlers of ``WebhookService``."""

    def __init__(self, webhooks: Webhooks, deliveries: Deliveries, token_key: bytes) -> None:
        self._webhooks = webhooks
        self._deliveries = deliveries
        self._token_key = token_key

    async def rotate_webhook_secret(
        self, request: pb.RotateWebhookSecretRequest, call: Call
    ) -> pb.RotateWebhookSecretResponse:
        namespace, subscription = named(request.name, call)
        overlap = request.overlap.ToTimedelta() if request.HasField("overlap") else OVERLAP
        secret, expiry = await self._webhooks.rotate(namespace, subscription, overlap)
        self._deliveries.wake(namespace, subscription)
        note(call, "rotated the secret of", request.name)
        answer = pb.RotateWebhookSecretResponse(secret=secret)
        if expiry is not None:
            answer.previous_secret_expire_time.FromDatetime(expiry)
        return answer

    async def test_webhook(self, request: pb.TestWebhookRequest, call: Call) -> pb.TestWebhookResponse:
        namespace, subscription = named(request.name, call)
        target = await self._webhooks.target_of(namespace, subscription)
        sent = await self._webhooks.send(target, trial_message(target.name, uuid7(), datetime.now(UTC)))
        note(call, "tested", request.name)
        _, (delivery,) = await self._webhooks.record(target, [(sent, 1)])
        return pb.TestWebhookResponse(delivery=_rendered(delivery))

    async def enable_webhook(self, request: pb.EnableWebhookRequest, call: Call) -> pb.EnableWebhookResponse:
        namespace, subscription = named(request.name, call)
        found = await self._webhooks.enable(namespace, subscription)
        self._deliveries.wake(namespace, subscription)
        note(call, "enabled", request.name)
        push = subscription_pb2.Subscription.FromString(found.definition).push
        describe(push, found.webhook)
        return pb.EnableWebhookResponse(push=push)

    async def list_webhook_deliveries(
        self, request: pb.ListWebhookDeliveriesRequest, call: Call
    ) -> pb.ListWebhookDeliveriesResponse:
        namespace, subscription = named(request.parent, call, "parent")
        binding = binding_of("deliveries", namespace.id, namespace.epoch, subscription)
        before = int(open_token(self._token_key, binding, request.page_token)) if request.page_token else _NEWEST
        size = page_size(request.page_size)
        found = await self._webhooks.deliveries(namespace, subscription, before, size + 1)
        answer = pb.ListWebhookDeliveriesResponse(deliveries=map(_rendered, found[:size]))
        if len(found) > size:
            answer.next_page_token = seal(self._token_key, binding, str(found[size - 1].number).encode())
        return answer


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
