"""What must hold of an entity when a unit is committed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strandline.entity.v1 import entity_pb2

from services.entity.model import EntityKey, StoredEntity, etag_of, parse_entity_name
from services.runtime.errors import Aborted, InvalidArgument, invalid_field
from services.runtime.filters import compile_predicate, parse_filter
from services.runtime.filters.ast import Node
from services.runtime.filters.predicate import Predicate


@dataclass(frozen=True, slots=True)
class Precondition:
    """One condition on the entity *name*; exactly one of the three is set. ``matches`` is ``filter``, compiled."""

    name: str
    key: EntityKey
    exists: bool | None = None
    etag: str = ""
    filter: str = ""
    matches: Predicate | None = None

    def holds(self, current: StoredEntity | None) -> bool:
        """Whether the condition is true of the entity as it is; None: there never was one."""
        if self.exists is not None:
            return self.exists == (current is not None and current.live)
        if self.matches is None:
            return current is not None and etag_of(current.revision) == self.etag
        return current is not None and current.live and self.matches(current.data)


def parse_precondition(message: entity_pb2.Precondition, namespace: str, field: str) -> Precondition:
    """The precondition in *message*, which must lie in *namespace*.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` below *field*.
    """
    key = parse_entity_name(message.name, namespace, f"{field}.name")
    condition = message.WhichOneof("condition")
    if condition == "exists":
        return Precondition(message.name, key, exists=message.exists)
    if condition == "etag":
        return Precondition(message.name, key, etag=message.etag)
    node = _parse_filter(message.filter, f"{field}.filter") if condition == "filter" else None
    if node is None:
        raise invalid_field(field, "must say exists, etag or a filter that is not empty")
    return Precondition(message.name, key, filter=message.filter, matches=compile_predicate(node))


def _parse_filter(text: str, field: str) -> Node | None:
    try:
        return parse_filter(text)
    except InvalidArgument as failure:
        raise invalid_field(field, failure.violations[0].message) from None


def check(preconditions: tuple[Precondition, ...], entities: Mapping[EntityKey, StoredEntity]) -> None:
    """Refuse a unit, ``PRECONDITION_FAILED``, unless all its *preconditions* hold of *entities* as they are."""
    for place, precondition in enumerate(preconditions):
        if not precondition.holds(entities.get(precondition.key)):
            raise Aborted(
                "PRECONDITION_FAILED",
                f"preconditions[{place}] does not hold of {precondition.name}",
                precondition=str(place),
                name=precondition.name,
            )
