"""Webhooks: what the subscriptions that push hold, and what became of each attempt."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from prometheus_client import Counter
from strandline.stream.v1 import subscription_pb2, webhook_pb2

from services.runtime.call import Namespace
from services.runtime.database import Database, Statement
from services.runtime.errors import Error, FailedPrecondition
from services.stream import subscription_store
from services.stream import webhook_store as store
from services.stream.endpoints import Endpoint, Receiver, parse_endpoint
from services.stream.webhook_messages import WebhookMessage
from services.stream.webhook_policy import Health, health_after
from services.stream.webhook_sender import Sent, WebhookSender

logger = logging.getLogger(__name__)

_Stored = TypeVar("_Stored", store.Found, store.Locked)
_DISABLED: Final = Counter("strandline_stream_webhook_disabled", "Webhooks that were disabled.", ["reason"])


@dataclass(frozen=True, slots=True)
class Target:
    """One webhook, ready to be sent to."""

    name: str
    uid: str
    namespace: Namespace
    subscription: str
    definition: bytes
    endpoint: Endpoint
    secrets: Sequence[bytes]
    health: Health
    disable_after: timedelta


class Webhooks:
    """The webhooks of every namespace."""

    def __init__(self, database: Database, sender: WebhookSender, receivers: Sequence[Receiver]) -> None:
        self._database = database
        self._sender = sender
        self.receivers = receivers

    def new(self, namespace: str, subscription: str, uid: str) -> tuple[bytes, list[Statement]]:
        """The secret, sealed, and statements that make the subscription *uid* push."""
        _, sealed = self._sender.new_secret(uid)
        return sealed, store.insert(namespace, subscription, uid, sealed)

    def show(self, uid: str, sealed: bytes | None) -> str:
        """The secret of the subscription *uid* for its owner; None: there is none to show."""
        return self._sender.show(uid, sealed) if sealed is not None else ""

    async def stored(self, namespace: Namespace, subscription: str) -> store.Webhook | None:
        """The webhook of a subscription as it is stored; None: it does not push."""
        (rows,) = await self._database.read(namespace.id, store.select(namespace.id, subscription))
        found = store.found(rows)
        return found.webhook if found is not None and found.epoch == namespace.epoch else None

    async def target(self, namespace_id: str, subscription: str) -> Target | None:
        """The webhook as it is now; None: there is none.

        Raises:
            SealError: a secret of it does not open.
            InvalidArgument: its endpoint may not be asked any more.
        """
        (rows,) = await self._database.read(namespace_id, store.select(namespace_id, subscription))
        found = store.found(rows)
        if found is None:
            return None
        push = subscription_pb2.Subscription.FromString(found.definition).push
        return Target(
            name=f"namespaces/{namespace_id}/subscriptions/{subscription}",
            uid=found.uid,
            namespace=Namespace(namespace_id, found.epoch),
            subscription=subscription,
            definition=found.definition,
            endpoint=parse_endpoint(push.endpoint, self.receivers),
            secrets=self._sender.secrets(found.uid, found.webhook),
            health=found.webhook.health,
            disable_after=push.disable_after.ToTimedelta(),
        )

    async def target_of(self, namespace: Namespace, subscription: str) -> Target:
        """The webhook as it is now.

        Raises:
            NotFound: there is no such subscription.
            FailedPrecondition: SUBSCRIPTION_DOES_NOT_PUSH.
        """
        target = await self.target(namespace.id, subscription)
        if target is None or target.namespace.epoch != namespace.epoch:
            raise await self._refusal(namespace, subscription)
        return target

    async def send(self, target: Target, message: WebhookMessage) -> Sent:
        """Send *message* once.

        Raises:
            Unavailable: OVERLOADED, it was not sent because of a limit of ours.
        """
        return await self._sender.send(target.namespace.id, target.endpoint, target.secrets, message)

    async def record(self, target: Target, sent: Sequence[tuple[Sent, int]]) -> tuple[Health, Sequence[store.Delivery]]:
        """Remember attempts, each given with its number among those of its message.

        Tests are remembered and change nothing.

        Returns:
            How the webhook fares now, and the attempts as they are remembered.

        Raises:
            NotFound: there is no such webhook any more.
        """
        async with store.locked(self._database, target.namespace.id, target.subscription) as held:
            # Another one may have been made under the same name.
            if held is None or held.uid != target.uid:
                raise subscription_store.no_such_subscription()
            before = health = held.webhook.health
            now = datetime.now(UTC)
            deliveries = []
            for number, (one, attempt) in enumerate(sent, held.webhook.attempts + 1):
                if one.message.revision:
                    health = health_after(health, one.attempt, target.disable_after, now)
                deliveries.append(_delivery(number, one, attempt))
            held.statements += store.log(target.namespace.id, target.subscription, deliveries)
            if health != before:
                held.statements += store.set_health(target.namespace.id, target.subscription, health)
        if health.is_disabled and not before.is_disabled:
            _DISABLED.labels(health.disable_reason).inc()
            logger.warning(
                "%s is disabled: %s, %d attempts failed since %s",
                *(target.name, health.disable_reason, health.failures, health.failing_since),
            )
        return health, deliveries

    async def rotate(self, namespace: Namespace, subscription: str, overlap: timedelta) -> tuple[str, datetime | None]:
        """A new secret to show, and until when the one before signs too.

        Raises:
            NotFound: there is no such subscription.
            FailedPrecondition: SUBSCRIPTION_DOES_NOT_PUSH.
        """
        async with store.locked(self._database, namespace.id, subscription) as found:
            held = await self._of_this_life(found, namespace, subscription)
            secret, sealed = self._sender.new_secret(held.uid)
            expiry = datetime.now(UTC) + overlap if overlap else None
            held.statements.append(store.set_secrets(namespace.id, subscription, sealed, held.webhook.secret, expiry))
        return secret, expiry

    async def enable(self, namespace: Namespace, subscription: str) -> store.Found:
        """Forget the failures, and go on.

        Raises:
            NotFound: there is no such subscription.
            FailedPrecondition: SUBSCRIPTION_DOES_NOT_PUSH.
        """
        async with store.locked(self._database, namespace.id, subscription) as found:
            held = await self._of_this_life(found, namespace, subscription)
            held.statements += store.enable(namespace.id, subscription)
        return await self._found(namespace, subscription)

    async def deliveries(
        self, namespace: Namespace, subscription: str, before: int, limit: int
    ) -> list[store.Delivery]:
        """The attempts with a number below *before*, the newest first.

        Raises:
            NotFound: there is no such subscription.
            FailedPrecondition: SUBSCRIPTION_DOES_NOT_PUSH.
        """
        found, rows = await self._database.read(
            namespace.id,
            store.select(namespace.id, subscription),
            store.select_deliveries(namespace.id, subscription, before, limit),
        )
        await self._of_this_life(store.found(found), namespace, subscription)
        return [store.Delivery(*row) for row in rows]

    async def _found(self, namespace: Namespace, subscription: str) -> store.Found:
        (rows,) = await self._database.read(namespace.id, store.select(namespace.id, subscription))
        return await self._of_this_life(store.found(rows), namespace, subscription)

    async def _of_this_life(self, found: _Stored | None, namespace: Namespace, subscription: str) -> _Stored:
        if found is None or found.epoch != namespace.epoch:
            raise await self._refusal(namespace, subscription)
        return found

    async def _refusal(self, namespace: Namespace, subscription: str) -> Error:
        """Why there is no such webhook."""
        rows = await self._database.read(namespace.id, *subscription_store.select(namespace.id, subscription))
        there = subscription_store.found(rows)
        if there is None or there[0].epoch != namespace.epoch:
            return subscription_store.no_such_subscription()
        return FailedPrecondition(
            "SUBSCRIPTION_DOES_NOT_PUSH", "the subscription is no webhook: update it with `push` to make it one"
        )


def describe(push: webhook_pb2.PushConfig, webhook: store.Webhook) -> None:
    """Add to *push* how the webhook fares."""
    health = webhook.health
    push.state = webhook_pb2.PushConfig.DISABLED if health.is_disabled else webhook_pb2.PushConfig.ENABLED
    push.disable_reason = health.disable_reason
    push.consecutive_failures = health.failures
    if health.disable_time is not None:
        push.disable_time.FromDatetime(health.disable_time)
    if health.failing_since is not None:
        push.failing_since.FromDatetime(health.failing_since)
    expiry = webhook.previous_secret_expire_time
    if expiry is not None and expiry > datetime.now(UTC):
        push.previous_secret_expire_time.FromDatetime(expiry)


def _delivery(number: int, sent: Sent, attempt: int) -> store.Delivery:
    message, outcome = sent.message, sent.attempt
    return store.Delivery(
        number=number,
        message_id=message.id,
        revision=message.revision,
        index=message.index,
        attempt=attempt,
        send_time=sent.time,
        latency=outcome.latency,
        outcome=outcome.outcome,
        status=outcome.status,
        detail=outcome.detail,
    )
