"""What is asked of the committer, and what it answers."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from services.runtime.request_ids import Share


@dataclass(kw_only=True, eq=False)
class Unit:
    """One atomic unit that waits to be committed.

    ``exclusive`` names what the unit writes (entity names, unique values), ``shared`` what it only refers to: two
    units with a conflict never share a batch. ``method`` and ``body_hash`` make a repeated ``request_id`` answerable.
    ``size`` is about how many bytes the unit will take. ``share`` says that the unit is one of many of one request,
    which are remembered together; then ``request_id`` is the share's. ``field`` is where it stands in its request, for
    violations; empty: nowhere.
    """

    actor: str
    method: str
    request_id: str
    body_hash: bytes
    exclusive: frozenset[Hashable]
    shared: frozenset[Hashable] = frozenset()
    size: int = 1000
    validate_only: bool = False
    share: Share | None = None
    field: str = ""

    @property
    def request_key(self) -> tuple[str, str, str]:
        """By which a repetition is known."""
        return (self.actor, self.method, self.request_id)


class Receipt(NamedTuple):
    """An acknowledged unit. ``result`` is None for a repeated request: read it from ``answer`` and the log."""

    revision: int
    epoch: str
    answer: bytes
    result: Any = None


Outcomes: TypeAlias = list[Receipt | Exception]
"""What became of each of some units."""
