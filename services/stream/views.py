"""Units as filters look at them: parsed once for everybody who filters, each part made when somebody asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeAlias

from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.filters.attributes import EntityFields
from services.stream.render import struct_to_json

Facts: TypeAlias = tuple[Mapping[str, Any], EntityFields]
"""What a predicate is asked about: an entity's data and its own fields."""


class ChangeView:
    """One change."""

    def __init__(self, change: feed_pb2.Change) -> None:
        self.change = change

    @cached_property
    def _name(self) -> list[str]:
        """``namespaces/{namespace}/types/{type}[/entities/{entity}]``, in parts."""
        change = self.change
        name = change.entity.name or change.previous.name or change.type.name or change.previous_type.name
        return name.split("/")

    @property
    def type_id(self) -> str:
        return self._name[3]

    @cached_property
    def entity_id(self) -> str:
        """``{type}/{id}``; empty for a change of the type."""
        return f"{self._name[3]}/{self._name[5]}" if len(self._name) > 5 else ""

    @cached_property
    def now(self) -> Facts | None:
        """After the change; None: there is no content."""
        return facts_of(self.change.entity)

    @cached_property
    def before(self) -> Facts | None:
        """Before the change; None: there was nothing, or its content is gone."""
        return facts_of(self.change.previous)


class UnitView:
    """One unit."""

    def __init__(self, body: bytes) -> None:
        self.unit = feed_pb2.Unit.FromString(body)
        self.changes = [ChangeView(change) for change in self.unit.changes]


def facts_of(entity: entity_pb2.Entity) -> Facts | None:
    """What a predicate is asked about; None: what was purged has lost its data and matches no filter, not even NOT."""
    return (struct_to_json(entity.data), EntityFields(entity)) if entity.HasField("data") else None
