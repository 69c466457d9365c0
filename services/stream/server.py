"""The process of the stream service: ``strandline-stream`` serves, ``strandline-stream migrate`` updates the schema."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from services.runtime import upstream
from services.runtime.access import AccessCopy
from services.runtime.background import keep_running
from services.runtime.bus import Bus
from services.runtime.database import Database
from services.runtime.gate import Gate
from services.runtime.remote_keys import RemoteKeys
from services.runtime.sealing import SealingKeys
from services.runtime.server import Server
from services.runtime.settings import Settings, read_key, read_keys
from services.runtime.startup import serve_or_migrate, wait_for_database
from services.runtime.tokens import TokenVerifier
from services.stream import subscription_api, webhook_api
from services.stream.api import StreamHandlers
from services.stream.changes import Changes
from services.stream.deliveries import Deliveries
from services.stream.egress import Egress
from services.stream.endpoints import Receiver, parse_receivers
from services.stream.feeds import Feeds, feeds_for_each_user
from services.stream.http import HttpPort
from services.stream.hubs import Hubs
from services.stream.multiplex import Multiplexer
from services.stream.parked_changes import ParkedChanges
from services.stream.passes import Passes
from services.stream.pulls import Pulls
from services.stream.snapshots import ResumeTokens
from services.stream.stalls import Stalls
from services.stream.subscription_api import SubscriptionHandlers
from services.stream.subscription_upkeep import SubscriptionUpkeep
from services.stream.subscriptions import Subscriptions
from services.stream.ticket_api import TicketHandlers
from services.stream.upstream import Logs
from services.stream.webhook_api import WebhookHandlers
from services.stream.webhook_pushers import Pushers
from services.stream.webhook_sender import WebhookSender
from services.stream.webhooks import Webhooks

MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, kw_only=True)
class StreamSettings(Settings):
    """What the stream service needs beyond the common settings."""

    http_listen: str
    """Address of the HTTP port, ``unix:/path`` or ``127.0.0.1:port``: only the sidecar reaches it."""
    user_address: str
    """The user service, through this service's own sidecar."""
    entity_address: str
    """The entity service, through this service's own sidecar."""
    webhook_receivers: tuple[Receiver, ...] = ()
    """What webhooks may reach on loopback; only in the local topology."""
    max_feeds_per_user: int = 15_000
    """Open at this replica, in all transports together. Of what the edge lets through, 20,000, a quarter is left."""
    public_tls: bool = True
    """Whether browsers reach the edge over TLS: cookies then go over nothing else. Not so in the local topology."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read ``STRANDLINE_*``."""
        return cls(
            **cls.common(env),  # type: ignore[arg-type]  # the keys are its own fields
            http_listen=env["STRANDLINE_HTTP_LISTEN"],
            user_address=env["STRANDLINE_USER_ADDRESS"],
            entity_address=env["STRANDLINE_ENTITY_ADDRESS"],
            webhook_receivers=_receivers(env),
            max_feeds_per_user=int(env.get("STRANDLINE_MAX_FEEDS_PER_USER", cls.max_feeds_per_user)),
            public_tls=env.get("STRANDLINE_TOPOLOGY") != "local",
        )


def _receivers(env: Mapping[str, str]) -> tuple[Receiver, ...]:
    receivers = parse_receivers(env.get("STRANDLINE_WEBHOOK_RECEIVERS", ""))
    if receivers and env.get("STRANDLINE_TOPOLOGY") != "local":
        raise RuntimeError("STRANDLINE_WEBHOOK_RECEIVERS opens loopback to webhooks: only in the local topology")
    return receivers


async def serve(settings: StreamSettings) -> None:
    """Construct everything, serve until SIGTERM, and take it down in reverse order."""
    await wait_for_database(settings, MIGRATIONS)
    database = Database(settings.database_url)
    token_key = read_key(settings.secrets_dir, "resume_token.key")
    bus = Bus(settings.nats_url, settings.nats_credentials, settings.tls_dir, "stream")
    user, entity = upstream.channel(settings.user_address), upstream.channel(settings.entity_address)
    access = AccessCopy(user, bus)
    logs = Logs(user, entity)
    hubs = Hubs(logs, bus)
    allowance = feeds_for_each_user(settings.max_feeds_per_user)
    feeds = Feeds(hubs, logs, access, ResumeTokens(token_key), allowance)
    egress = Egress(settings.webhook_receivers)
    sender = WebhookSender(egress, SealingKeys(read_keys(settings.secrets_dir / "kek")))
    webhooks = Webhooks(database, sender, settings.webhook_receivers)
    subscriptions, deliveries = Subscriptions(database, logs, webhooks), Deliveries(database, hubs, logs)
    pushers = Pushers(database, deliveries, webhooks)
    gate = Gate(TokenVerifier(settings.token_issuer, RemoteKeys(user).get), access)
    multiplexer = Multiplexer(feeds, gate, allowance)
    changes = Changes(hubs)
    passes = Passes(read_key(settings.secrets_dir, "ticket.key"), settings.public_tls)
    stalls = Stalls()
    http = HttpPort(feeds, multiplexer, changes, gate, passes, stalls)
    server = Server(settings)
    server.add("strandline.stream.v1.StreamService", StreamHandlers(feeds, multiplexer, changes, stalls), gate.admit)
    parked, pulls = ParkedChanges(database, logs), Pulls(deliveries, hubs, access, stalls)
    handlers = SubscriptionHandlers(subscriptions, parked, deliveries, pulls, token_key)
    server.add(subscription_api.SERVICE, handlers, gate.admit)
    server.add(webhook_api.SERVICE, WebhookHandlers(webhooks, deliveries, token_key), gate.admit)
    server.add("strandline.stream.v1.TicketService", TicketHandlers(passes, database, access), gate.admit)

    upkeep = SubscriptionUpkeep(database, subscriptions, logs, access)

    async def say_goodbye() -> None:
        multiplexer.drain()
        await feeds.drain()
        await http.stop()

    server.on_drain(say_goodbye)
    access.on_change(hubs.access_changed)
    bus.start()
    try:
        await access.start()
        await hubs.start()
        await http.start(settings.http_listen)
        background = [
            asyncio.create_task(keep_running(pushers.run)),
            asyncio.create_task(keep_running(upkeep.run)),
            asyncio.create_task(keep_running(stalls.run)),
        ]
        try:
            await server.run()
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
    finally:
        await egress.close()
        await hubs.stop()
        await access.stop()
        await bus.close()
        await user.close()
        await entity.close()
        await database.close()


def main() -> None:
    """The console script."""
    serve_or_migrate("stream", StreamSettings.from_env, serve, MIGRATIONS)


if __name__ == "__main__":
    main()
