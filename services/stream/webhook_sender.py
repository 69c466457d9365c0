"""Sends one message to one receiver: seals and opens secrets, signs, asks, and says what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from prometheus_client import Counter, Histogram

from services.runtime.sealing import SealingKeys, place_of
from services.stream import signing
from services.stream.egress import Egress, EgressFailure
from services.stream.endpoints import Endpoint
from services.stream.webhook_messages import WebhookMessage
from services.stream.webhook_policy import Attempt, Outcome, attempt_of
from services.stream.webhook_store import Webhook

_ATTEMPTS: Final = Counter("strandline_stream_webhook_attempts", "Attempts to deliver to webhooks.", ["outcome"])
_SECONDS: Final = Histogram("strandline_stream_webhook_attempt_seconds", "Duration of attempts to deliver to webhooks.")
_HEADERS: Final = {"content-type": "application/json", "user-agent": "Strandline-Webhooks/1"}


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent when, and what came of it."""

    message: WebhookMessage
    time: datetime
    attempt: Attempt


class WebhookSender:
    """Signs with secrets that nobody else here sees in the clear."""

    def __init__(self, egress: Egress, keys: SealingKeys) -> None:
        self._egress = egress
        self._keys = keys

    def new_secret(self, uid: str) -> tuple[str, bytes]:
        """A fresh secret for the subscription *uid*: to show to its owner once, and sealed."""
        secret = signing.new_secret()
        return signing.show(secret), self._keys.seal(_place(uid), secret)

    def show(self, uid: str, sealed: bytes) -> str:
        """A secret of the subscription *uid*, as its owner was shown it.

        Raises:
            SealError: it does not open: a key of the platform is missing.
        """
        return signing.show(self._keys.unseal(_place(uid), sealed))

    def secrets(self, uid: str, webhook: Webhook) -> list[bytes]:
        """The secrets of *webhook* that count now, the newest first.

        Raises:
            SealError: one does not open: a key of the platform is missing.
        """
        secrets = [self._keys.unseal(_place(uid), webhook.secret)]
        expiry = webhook.previous_secret_expire_time
        if webhook.previous_secret is not None and expiry is not None and datetime.now(UTC) < expiry:
            secrets.append(self._keys.unseal(_place(uid), webhook.previous_secret))
        return secrets

    async def send(self, namespace: str, endpoint: Endpoint, secrets: Sequence[bytes], message: WebhookMessage) -> Sent:
        """Send *message* of *namespace* once, signed by each of *secrets*.

        Raises:
            Unavailable: OVERLOADED, it was not sent because of a limit of ours.
        """
        now = datetime.now(UTC)
        headers = signing.headers(secrets, message.id, int(now.timestamp()), message.body)
        try:
            answer = await self._egress.post(namespace, endpoint, _HEADERS | headers, message.body)
        except EgressFailure as failure:
            attempt = attempt_of(failure, now)
        else:
            attempt = attempt_of(answer, now)
        _ATTEMPTS.labels(Outcome.Name(attempt.outcome)).inc()
        _SECONDS.observe(attempt.latency.total_seconds())
        return Sent(message, now, attempt)


def _place(uid: str) -> bytes:
    return place_of("webhooks", "secret", uid)
