"""A walk over all live entities at one revision, page by page, that can be left and taken up again.

A resume token holds where the walk is and what was counted so far. It is bound to the namespace and the selection, it
is sealed, and it lives for 10 minutes. So long after its last page a walk also holds a lease at the owner, which keeps
the log from being cut under it; one that ends with its first page needs none.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import orjson
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.errors import Error, InvalidArgument, OutOfRange, invalid_field
from services.runtime.page_tokens import binding_of, open_token, seal
from services.stream.selection import Selection
from services.stream.upstream import CALL_SECONDS, Lease, Logs, Page

LIFETIME_SECONDS = 600
# A lease is renewed with the first page after so long, and lives as much longer than a token.
RENEW_SECONDS = 60
_MODULUS = 2**256


@dataclass(slots=True)
class Walk:
    """Where the walk is: after (type, id), *count* entities sent, *total* the sum of their hashes.

    ``token`` goes on from here; ``lease`` is the name of the lease, if there is one.
    """

    namespace: str
    epoch: str
    revision: int
    after: tuple[str, str] = ("", "")
    count: int = 0
    total: int = 0
    token: str = ""
    done: bool = False
    lease: str = ""
    renewed: float = -math.inf

    async def next_page(self, logs: Logs, selection: Selection) -> Page:
        """Read on; moves nothing yet, so that it can be tried again."""
        if not self.revision:
            return Page((), None)  # nothing was written yet, so the owner may know no such log
        types, ids, after = sorted(selection.types), sorted(selection.ids), selection.walk_from(self.after)
        return selection.cut(await logs.snapshot(self.namespace, self.epoch, self.revision, types, after, ids))

    def take(self, page: Page, selection: Selection) -> list[entity_pb2.Entity]:
        """Step over *page*; the entities in it that belong to the feed."""
        kept = []
        last = entity_pb2.Entity()
        for raw in page.entities:
            last = entity_pb2.Entity.FromString(raw)
            if selection.matches(last):
                selection.show(last)
                kept.append(last)
                digest = hashlib.sha256(f"{last.name} {last.revision}".encode()).digest()
                self.total = (self.total + int.from_bytes(digest)) % _MODULUS
        self.count += len(kept)
        if last.name:
            self.after = (last.type, last.name.rsplit("/", 1)[1])
        self.after = page.end or self.after
        self.done = page.end is None
        return kept

    @property
    def lease_is_due(self) -> bool:
        """Whether the lease has to be taken or renewed before anybody is given a token."""
        return not self.done and time.monotonic() - self.renewed > RENEW_SECONDS

    async def hold(self, logs: Logs) -> None:
        """Take or renew the lease.

        Raises:
            OutOfRange: the log was cut already.
            Unavailable: the owner does not answer, or has too many leases: the walk can go on without.
        """
        self.lease = self.lease or f"snapshots/{secrets.token_hex(8)}"
        ttl = timedelta(seconds=LIFETIME_SECONDS + RENEW_SECONDS)
        lease = Lease(self.namespace, self.epoch, self.lease, (), (), self.revision, ttl)
        # The feed sends nothing meanwhile.
        await logs.put_lease(lease, CALL_SECONDS)
        self.renewed = time.monotonic()

    async def release(self, logs: Logs) -> None:
        """Let the lease go; if that fails, it ends by itself."""
        if self.lease:
            with suppress(Error):
                await logs.delete_lease(self.namespace, self.epoch, self.lease)

    def summary(self) -> feed_pb2.SnapshotDone:
        """How many entities were sent, and their hash."""
        return feed_pb2.SnapshotDone(count=self.count, hash=f"{self.total:064x}")


@dataclass(frozen=True, slots=True)
class ResumeTokens:
    """Seals and opens resume tokens."""

    key: bytes

    def seal(self, walk: Walk, selection: Selection) -> str:
        """The token to go on after what *walk* has taken."""
        position = [walk.epoch, walk.revision, *walk.after, walk.count, f"{walk.total:x}", int(time.time()), walk.lease]
        return seal(self.key, _binding(walk.namespace, selection), orjson.dumps(position))

    def open(self, token: str, namespace: str, selection: Selection) -> Walk:
        """The walk to go on with.

        Raises:
            InvalidArgument: INVALID_FIELD, not a token of this namespace and selection.
            OutOfRange: SNAPSHOT_EXPIRED, older than 10 minutes.
        """
        try:
            position = open_token(self.key, _binding(namespace, selection), token)
        except InvalidArgument:
            raise invalid_field("resume_token", "was not issued for this namespace and selection") from None
        epoch, revision, type_id, entity_id, count, total, issued, lease = orjson.loads(position)
        if time.time() > issued + LIFETIME_SECONDS:
            raise OutOfRange("SNAPSHOT_EXPIRED", "the snapshot was left for too long; start again")
        after = (type_id, entity_id)
        return Walk(namespace, epoch, revision, after, count, int(total, 16), token, lease=lease)


def _binding(namespace: str, selection: Selection) -> bytes:
    return binding_of("leased snapshot", namespace, selection.text)
