"""What the members of a namespace may read of the log of ``system``: its own record and their memberships."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.call import Namespace
from services.stream.selection import Selection
from services.stream.upstream import Page
from services.stream.views import ChangeView

_NAMESPACE: Final = "namespace"
_MEMBERSHIP: Final = "membership"


@dataclass(frozen=True, slots=True)
class MembersSelection(Selection):
    """The record of one life of *namespace*, and its memberships (``{namespace}~{user}``), since the revision *began*.

    By their names: whatever a record holds or held, it is of this namespace or not shown. Names come again in the next
    life, and with other people in it; hence the revision.
    """

    namespace: str = ""
    began: int = 0

    def matches(self, entity: entity_pb2.Entity) -> bool:
        return self._is_ours(f"{entity.type}/{entity.name.rsplit('/', 1)[1]}", entity.revision)

    def kind_of(self, view: ChangeView) -> feed_pb2.Change.Kind.ValueType:
        change = view.change
        ours = self._is_ours(view.entity_id, change.entity.revision)
        return change.kind if ours else feed_pb2.Change.KIND_UNSPECIFIED

    def walk_from(self, after: tuple[str, str]) -> tuple[str, str]:
        return self._next(after) or after

    def cut(self, page: Page) -> Page:
        # Where the owner's page ends may be the name of somebody else's record, and the end goes into a token.
        entities = [raw for raw in page.entities if self.matches(entity_pb2.Entity.FromString(raw))]
        return Page(entities, page.end and self._next(page.end))

    def _is_ours(self, entity_id: str, revision: int) -> bool:
        ours = entity_id == f"{_NAMESPACE}/{self.namespace}" or entity_id.startswith(f"{_MEMBERSHIP}/{self.namespace}~")
        return ours and revision >= self.began

    def _next(self, after: tuple[str, str]) -> tuple[str, str] | None:
        """Where to go on for what is ours after *after*, in the order of (type, id); None: nothing is."""
        memberships = (_MEMBERSHIP, f"{self.namespace}~")
        # Greater than every id that is less than the namespace's.
        record = (_NAMESPACE, f"{self.namespace[:-1]}{chr(ord(self.namespace[-1]) - 1)}\U0010ffff")
        if after < memberships:
            return memberships
        if after[0] == _MEMBERSHIP and after[1].startswith(memberships[1]):
            return after
        if after < record:
            return record
        return after if after < (_NAMESPACE, self.namespace) else None


def selection_of_members(namespace: Namespace, began: int) -> MembersSelection:
    """The selection for a life of *namespace* that began at the revision *began* of ``system``."""
    return MembersSelection(
        types=frozenset({_NAMESPACE, _MEMBERSHIP}),
        # No filter, but a text of its own: resume tokens are bound to it.
        filter=f"members of {namespace.id} {namespace.epoch}",
        predicate=None,
        namespace=namespace.id,
        began=began,
    )
