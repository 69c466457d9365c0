"""Everything in a namespace as it was at one revision, page by page, for as long as it takes.

First the types as they are declared now, then the live entities in the order of (type, id). Where a page ends stands in
its token and nowhere else, so an export goes on whatever was restarted meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.entity import type_store
from services.entity.catalog import missing_type
from services.entity.history import as_read, check_readable
from services.entity.leases import Leases
from services.entity.model import MAX_ANSWER_BYTES, encode_type
from services.entity.reads import current_head
from services.entity.snapshots import Place, SnapshotReader
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head, select_head
from services.runtime.database import Database
from services.runtime.errors import invalid_field
from services.runtime.page_tokens import binding_of, open_token, seal

_TYPES_AT_ONCE: Final = 500


class _Position(NamedTuple):
    """Behind the type *type*, or, once all types are told, behind the entity (*type*, *id*)."""

    revision: int
    in_types: bool
    type: str
    id: str


@dataclass(frozen=True, slots=True)
class ExportPage:
    """Serialized types and entities; the head's revision is the one that is exported."""

    head: Head
    types: Sequence[bytes]
    entities: Sequence[bytes]
    next_page_token: str


class Exporter:
    """Exports namespaces."""

    def __init__(self, database: Database, snapshots: SnapshotReader, leases: Leases, token_key: bytes) -> None:
        self._database = database
        self._snapshots = snapshots
        self._leases = leases
        self._token_key = token_key

    async def page(
        self, namespace: Namespace, types: Sequence[str], revision: int, page_token: str, minimum: MinRevision
    ) -> ExportPage:
        """One page, of *types* (empty: all) at *revision* (0: the head at the first page).

        Raises:
            InvalidArgument: the token.
            NotFound: one of *types* is not there, now that all is exported as it is now.
            FailedPrecondition: FUTURE_REVISION.
            OutOfRange: COMPACTED or SNAPSHOT_EXPIRED.
        """
        wanted = sorted(set(types))
        binding = binding_of("export", namespace.id, namespace.epoch, *wanted)
        at = _decode(open_token(self._token_key, binding, page_token)) if page_token else None
        if at is not None and revision not in (0, at.revision):
            raise invalid_field("revision", f"the page token is of an export of revision {at.revision}")
        after = at.type if at is not None and at.in_types else ""
        head_rows, rows = await self._database.read(
            namespace.id,
            select_head(namespace.id),
            type_store.select_type_page(namespace.id, after, _TYPES_AT_ONCE, MAX_ANSWER_BYTES),
        )
        head = current_head(namespace, head_rows, minimum)
        at = at or _Position(revision or head.revision, True, "", "")
        check_readable(head, at.revision)
        if wanted and not page_token and at.revision == head.revision:
            # At an earlier revision there may have been types that are gone.
            (found,) = await self._database.read(
                namespace.id, type_store.select_types(namespace.id, dict.fromkeys(wanted, 0))
            )
            if unknown := set(wanted) - {row[0] for row in found}:
                raise missing_type(min(unknown))
        await self._leases.hold(namespace, at.revision)
        if at.in_types:
            declared = [type_ for row in rows if (type_ := type_store.type_of(row[1:])) is not None]
            told = [encode_type(namespace.id, type_) for type_ in declared if not wanted or type_.id in wanted]
            end = (bool(rows) and rows[0][0] == len(rows) < _TYPES_AT_ONCE) or not rows
            following = _Position(at.revision, False, "", "") if end else at._replace(type=declared[-1].id)
            return ExportPage(as_read(head, at.revision), told, (), seal(self._token_key, binding, _encode(following)))
        entities, place = await self._entities(namespace, at, wanted)
        token = seal(self._token_key, binding, _encode(at._replace(type=place[0], id=place[1]))) if place else ""
        return ExportPage(as_read(head, at.revision), (), entities, token)

    async def _entities(
        self, namespace: Namespace, at: _Position, wanted: list[str]
    ) -> tuple[Sequence[bytes], Place | None]:
        if not at.revision:
            return (), None  # nothing was written yet
        return await self._snapshots.read_snapshot(
            namespace.id, namespace.epoch, at.revision, wanted, (at.type, at.id), MAX_ANSWER_BYTES
        )


def _encode(at: _Position) -> bytes:
    return f"{at.revision} {int(at.in_types)} {at.type} {at.id}".encode()


def _decode(raw: bytes) -> _Position:
    revision, in_types, type_id, entity_id = raw.decode().split(" ")
    return _Position(int(revision), in_types == "1", type_id, entity_id)
