"""The net change of every entity between two revisions of a namespace, each entity once.

The log is walked from the first change on; an entity is told of at its last change before the end. So a page depends on
how much was changed, not on how much there is, and no page needs to know what the ones before it told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from strandline.entity.v1 import entity_pb2, history_service_pb2
from strandline.stream.v1 import feed_pb2

from services.entity import versions
from services.entity.diffs import MISSING, FieldChange, differences
from services.entity.history import MAX_EXAMINED_BYTES, History, as_read, check_readable
from services.entity.model import MAX_ANSWER_BYTES, EntityKey, entity_name
from services.runtime import wire
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head, read_units
from services.runtime.database import Database
from services.runtime.errors import invalid_field
from services.runtime.page_tokens import binding_of, open_token, page_size, seal

MAX_EXAMINED: Final = 10_000
"""Changes of the log that a page examines."""
_LOG_BYTES: Final = 2**20
"""Of the log, how much is read before other calls have their turn; a single unit may be larger."""
_AT_ONCE: Final = 500
"""Changes whose entities are looked up together."""

Kind = history_service_pb2.EntityDiff.Kind


@dataclass(frozen=True, slots=True)
class Range:
    """What is asked for: from the state at *start* to that at *end* (0: the head), of *types* (empty: all)."""

    start: int
    end: int
    types: frozenset[str]


class Place(NamedTuple):
    """Before *revision* everything was examined, and of its unit so many changes."""

    revision: int
    done: int


class LoggedChange(NamedTuple):
    """A change of an entity; *at* is the place behind it."""

    key: EntityKey
    at: Place


class Run(NamedTuple):
    """Changes that follow one another, and the place behind all that was read for them."""

    changes: Sequence[LoggedChange]
    behind: Place


@dataclass(frozen=True, slots=True)
class DiffPage:
    """Serialized ``EntityDiff``s; the head's revision is the one that they lead to."""

    head: Head
    diffs: Sequence[bytes]
    next_page_token: str


class RevisionDiffs:
    """Compares two revisions of a namespace."""

    def __init__(self, database: Database, history: History, token_key: bytes) -> None:
        self._database = database
        self._history = history
        self._token_key = token_key

    async def page(
        self, namespace: Namespace, asked: Range, size: int, page_token: str, minimum: MinRevision
    ) -> DiffPage:
        """One page.

        Raises:
            InvalidArgument: the token, or the range runs backwards.
            FailedPrecondition: FUTURE_REVISION.
            OutOfRange: COMPACTED.
        """
        binding = binding_of(
            "diff", namespace.id, namespace.epoch, str(asked.start), str(asked.end), *sorted(asked.types)
        )
        head = await self._history.head(namespace, minimum)
        if page_token:
            end, *place = map(int, open_token(self._token_key, binding, page_token).split())
            at = Place(*place)
        else:
            end, at = asked.end or head.revision, Place(asked.start + 1, 0)
        check_range(head, asked.start, end)
        page = _Page(namespace.id, page_size(size))
        examined = 0
        while at.revision <= end and not page.full and examined < MAX_EXAMINED and page.weight < MAX_EXAMINED_BYTES:
            run = await self._run(namespace.id, at, end, MAX_EXAMINED - examined)
            examined += max(len(run.changes), 1)
            wanted = [change for change in run.changes if not asked.types or change.key.type in asked.types]
            at = await self._tell(namespace, asked.start, end, wanted, page) or run.behind
        token = b"" if at.revision > end else f"{end} {at.revision} {at.done}".encode()
        return DiffPage(as_read(head, end), page.diffs, seal(self._token_key, binding, token) if token else "")

    async def _run(self, namespace: str, at: Place, end: int, limit: int) -> Run:
        """At most *limit* changes from *at* on."""
        _, bodies = await read_units(self._database, namespace, at.revision - 1, end, _LOG_BYTES)
        changes: list[LoggedChange] = []
        behind = Place(end + 1, 0)
        for body in bodies:
            unit = feed_pb2.Unit.FromString(body)
            first = at.done if unit.revision == at.revision else 0
            for done, change in enumerate(unit.changes[first:], first + 1):
                behind = Place(unit.revision, done)
                changes += _logged(change, behind)
                if len(changes) == limit:
                    return Run(changes, behind)
            behind = Place(unit.revision + 1, 0)
        return Run(changes, behind)

    async def _tell(
        self, namespace: Namespace, start: int, end: int, changes: Sequence[LoggedChange], page: _Page
    ) -> Place | None:
        """Put the net changes of those entities into *page* that change here for the last time.

        Returns:
            The place that was reached if the page is full before the end of *changes*, else None.
        """
        for first in range(0, len(changes), _AT_ONCE):
            chunk = changes[first : first + _AT_ONCE]
            keys = list({change.key for change in chunk})
            (rows,) = await self._database.read(namespace.id, versions.select_latest(namespace.id, keys, end))
            latest = {EntityKey(type_id, entity_id): revision for type_id, entity_id, revision in rows}
            last = [change for change in chunk if latest.get(change.key) == change.at.revision]
            while last:
                keys = [change.key for change in last]
                _, before = await self._history.states(namespace, keys, start)
                _, after = await self._history.states(namespace, keys, end)
                known = list(zip(last, before, after, strict=False))  # as far as both are
                for change, old, new in known:
                    if not page.add(change.key, old, new):
                        return Place(change.at.revision, change.at.done - 1)
                last = last[len(known) :]
        return None


class _Page:
    """The differences found so far; at most *size* of them, and 3 MiB."""

    def __init__(self, namespace: str, size: int) -> None:
        self._namespace = namespace
        self._size = size
        self._room = MAX_ANSWER_BYTES
        self.diffs: list[bytes] = []
        self.full = False
        self.weight = 0
        """Bytes that were compared."""

    def add(self, key: EntityKey, before: bytes | None, after: bytes | None) -> bool:
        """Take the net change of one entity, if there is any; False when the page is full."""
        self.weight += len(before or b"") + len(after or b"")
        kind, diff = encode_diff(entity_name(self._namespace, key), before, after)
        if kind == Kind.KIND_UNSPECIFIED:
            return True
        self.full = len(self.diffs) == self._size or (bool(self.diffs) and len(diff) > self._room)
        if not self.full:
            self.diffs.append(diff)
            self._room -= len(diff)
        return not self.full


def check_range(head: Head, start: int, end: int) -> None:
    """Refuse a range that runs backwards, or of which not everything is known."""
    check_readable(head, start)
    check_readable(head, end)
    if start > end:
        raise invalid_field("from_revision", "must not lie after to_revision")


def encode_diff(name: str, before: bytes | None, after: bytes | None) -> tuple[int, bytes]:
    """The net change from one to the other of two serialized live entities (None: there was none).

    Returns:
        Its kind, unspecified if the content is the same, and the serialized ``EntityDiff``.
    """
    old, new = (entity_pb2.Entity.FromString(message or b"") for message in (before, after))
    changes = differences(wire.decode_struct(old.data), wire.decode_struct(new.data))
    kind = Kind.KIND_UNSPECIFIED
    if changes or (before is None) != (after is None):
        kind = Kind.CREATED if before is None else Kind.DELETED if after is None else Kind.UPDATED
    return kind, (
        wire.text(1, name)
        + wire.integer(2, kind)
        + wire.integer(3, old.revision)
        + wire.integer(4, new.revision)
        + b"".join(wire.delimited(5, encode_change(change)) for change in changes)
    )


def encode_change(change: FieldChange) -> bytes:
    """Serialize ``strandline.entity.v1.FieldChange``."""
    before = b"" if change.before is MISSING else wire.delimited(2, wire.encode_value(change.before))
    after = b"" if change.after is MISSING else wire.delimited(3, wire.encode_value(change.after))
    return wire.text(1, change.pointer) + before + after


def _logged(change: feed_pb2.Change, at: Place) -> list[LoggedChange]:
    """*change* if it is one of an entity, not of a type."""
    name = change.entity.name or change.previous.name
    if not name:
        return []
    _, _, _, type_id, _, entity_id = name.split("/")
    return [LoggedChange(EntityKey(type_id, entity_id), at)]
