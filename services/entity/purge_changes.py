"""Removing a deleted entity for good: a unit of its own that takes its content out of the log in the same transaction.

What stays of each version is its revision, kind, name and uid. The content is blanked in place, without moving a byte
of the unit around it (see ``blanking``), so that nothing that points into the log has to change.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from strandline.entity.v1 import entity_pb2

from services.entity import store, type_store
from services.entity.blanking import blank_change
from services.entity.content import CompiledType
from services.entity.model import EntityKey, StoredEntity, entity_name, etag_of
from services.entity.usage_store import add_usage
from services.runtime.changelog import PURGED, Change
from services.runtime.committer import Decision, Stamp
from services.runtime.database import Row, Statement
from services.runtime.errors import Aborted, NotFound
from services.runtime.units import Unit

MAX_CHANGES: Final = 1000
MAX_BYTES: Final = 16 * 2**20
"""How much of an entity's history one transaction blanks: changes, and bytes of their units, which are written anew."""


@dataclass(kw_only=True, eq=False)
class Purge(Unit):
    """The purge of one entity, whose changes up to the revision ``blanked_to`` are blank already.

    Never two in a batch: what they blank may lie in one unit.
    """

    key: EntityKey
    etag: str = ""
    by_if_match: bool = False
    blanked_to: int = 0


class StillLive(Aborted):
    """The entity must be deleted first. No caller ever sees this."""

    def __init__(self) -> None:
        super().__init__("STILL_LIVE", "delete it first")


class LongHistory(Aborted):
    """More must be blanked than one transaction does. No caller ever sees this."""

    def __init__(self) -> None:
        super().__init__("LONG_HISTORY", "blank some of it first")


@dataclass
class PurgeRound:
    """The purge of a batch."""

    namespace: str
    rows: Sequence[list[Row]]
    _statements: dict[int, list[Statement]] = field(default_factory=dict)

    READS = 3
    """How many statements ``reads`` has."""

    @staticmethod
    def reads(namespace: str, purge: Purge) -> list[Statement]:
        """What deciding *purge* needs: the rows that a round is made of."""
        return [
            type_store.select_types(namespace, {purge.key.type: 0}),
            store.select_entities(namespace, [purge.key]),
            select_changes(namespace, purge.key, purge.blanked_to),
        ]

    def decide(self, purge: Purge, stamp: Stamp) -> Decision:
        """See ``committer.Round``. There is nothing to answer but the position."""
        type_rows, entity_rows, change_rows = self.rows
        name = entity_name(self.namespace, purge.key)
        if not entity_rows:
            raise NotFound("NOT_FOUND", f"there is no {name}", name=name)
        _, entity = store.entity_of(entity_rows[0])
        if entity.live:
            raise StillLive
        if purge.etag and purge.etag != etag_of(entity.revision):
            raise Aborted(
                "ETAG_MISMATCH",
                "the entity has changed since that etag; read it again",
                http_status=412 if purge.by_if_match else None,
                etag=etag_of(entity.revision),
            )
        if is_cut(change_rows) and not purge.validate_only:
            raise LongHistory
        type_ = type_store.type_of(type_rows[0]) if type_rows else None
        entries = CompiledType(type_).stored_entries(entity.data) if type_ is not None else ()
        size = len(entity.message)
        self._statements[id(purge)] = [
            *blank(self.namespace, change_rows),
            *store.remove_entity(self.namespace, purge.key, entries),
            add_usage(self.namespace, {purge.key.type: (0, -size), "": (0, -size)}),
        ]
        tombstone = _tombstone(entity, stamp, purge.actor)
        return Decision([Change(PURGED, purge.key.type, purge.key.id, tombstone)])

    def writes(self, accepted: Iterable[Purge]) -> list[Statement]:
        """See ``committer.Round``."""
        return [statement for purge in accepted for statement in self._statements[id(purge)]]


def _tombstone(entity: StoredEntity, stamp: Stamp, actor: str) -> bytes:
    """The serialized Entity that is left: name, uid, position and times."""
    message = entity_pb2.Entity.FromString(entity.message)
    message.ClearField("data")
    message.ClearField("expire_time")
    message.revision = stamp.revision
    message.etag = etag_of(stamp.revision)
    message.update_time.FromDatetime(stamp.commit_time)
    message.delete_time.FromDatetime(stamp.commit_time)
    message.updated_by = actor
    return message.SerializeToString()


def select_changes(namespace: str, key: EntityKey, after: int) -> Statement:
    """Rows (revision, start, length, bytes, rows there were) of the changes of *key* that follow the revision *after*.

    The bytes begin with the new version, at *start* in the unit and of *length* bytes; what was there before follows.
    """
    return Statement(
        """SELECT revision, start, length, (SELECT substring(body FROM start + 1 FOR size) FROM units
            WHERE namespace = %s AND revision = sized.revision), walked
        FROM (SELECT *, sum(whole) OVER (ORDER BY revision) AS bytes, row_number() OVER (ORDER BY revision) AS position,
                count(*) OVER () AS walked
            FROM (SELECT v.revision, v.start, v.length, u.size, u.whole
                FROM (SELECT revision, start, length FROM versions
                    WHERE namespace = %s AND type = %s AND id = %s AND revision > %s ORDER BY revision LIMIT %s) v
                CROSS JOIN LATERAL (SELECT coalesce(slice.start + slice.length - v.start, v.length) AS size,
                        octet_length(body) AS whole
                    FROM units CROSS JOIN LATERAL previous_slice(body, v.start + v.length) AS slice
                    WHERE namespace = %s AND revision = v.revision OFFSET 0) u) placed
        ) sized WHERE position = 1 OR (position <= %s AND bytes <= %s) ORDER BY revision""",
        (namespace, namespace, key.type, key.id, after, MAX_CHANGES + 1, namespace, MAX_CHANGES, MAX_BYTES),
    )


def is_cut(rows: Sequence[Row]) -> bool:
    """Whether the *rows* of ``select_changes`` are not all that there was."""
    return bool(rows) and rows[0][4] > len(rows)


def blank(namespace: str, rows: Sequence[Row]) -> Iterator[Statement]:
    """Statements that blank the changes in *rows* of ``select_changes``, as far as they are not blank.

    One for each: joined with the units at once, a planner without statistics would walk the whole log.
    """
    for revision, start, length, stored, _ in rows:
        if (blanked := blank_change(stored, length)) != stored:
            yield Statement(
                "UPDATE units SET body = overlay(body PLACING %s FROM %s) WHERE namespace = %s AND revision = %s",
                (blanked, start + 1, namespace, revision),
            )
