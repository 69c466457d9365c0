"""The leases by which the log keeps what subscriptions have not done yet."""

from __future__ import annotations

from datetime import timedelta

from strandline.stream.v1 import subscription_pb2 as pb

from services.runtime.call import Namespace
from services.runtime.errors import OutOfRange
from services.stream import subscription_store as store
from services.stream.definitions import fields_named
from services.stream.positions import SEEK, compacted
from services.stream.subscription_store import Definition, Locked
from services.stream.upstream import LEASE_TTL, Lease, Logs


async def hold(
    logs: Logs,
    namespace: Namespace,
    definition: Definition,
    wanted: int,
    needed: int,
    ttl: timedelta = LEASE_TTL,
) -> None:
    """Keep the log after *wanted*, or what is left of it, as long as that is everything after *needed*; for *ttl*.

    Raises:
        OutOfRange: COMPACTED, it is not: retention has its limits, also for consumers.
    """
    while True:
        try:
            return await logs.put_lease(_lease(namespace, definition, wanted, ttl))
        except OutOfRange as failure:
            wanted = int(failure.metadata["horizon_revision"])
            if wanted > needed:
                raise compacted(wanted, SEEK) from failure


async def needed_after(held: Locked, namespace: Namespace) -> int:
    """The revision after which the log is needed: that of the checkpoint, or where something older is parked."""
    ((oldest,),) = await held.query(store.oldest_parked(namespace.id, held.definition.id))
    checkpoint = held.progress.group.checkpoint
    return checkpoint if oldest is None else min(checkpoint, oldest - 1)


def lease_name(definition: Definition) -> str:
    # With the uid, so that one that is being removed cannot take away the lease of the next with its id.
    return f"subscriptions/{definition.id}/{definition.uid}"


def _lease(namespace: Namespace, definition: Definition, acknowledged: int, ttl: timedelta) -> Lease:
    """The lease that keeps the log for a subscription, for *ttl*."""
    asked = pb.Subscription.FromString(definition.definition)
    types = list(asked.types) or sorted({entity_id.split("/")[0] for entity_id in asked.ids})
    fields = fields_named(definition.definition)
    return Lease(namespace.id, namespace.epoch, lease_name(definition), types, fields, acknowledged, ttl)
