"""The way of a purge: delete the entity if it lives, blank the older part of a long history, commit the PURGED unit.

Each step can be the last that a process does: the same request, repeated, goes on from there.
"""

from __future__ import annotations

import hashlib
from typing import Final

from services.entity.ledger import EntityUnit
from services.entity.model import EntityKey, etag_of
from services.entity.mutations import Kind, Mutation
from services.entity.purge_changes import LongHistory, Purge, StillLive, blank, select_changes
from services.entity.writes import Writer, Writing
from services.runtime import changelog
from services.runtime.call import Namespace
from services.runtime.committer import Committer
from services.runtime.database import Database, Statement, pipeline
from services.runtime.errors import Aborted, NotFound, Unavailable
from services.runtime.units import Receipt

MAX_ATTEMPTS: Final = 1000
"""Of which each blanks a part of the history."""


class Purges:
    """Purges entities."""

    def __init__(self, database: Database, writer: Writer, committer: Committer[EntityUnit]) -> None:
        self._database = database
        self._writer = writer
        self._committer = committer

    async def purge(self, writing: Writing, name: str, key: EntityKey, etag: str, by_if_match: bool) -> Receipt:
        """Remove the entity *name* for good. A live one is deleted first, by a unit of its own.

        Raises:
            Error: it is refused, for what a purge or the deletion is refused for.
        """
        body_hash = hashlib.blake2b(f"{name} {etag}".encode(), digest_size=16).digest()
        wanted, blanked_to = etag, 0
        for _ in range(MAX_ATTEMPTS):
            unit = Purge(
                actor=writing.actor,
                method=writing.method,
                request_id=writing.request_id,
                body_hash=body_hash,
                exclusive=frozenset((key, "purge")),
                shared=frozenset((key.type,)),
                validate_only=writing.validate_only,
                key=key,
                etag=wanted,
                by_if_match=by_if_match,
                blanked_to=blanked_to,
            )
            try:
                return await self._committer.commit(writing.namespace, unit)
            except LongHistory:
                blanked_to = await self._blank(writing.namespace, key, blanked_to)
            except StillLive:
                revision, wanted = await self._delete(writing, name, key, etag, by_if_match)
                if writing.validate_only:
                    return Receipt(revision, writing.namespace.epoch, b"")
            except Aborted as mismatch:
                # Perhaps this very request deleted it, and was cut off: then the etag is of before.
                if mismatch.reason != "ETAG_MISMATCH" or wanted != etag or not writing.request_id:
                    raise
                try:
                    _, wanted = await self._delete(writing, name, key, etag, by_if_match)
                except NotFound:
                    raise mismatch from None
        raise Unavailable("OVERLOADED", "the entity is being changed by many others; retry")

    async def _delete(
        self, writing: Writing, name: str, key: EntityKey, etag: str, by_if_match: bool
    ) -> tuple[int, str]:
        """Delete it as ``DeleteEntity`` does; the namespace's revision, and the etag that the entity has then."""
        # The dot keeps the id apart from any that a caller may choose.
        request_id = f"{writing.request_id}.delete" if writing.request_id else ""
        mutation = Mutation(Kind.DELETE, name, key, "name", etag=etag, by_if_match=by_if_match)
        revision, outcome = await self._writer.write_one(writing._replace(request_id=request_id), mutation)
        return revision, etag_of(outcome.revision)

    async def _blank(self, namespace: Namespace, key: EntityKey, after: int) -> int:
        """Blank some of the changes after the revision *after*; the revision up to which all are blank then."""
        async with self._database.connection() as connection:
            try:
                _, head_rows, changes = await pipeline(
                    connection,
                    Statement("BEGIN"),
                    Statement(changelog.LOCK_HEAD, (namespace.id,)),
                    select_changes(namespace.id, key, after),
                )
                if not head_rows or head_rows[0][0] != namespace.epoch or not changes:
                    await connection.rollback()
                    return after
                await pipeline(connection, *blank(namespace.id, changes), Statement("COMMIT"))
            except BaseException:
                if not connection.closed:
                    await connection.rollback()
                raise
        last: int = changes[-1][0]
        return last
