"""The types that this process knows, compiled. Never believed without asking whether the generation still holds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from services.entity import type_store
from services.entity.content import CompiledType
from services.runtime.database import Database, Row, Statement
from services.runtime.errors import NotFound

MAX_TYPES: Final = 5000


class Catalog:
    """A bounded cache, by namespace and type id."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._types: OrderedDict[tuple[str, str], CompiledType] = OrderedDict()

    def recall(self, namespace: str, type_ids: Iterable[str]) -> dict[str, CompiledType]:
        """Those of *type_ids* that are known, perhaps not as they are now."""
        known = {}
        for type_id in type_ids:
            if (compiled := self._types.get((namespace, type_id))) is not None:
                self._types.move_to_end((namespace, type_id))
                known[type_id] = compiled
        return known

    def refresh(
        self, namespace: str, rows: Sequence[Row], known: Mapping[str, CompiledType]
    ) -> dict[str, CompiledType]:
        """The types as they are, from the rows of ``select`` for *known*."""
        fresh = {}
        for row in rows:
            type_ = type_store.type_of(row)
            compiled = known[row[0]] if type_ is None else CompiledType(type_)
            fresh[row[0]] = self._types[(namespace, row[0])] = compiled
        while len(self._types) > MAX_TYPES:
            self._types.popitem(last=False)
        return fresh

    async def learn(self, namespace: str, type_ids: Iterable[str]) -> dict[str, CompiledType]:
        """Those of *type_ids* that exist: from memory, and the rest from the database."""
        wanted = list(type_ids)
        known = self.recall(namespace, wanted)
        if missing := [type_id for type_id in wanted if type_id not in known]:
            (rows,) = await self._database.read(namespace, select(namespace, missing, {}))
            known |= self.refresh(namespace, rows, {})
        return known


def select(namespace: str, type_ids: Iterable[str], known: Mapping[str, CompiledType]) -> Statement:
    """Ask for *type_ids* as they are; what is still as *known* comes without content."""
    return type_store.select_types(
        namespace, {type_id: known[type_id].generation if type_id in known else 0 for type_id in type_ids}
    )


def missing_type(type_id: str) -> NotFound:
    return NotFound("NOT_FOUND", f"there is no type {type_id}", type=type_id)
