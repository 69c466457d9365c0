"""Entities as they were: at a revision, or at a time, which is resolved to a revision once and for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from strandline.entity.v1 import entity_pb2

from services.entity import versions
from services.entity.as_of import select_state_page, select_states, state_of
from services.entity.catalog import Catalog, missing_type
from services.entity.content import CompiledType
from services.entity.lists import Page, Query, parsed_filter
from services.entity.model import MAX_ANSWER_BYTES, EntityKey
from services.entity.reads import Batch, current_head
from services.runtime import wire
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head, select_head, select_revision_at
from services.runtime.database import Database, Row
from services.runtime.errors import FailedPrecondition, NotFound, OutOfRange, invalid_field
from services.runtime.filters import compile_predicate, parse_filter
from services.runtime.filters.attributes import EntityFields
from services.runtime.page_tokens import binding_of, open_token, page_size, seal

MAX_EXAMINED: Final = 10_000
"""Entities that a page of a list examines."""
_AT_ONCE: Final = 500
"""Of those, how many are read and tested before other calls have their turn."""
MAX_EXAMINED_BYTES: Final = 64 * 2**20
"""What a page examines, when entities are large; a page that ends there may be short or empty."""


@dataclass(frozen=True, slots=True)
class AsOf:
    """The moment that a read asks for: a revision, or a time."""

    revision: int = 0
    time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """A revision and when it was committed, if that is known; *head* is where the log was when it was looked up."""

    revision: int
    commit_time: datetime | None
    head: Head


@dataclass(frozen=True, slots=True)
class Revisions:
    """A page of the versions of one entity, as rows of ``versions.select_versions_of``."""

    head: Head
    rows: Sequence[Row]
    next_page_token: str


class History:
    """Reads the past of entities. Every answer's head has the revision that was read as its own."""

    def __init__(self, database: Database, types: Catalog, token_key: bytes) -> None:
        self._database = database
        self._types = types
        self._token_key = token_key

    async def moment_of(self, namespace: Namespace, time: datetime, minimum: MinRevision) -> Moment:
        """The newest revision at *time*; the head's if that lies in the future, 0 before the first.

        Raises:
            OutOfRange: COMPACTED, it was before everything that the log still has.
        """
        moment, _ = await self._newest_at(namespace, time, minimum)
        return moment

    async def time_of(self, namespace: Namespace, revision: int, minimum: MinRevision) -> Moment:
        """When *revision* was committed."""
        head_rows, rows = await self._database.read(
            namespace.id, select_head(namespace.id), versions.select_commit_time(namespace.id, revision)
        )
        head = current_head(namespace, head_rows, minimum)
        check_readable(head, revision)
        return Moment(revision, rows[0][0] if rows else None, head)

    async def head(self, namespace: Namespace, minimum: MinRevision) -> Head:
        """Where the log is."""
        (rows,) = await self._database.read(namespace.id, select_head(namespace.id))
        return current_head(namespace, rows, minimum)

    async def revision_of(self, namespace: Namespace, as_of: AsOf, minimum: MinRevision) -> int:
        """The revision that *as_of* means from now on.

        Raises:
            FailedPrecondition: FUTURE_REVISION, what will be true then is not known yet.
        """
        if as_of.time is None:
            return as_of.revision
        moment, ahead = await self._newest_at(namespace, as_of.time, minimum)
        if ahead:
            raise FailedPrecondition(
                "FUTURE_REVISION", "as_of_time lies in the future", head_revision=str(moment.head.revision)
            )
        return moment.revision

    async def _newest_at(self, namespace: Namespace, time: datetime, minimum: MinRevision) -> tuple[Moment, bool]:
        """The newest revision at *time*, and whether that is still to come."""
        head_rows, rows = await self._database.read(
            namespace.id, select_head(namespace.id), select_revision_at(namespace.id, time)
        )
        head = current_head(namespace, head_rows, minimum)
        revision, commit_time, ahead = rows[0] if rows else (0, None, False)
        if commit_time is None and revision:
            raise compacted(head)
        return Moment(revision, commit_time, head), ahead

    async def states(
        self,
        namespace: Namespace,
        keys: Sequence[EntityKey],
        revision: int,
        minimum: MinRevision | None = None,
        *,
        show_deleted: bool = False,
    ) -> tuple[Head, list[bytes | None]]:
        """Each of *keys* serialized, None if it was not there; fewer than *keys* when they are beyond 3 MiB."""
        head_rows, rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            select_states(namespace.id, keys, revision, MAX_ANSWER_BYTES, show_deleted=show_deleted),
        )
        head = current_head(namespace, head_rows, minimum)
        check_readable(head, revision)
        return as_read(head, revision), [message for _, message in map(state_of, rows)]

    async def get(
        self, namespace: Namespace, key: EntityKey, as_of: AsOf, minimum: MinRevision
    ) -> tuple[Head, bytes | None]:
        """The serialized entity, deleted or not; None if it was not there."""
        revision = await self.revision_of(namespace, as_of, minimum)
        head, (message,) = await self.states(namespace, [key], revision, minimum, show_deleted=True)
        return head, message

    async def batch(
        self, namespace: Namespace, type_id: str, ids: Sequence[str], as_of: AsOf, minimum: MinRevision
    ) -> Batch:
        """Those of *ids* that were alive, up to 3 MiB."""
        revision = await self.revision_of(namespace, as_of, minimum)
        if not ids:
            ids = [""]  # none has this id: the moment is checked all the same
        keys = [EntityKey(type_id, entity_id) for entity_id in ids]
        head, states = await self.states(namespace, keys, revision, minimum)
        found: dict[str, bytes | None] = dict.fromkeys(ids[len(states) :])
        found |= {entity_id: message for entity_id, message in zip(ids, states, strict=False) if message is not None}
        return Batch(head, found)

    async def page(self, namespace: Namespace, query: Query, as_of: AsOf, minimum: MinRevision) -> Page:
        """One page of a list, in the order of ids.

        Raises:
            NotFound: there is no such type, and nothing of it was ever there.
            InvalidArgument: filter or token; or an order was asked for.
            FailedPrecondition: FUTURE_REVISION.
            OutOfRange: COMPACTED.
        """
        if query.order_by:
            raise invalid_field("order_by", "a list as of an earlier moment is in the order of ids; leave it out")
        if query.search:
            raise invalid_field("search", "only what is there now can be searched; leave it out, or as_of")
        binding = _binding_of_list(namespace, query, as_of)
        if query.page_token:
            revision, after = _decode_place(open_token(self._token_key, binding, query.page_token))
        else:
            revision, after = await self.revision_of(namespace, as_of, minimum), ""
        compiled = (await self._types.learn(namespace.id, [query.type_id])).get(query.type_id)
        walk = _Walk(namespace, query, compiled, revision, after)
        head = await walk.run(self._database, minimum)
        if compiled is None and not query.page_token and not walk.examined:
            raise missing_type(query.type_id)
        token = seal(self._token_key, binding, _encode_place(revision, walk.after)) if walk.more else ""
        return Page(as_read(head, revision), walk.found, token)

    async def revisions(
        self, namespace: Namespace, key: EntityKey, size: int, page_token: str, minimum: MinRevision
    ) -> Revisions:
        """A page of the versions of an entity, newest first.

        Raises:
            NotFound: it has none.
        """
        binding = binding_of("revisions", namespace.id, namespace.epoch, *key)
        before = int(open_token(self._token_key, binding, page_token)) if page_token else 2**62
        head_rows, rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            versions.select_versions_of(namespace.id, key, before, page_size(size) + 1, MAX_ANSWER_BYTES),
        )
        head = current_head(namespace, head_rows, minimum)
        if not rows and not page_token:
            raise NotFound("NOT_FOUND", f"there is no {key.type} {key.id}", type=key.type, id=key.id)
        more = bool(rows) and (len(rows) > page_size(size) or rows[0][5] > len(rows))
        rows = rows[: page_size(size)]
        token = seal(self._token_key, binding, str(rows[-1][0]).encode()) if more else ""
        return Revisions(head, rows, token)


class _Walk:
    """A walk over the entities of a type that ends when the page is full, or was examined enough."""

    def __init__(
        self, namespace: Namespace, query: Query, compiled: CompiledType | None, revision: int, after: str
    ) -> None:
        self._namespace = namespace
        self._type_id = query.type_id
        self._show_deleted = query.show_deleted
        self._size = page_size(query.page_size)
        self._revision = revision
        # Literals are compared with the type as it is now; of one that is gone, nothing is known.
        node = (
            parsed_filter(query.filter, compiled)
            if compiled is not None
            else parse_filter(query.filter, of_entity=True)
        )
        self._matches = compile_predicate(node) if node is not None else None
        self.after = after
        self.found: list[bytes] = []
        self.examined = 0
        self.more = False
        self._room = MAX_ANSWER_BYTES
        self._weight = 0

    async def run(self, database: Database, minimum: MinRevision) -> Head:
        """Fill the page; the head as it was last seen."""
        while True:
            limit = min(_AT_ONCE, MAX_EXAMINED - self.examined)
            if self._matches is None:
                limit = min(limit, self._size - len(self.found) + 1)
            head_rows, rows = await database.read(
                self._namespace.id,
                select_head(self._namespace.id),
                select_state_page(
                    self._namespace.id,
                    self._revision,
                    (self._type_id, self.after),
                    self._type_id,
                    limit,
                    MAX_ANSWER_BYTES,
                    show_deleted=self._show_deleted,
                ),
            )
            head = current_head(self._namespace, head_rows, minimum)
            check_readable(head, self._revision)
            taken = self._take(rows)
            self.more = taken == limit or (bool(rows) and rows[0][3] > taken)
            full = taken < len(rows) or len(self.found) == self._size
            if not self.more or full or self.examined == MAX_EXAMINED or self._weight > MAX_EXAMINED_BYTES:
                return head

    def _take(self, rows: Sequence[Row]) -> int:
        """Test *rows* until the page is full; how many of them were."""
        for taken, row in enumerate(rows):
            (_, entity_id), message = state_of(row)
            if message is not None and self._belongs(message):
                if len(self.found) == self._size or (self.found and len(message) > self._room):
                    return taken
                self.found.append(message)
                self._room -= len(message)
            self.after = entity_id
            self.examined += 1
            self._weight += len(message or b"")
        return len(rows)

    def _belongs(self, message: bytes) -> bool:
        if self._matches is None:
            return True
        entity = entity_pb2.Entity.FromString(message)
        return self._matches(wire.decode_struct(entity.data), EntityFields(entity))


def as_read(head: Head, revision: int) -> Head:
    """*head* as an answer of *revision* shows it."""
    return Head(head.namespace, head.epoch, revision, head.horizon)


def check_readable(head: Head, revision: int) -> None:
    """Refuse a revision that does not exist yet, or of which the log does not know everything any more."""
    MinRevision(revision).check(head.revision, head.epoch)
    if revision < head.horizon:
        raise compacted(head)


def compacted(head: Head) -> OutOfRange:
    return OutOfRange(
        "COMPACTED", "that part of the log is gone; ask for a later one", horizon_revision=str(head.horizon)
    )


def _binding_of_list(namespace: Namespace, query: Query, as_of: AsOf) -> bytes:
    return binding_of(
        "list as of",
        namespace.id,
        namespace.epoch,
        query.type_id,
        query.filter,
        "deleted" if query.show_deleted else "",
        str(as_of.revision),
        as_of.time.isoformat() if as_of.time is not None else "",
    )


def _encode_place(revision: int, after: str) -> bytes:
    return f"{revision} {after}".encode()


def _decode_place(raw: bytes) -> tuple[int, str]:
    revision, _, after = raw.decode().partition(" ")
    return int(revision), after
