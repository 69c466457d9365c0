"""Which schemas may follow which: a pure module, schemas in, named differences with JSON pointers out.

A schema accepts another's documents when nothing is valid by the other and invalid by it: ``emptiness`` decides that,
``differences`` says where it fails, ``nodes`` reads the schemas. The answer "compatible" is always right; what is not
seen to be compatible is refused, with the rule. No other module of the services is needed, and none is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final

from services.entity.compatibility.differences import RULES, Difference, narrowed
from services.entity.compatibility.emptiness import Budget
from services.entity.compatibility.fields import absent_fields
from services.entity.compatibility.nodes import Document, Interner, NotASchema, is_legacy

__all__ = ["RULES", "Comparison", "Difference", "Mode", "NotASchema", "absent_fields", "as_type", "is_legacy"]

MAX_STEPS: Final = 400_000
"""For one comparison with all versions: about a second, at worst three."""


class Mode(IntEnum):
    """What a type's compatibility promises; values of ``strandline.entity.v1.EntityType.Compatibility``.

    BACKWARD: what was valid stays valid. FORWARD: what will be valid was valid. FULL: both. The ``TRANSITIVE`` ones
    promise it for all earlier versions, the others for the last one.
    """

    NONE = 1
    BACKWARD = 2
    FORWARD = 3
    FULL = 4
    BACKWARD_TRANSITIVE = 5
    FORWARD_TRANSITIVE = 6
    FULL_TRANSITIVE = 7

    @property
    def is_transitive(self) -> bool:
        return self >= Mode.BACKWARD_TRANSITIVE

    @property
    def keeps_old(self) -> bool:
        """Whether what was valid stays valid."""
        return self in (Mode.BACKWARD, Mode.FULL, Mode.BACKWARD_TRANSITIVE, Mode.FULL_TRANSITIVE)

    @property
    def keeps_new(self) -> bool:
        """Whether what will be valid was valid."""
        return self in (Mode.FORWARD, Mode.FULL, Mode.FORWARD_TRANSITIVE, Mode.FULL_TRANSITIVE)


class Comparison:
    """*schema* as the successor of *versions*, oldest first; the last one is in force.

    Raises:
        NotASchema: when a schema is none that can be compared.
    """

    def __init__(self, versions: Sequence[Any], schema: Any, max_steps: int = MAX_STEPS) -> None:
        self._interner = Interner()
        self._new = Document(schema, self._interner)
        self._versions = versions[::-1]
        self._max_steps = max_steps
        self._budget = Budget(max_steps)
        self._known: dict[tuple[int, bool], list[Difference]] = {}

    @property
    def steps(self) -> int:
        """How much was spent up to now."""
        return self._max_steps - self._budget.left

    def differences(self, mode: Mode) -> list[Difference]:
        """What *mode* does not allow; nothing if the schema is compatible."""
        found: dict[Difference, None] = {}
        for place in range(len(self._versions) if mode.is_transitive else min(1, len(self._versions))):
            if mode.keeps_old:
                found.update(dict.fromkeys(self._narrowed(place, backward=True)))
            if mode.keeps_new:
                found.update(dict.fromkeys(self._narrowed(place, backward=False)))
        return list(found)

    def allowed_by(self) -> list[Mode]:
        """The modes that allow the schema."""
        return [mode for mode in Mode if not self.differences(mode)]

    def _narrowed(self, place: int, *, backward: bool) -> list[Difference]:
        key = (place, backward)
        if key not in self._known:
            old = Document(self._versions[place], self._interner)
            loose, strict = (old, self._new) if backward else (self._new, old)
            self._known[key] = narrowed(loose, strict, self._budget, backward=backward)
        return self._known[key]


def as_type(schema: Any) -> Any:
    """*schema* as a type applies it: closed at its top, unless it says otherwise.

    An earlier dialect than 2020-12 comes from elsewhere, and is taken as it is written.
    """
    if (
        not isinstance(schema, dict)
        or schema.get("type") != "object"
        or "additionalProperties" in schema
        or "unevaluatedProperties" in schema
        or is_legacy(schema)
    ):
        return schema
    return {**schema, "additionalProperties": False}
