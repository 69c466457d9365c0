"""Cutting the log where retention allows it: in small steps, each of which moves the horizon and removes what is below.

The horizon is all the state there is, so whoever comes next goes on where the last step ended. Nothing at or below it
is needed for reading any state at or after it (see ``as_of``). Leases are asked again under the lock of each step.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from strandline.stream.v1 import feed_pb2

from services.entity import retention_store as store
from services.entity.retention import Retention, read_retention
from services.runtime import changelog
from services.runtime.call import Namespace
from services.runtime.database import Database, Statement, pipeline

UNITS_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 2**20


async def compact(database: Database, namespace: Namespace) -> int:
    """Cut everything off that may go; the horizon after that."""
    while True:
        # Anew for each step: an owner who has just chosen to keep more does not mean what a long cut began with.
        retention = await read_retention(database, namespace)
        horizon = retention.head.horizon
        if horizon >= retention.next:
            return horizon
        began = time.monotonic()
        if await _step(database, namespace, retention, horizon) is None:
            return horizon  # another replica was faster, or a lease has come: next time
        # Commits of the namespace wait for a step: they get as long a turn themselves.
        await asyncio.sleep(time.monotonic() - began)


async def _step(database: Database, namespace: Namespace, retention: Retention, horizon: int) -> int | None:
    """Cut some of it off; the new horizon, or None if it must not move."""
    (rows,) = await database.read(
        namespace.id,
        store.select_units_to_cut(namespace.id, horizon, retention.next, UNITS_AT_ONCE, BYTES_AT_ONCE),
    )
    if not rows:
        return None
    to = rows[-1][0]
    versions = [version for revision, body in rows for version in _versions(revision, body)]
    async with database.connection() as connection:
        try:
            _, _, moved, *_ = await pipeline(
                connection,
                Statement("BEGIN"),
                Statement(changelog.LOCK_HEAD, (namespace.id,)),
                store.move_horizon(namespace.id, namespace.epoch, horizon, to, retention.unheld),
                store.delete_versions(namespace.id, versions),
                store.delete_units(namespace.id, horizon, to),
            )
            if not moved:
                return None
            await connection.commit()
        finally:
            if not connection.closed:
                await connection.rollback()
    return int(to)


def _versions(revision: int, body: bytes) -> list[tuple[str, str, int]]:
    """(type, id, revision) of every entity that the unit in *body* changed."""
    names = [change.entity.name for change in feed_pb2.Unit.FromString(body).changes if change.HasField("entity")]
    parts = [name.split("/") for name in names]
    return [(part[3], part[5], revision) for part in parts]
