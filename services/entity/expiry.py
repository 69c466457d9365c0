"""Letting entities expire when their time has come: units of kind EXPIRED, at most a few seconds late.

Every replica looks for what is due, each second, in all namespaces at once, and commits it through the committer. What
is really due is decided under the lock: an entity that was given more time, or that another replica was faster with, is
passed over. Nothing is held between two looks, so a process that dies leaves its work to the next look of anybody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

import psycopg

from services.entity.model import EntityKey, entity_name
from services.entity.mutations import Kind, Mutation
from services.entity.writes import Writer, Writing
from services.runtime import changelog
from services.runtime.call import Namespace
from services.runtime.database import Database, Statement, packed_text, pipeline
from services.runtime.errors import Error, Unavailable

logger = logging.getLogger(__name__)

ACTOR: Final = "service:entity"
EVERY_SECONDS: Final = 1.0
UNIT_SIZE: Final = 500
AT_ONCE: Final = 5000
NAMESPACES_AT_ONCE: Final = 4
# An entity that must not go yet is tried again after 2, 4, 8, ... seconds, in the end every hour.
MAX_PAUSE_SECONDS: Final = 3600
BUSY_SECONDS: Final = 3
"""When those of a namespace that takes no writes now are tried again; until then they are in nobody's way."""


class Due(NamedTuple):
    """An entity that is due, in one life of a namespace."""

    namespace: Namespace
    key: EntityKey


class Expirer:
    """Lets entities expire."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._slots = asyncio.Semaphore(NAMESPACES_AT_ONCE)

    async def run(self) -> None:
        """Look again and again, for ever."""
        while True:
            settled = 0
            try:
                settled = await self.expire_due()
            except psycopg.OperationalError as failure:
                logger.warning("entities expire later: %s", type(failure).__name__)
            except Exception:
                # Nobody watches this task: whatever happened, the next look comes.
                logger.exception("entities expire later")
            if settled < AT_ONCE:
                await asyncio.sleep(EVERY_SECONDS)

    async def expire_due(self) -> int:
        """Let up to 5,000 entities expire that are due; how many of them need not be looked at again at once."""
        (rows,) = await self._database.read("", _SELECT_DUE)
        due = [Due(Namespace(namespace, epoch), EntityKey(*key)) for namespace, epoch, *key in rows]
        due.sort(key=lambda item: item.namespace.id)  # stable: inside a namespace, who was due first goes first
        settled = await asyncio.gather(
            *(self._expire_in(namespace, list(group)) for namespace, group in groupby(due, attrgetter("namespace")))
        )
        return sum(settled)

    async def _expire_in(self, namespace: Namespace, due: Sequence[Due]) -> int:
        async with self._slots:
            units = [[item.key for item in due[at : at + UNIT_SIZE]] for at in range(0, len(due), UNIT_SIZE)]
            return sum([await self._expire(namespace, keys) for keys in units])

    async def _expire(self, namespace: Namespace, keys: Sequence[EntityKey]) -> int:
        """Let *keys* expire in one unit, or those that can in smaller ones; how many went or were put off."""
        mutations = []
        for key in keys:
            name = entity_name(namespace.id, key)
            mutations.append(Mutation(Kind.EXPIRE, name, key, "name"))
        try:
            await self._writer.transact(Writing(namespace, ACTOR, "Expire", ""), mutations)
        except psycopg.OperationalError as failure:
            logger.warning("entities of %s expire later: %s", namespace.id, failure)
            return 0
        except Unavailable as failure:
            logger.warning("entities of %s expire later: %s", namespace.id, failure)
            await self._postpone(namespace, keys, busy=True)
            return 0
        except Error as failure:
            # Too large together, or one of them must not go: find out which.
            if len(keys) > 1:
                middle = len(keys) // 2
                return await self._expire(namespace, keys[:middle]) + await self._expire(namespace, keys[middle:])
            logger.info("%s expires later: %s", mutations[0].name, failure.reason)
            await self._postpone(namespace, keys)
        except Exception:
            logger.exception("entities of %s expire later", namespace.id)
            await self._postpone(namespace, keys)
        return len(keys)

    async def _postpone(self, namespace: Namespace, keys: Sequence[EntityKey], *, busy: bool = False) -> None:
        """Try *keys* again later: soon if only the namespace was *busy*, else after a pause that grows."""
        async with self._database.connection() as connection:
            await pipeline(
                connection,
                Statement("BEGIN"),
                # Under the lock, as all who change this table: a row that moves under a delete is not deleted.
                Statement(changelog.LOCK_HEAD, (namespace.id,)),
                # Not if it was given another time meanwhile.
                Statement(
                    """UPDATE expirations SET attempts = CASE WHEN %s THEN attempts ELSE least(attempts + 1, 12) END,
                        due_time = now() + CASE WHEN %s THEN %s ELSE least(2 ^ (attempts + 1), %s) END
                            * interval '1 second'
                    WHERE due_time <= now() AND ctid = ANY(ARRAY(
                        SELECT e.ctid FROM unnest(%s::text[], %s::text[]) AS k (type, id)
                        CROSS JOIN LATERAL (SELECT ctid FROM expirations
                            WHERE namespace = %s AND type = k.type AND id = k.id LIMIT 1) e))""",
                    (
                        busy,
                        busy,
                        BUSY_SECONDS,
                        MAX_PAUSE_SECONDS,
                        packed_text(key.type for key in keys),
                        packed_text(key.id for key in keys),
                        namespace.id,
                    ),
                ),
                Statement("COMMIT"),
            )


# A namespace that is being purged has a mark in its epoch, and takes no writes.
_SELECT_DUE: Final = Statement(
    """SELECT d.namespace, h.epoch, d.type, d.id
    FROM (SELECT namespace, type, id, due_time FROM expirations WHERE due_time <= now()
        ORDER BY due_time LIMIT %s) d
    CROSS JOIN LATERAL (SELECT epoch FROM heads WHERE namespace = d.namespace AND epoch BETWEEN '0' AND 'g' LIMIT 1) h
    ORDER BY d.due_time""",
    (AT_ONCE,),
)
