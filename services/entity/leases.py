"""Consumers that say how far they have read, so that the log is not cut under them."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from services.entity import retention_store as store
from services.entity.retention import in_life
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head
from services.runtime.database import Database, Row
from services.runtime.errors import OutOfRange, ResourceExhausted, invalid_field

MAX_TTL: Final = timedelta(days=30)
READING: Final = timedelta(minutes=10)
"""How long a page that was read of an old state keeps that state."""
_RENEW_SECONDS: Final = 60.0
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~/-]{0,199}")


class Leases:
    """See ``log_service.Leases``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: dict[tuple[str, int], float] = {}

    async def put(
        self,
        namespace: Namespace,
        name: str,
        types: Sequence[str],
        fields: Sequence[str],
        acknowledged: int,
        ttl: timedelta,
    ) -> None:
        """Keep what follows *acknowledged* for *ttl*.

        Raises:
            InvalidArgument: INVALID_FIELD.
            OutOfRange: COMPACTED, it is gone already.
            FailedPrecondition: FUTURE_REVISION.
            ResourceExhausted: QUOTA_EXCEEDED, too many leases.
        """
        if not _NAME.fullmatch(name):
            raise invalid_field("name", f"must match {_NAME.pattern}")
        if not timedelta(0) < ttl <= MAX_TTL:
            raise invalid_field("ttl", f"must be above 0 and at most {MAX_TTL.days} days")
        await self._put(namespace, name, types, fields, acknowledged, ttl)

    async def delete(self, namespace: Namespace, name: str) -> None:
        """Let it go; one that is not there is no error."""
        await in_life(self._database, namespace, store.delete_lease(namespace.id, name))

    async def hold(self, namespace: Namespace, revision: int) -> None:
        """Keep the state at *revision* readable for ten minutes more, for whoever reads it page by page."""
        now = time.monotonic()
        key = (f"{namespace.id} {namespace.epoch}", revision)
        if now - self._held.get(key, -_RENEW_SECONDS) < _RENEW_SECONDS:
            return
        # The colon keeps these names apart from any that a consumer may choose.
        await self._put(namespace, f"{store.READING_PREFIX}{revision}", (), (), revision, READING)
        self._held = {held: since for held, since in self._held.items() if now - since < _RENEW_SECONDS}
        self._held[key] = now

    async def _put(
        self,
        namespace: Namespace,
        name: str,
        types: Sequence[str],
        fields: Sequence[str],
        acknowledged: int,
        ttl: timedelta,
    ) -> None:
        def check(head: Head, rows: Sequence[list[Row]]) -> None:
            # Under the same lock as a cut: either that comes after this, and sees the lease, or it is seen here.
            MinRevision(acknowledged).check(head.revision, head.epoch)
            if acknowledged < head.horizon:
                raise OutOfRange(
                    "COMPACTED",
                    "that part of the log is gone; start with a snapshot",
                    horizon_revision=str(head.horizon),
                )
            ((others,),) = rows[0]
            kind = "states that are being read" if name.startswith(store.READING_PREFIX) else "consumers"
            if others >= store.MAX_LEASES:
                raise ResourceExhausted(
                    "QUOTA_EXCEEDED",
                    f"the namespace has {store.MAX_LEASES} {kind} already",
                    quota="consumer_leases",
                    limit=str(store.MAX_LEASES),
                    used=str(others),
                )

        await in_life(
            self._database,
            namespace,
            store.count_leases(namespace.id, name),
            store.put_lease(namespace.id, name, types, fields, acknowledged, ttl),
            check=check,
        )
