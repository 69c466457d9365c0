"""What is known of a value of one kind, gathered from all the schemas it has to meet or to violate.

Each class takes in demands one by one and says when they exclude each other. What is not understood is left out: fewer
demands can only make fewer contradictions, so that a contradiction found is always a real one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor, inf
from typing import Any, Final, NamedTuple, TypeAlias

from services.entity.compatibility.nodes import Node, Part, value_key
from services.entity.compatibility.values import is_multiple

MAX_VALUES: Final = 64
_MATCH_EVERYTHING: Final = frozenset(("", ".*", "^", "$", "^.*", ".*$"))


class Literal(NamedTuple):
    """*node* is met (*positive*), or violated: as a whole, or in one *part*.

    With a part, a positive literal says one thing alone. Of the branches of ``oneOf`` the one at the key is met and no
    other (``oneOf``), or some branch after it is (``oneOf after``). The property that is the key is ``present`` or
    ``absent``.
    """

    node: Node
    positive: bool
    part: Part | None = None


Literals: TypeAlias = frozenset[Literal]


@dataclass
class NumberFacts:
    lower: float = -inf
    above_lower: bool = False
    upper: float = inf
    below_upper: bool = False
    multiples: set[float] = field(default_factory=set)
    non_multiples: set[float] = field(default_factory=set)

    def copy(self) -> NumberFacts:
        return NumberFacts(
            self.lower, self.above_lower, self.upper, self.below_upper, set(self.multiples), set(self.non_multiples)
        )

    def at_least(self, bound: float, *, exclusive: bool) -> None:
        if bound > self.lower or (bound == self.lower and exclusive):
            self.lower, self.above_lower = bound, exclusive

    def at_most(self, bound: float, *, exclusive: bool) -> None:
        if bound < self.upper or (bound == self.upper and exclusive):
            self.upper, self.below_upper = bound, exclusive

    def contradict(self) -> bool:
        if self.lower > self.upper or (self.lower == self.upper and (self.above_lower or self.below_upper)):
            return True
        return any(is_multiple(known, divisor) for divisor in self.non_multiples for known in self.multiples)

    def values(self) -> list[Any] | None:
        """All the values there can be, if they are few."""
        if self.lower == self.upper:
            return [self.lower]
        if not self.multiples or self.lower == -inf or self.upper == inf:
            return None
        step = Fraction(repr(max(self.multiples)))
        first, last = ceil(Fraction(repr(self.lower)) / step), floor(Fraction(repr(self.upper)) / step)
        if last - first >= MAX_VALUES:
            return None
        return [_plain(place * step) for place in range(first, last + 1)]


def _plain(value: Fraction) -> float:
    return value.numerator if value.denominator == 1 else float(value)


@dataclass
class StringFacts:
    least: int = 0
    most: float = inf
    patterns: set[str] = field(default_factory=set)
    not_patterns: set[str] = field(default_factory=set)

    def copy(self) -> StringFacts:
        return StringFacts(self.least, self.most, set(self.patterns), set(self.not_patterns))

    def contradict(self) -> bool:
        return self.least > self.most or not self.not_patterns.isdisjoint(self.patterns | _MATCH_EVERYTHING)

    def values(self) -> list[Any] | None:
        return [""] if self.most == 0 else None


class PropertyGroup(NamedTuple):
    """Schemas of properties that belong together: by name, by pattern, and of the rest. None demands nothing."""

    names: dict[str, Node | None]
    patterns: dict[str, Node | None]
    rest: Node | None


class SomeProperty(NamedTuple):
    """There is a property with a name outside of *names* and *patterns* and such a name and value.

    *unknown*: its name is none that any schema of properties names.
    """

    names: frozenset[str]
    patterns: frozenset[str]
    name: Literals
    value: Literals
    pattern: str | None = None
    unknown: bool = False


@dataclass
class ObjectFacts:
    required: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    least: int = 0
    most: float = inf
    groups: list[PropertyGroup] = field(default_factory=list)
    names: set[Literal] = field(default_factory=set)
    of_property: dict[str, frozenset[Literal]] = field(default_factory=dict)
    some: list[SomeProperty] = field(default_factory=list)
    # What was found possible already: until more is demanded, it needs no second look.
    possible_names: set[str] = field(default_factory=set)
    possible_some: int = 0

    def copy(self) -> ObjectFacts:
        return ObjectFacts(
            set(self.required),
            set(self.absent),
            self.least,
            self.most,
            list(self.groups),
            set(self.names),
            dict(self.of_property),
            list(self.some),
            set(self.possible_names),
            self.possible_some,
        )

    def add_group(self, group: PropertyGroup) -> None:
        self.groups.append(group)
        self._look_again()

    def add_names(self, literal: Literal) -> None:
        self.names.add(literal)
        self._look_again()

    def add_to_property(self, name: str, literal: Literal) -> None:
        self.of_property[name] = self.of_property.get(name, frozenset()) | {literal}
        self.possible_names.discard(name)
        self.possible_some = 0

    def _look_again(self) -> None:
        self.possible_names.clear()
        self.possible_some = 0

    def contradict(self) -> bool:
        return max(self.least, len(self.required)) > self.most or not self.required.isdisjoint(self.absent)

    def known_names(self) -> set[str]:
        names = self.required | self.of_property.keys()
        for group in self.groups:
            names |= group.names.keys()
        return names


class ItemGroup(NamedTuple):
    """Schemas of items: by position, and of the rest."""

    prefix: list[Node | None]
    rest: Node | None


class SomeItem(NamedTuple):
    """There is an item at the position *first*, or (*onwards*) there or behind, with such a value."""

    first: int
    onwards: bool
    value: Literals


class Count(NamedTuple):
    """How many items meet *node*: at least, or at most, *number*."""

    node: Node
    number: int


@dataclass
class ArrayFacts:
    least: int = 0
    most: float = inf
    unique: bool = False
    repeated: bool = False
    groups: list[ItemGroup] = field(default_factory=list)
    every: set[Literal] = field(default_factory=set)
    some: list[SomeItem] = field(default_factory=list)
    at_least: list[Count] = field(default_factory=list)
    at_most: list[Count] = field(default_factory=list)

    def copy(self) -> ArrayFacts:
        return ArrayFacts(
            self.least,
            self.most,
            self.unique,
            self.repeated,
            list(self.groups),
            set(self.every),
            list(self.some),
            list(self.at_least),
            list(self.at_most),
        )

    def contradict(self) -> bool:
        return self.least > self.most or (self.repeated and (self.unique or self.most < 2))


Facts: TypeAlias = NumberFacts | StringFacts | ObjectFacts | ArrayFacts | None
_FACTS: Final[dict[str, type[NumberFacts | StringFacts | ObjectFacts | ArrayFacts]]] = {
    "number": NumberFacts,
    "string": StringFacts,
    "object": ObjectFacts,
    "array": ArrayFacts,
}

_VALUES: Final[dict[str, dict[Any, Any]]] = {
    "null": {value_key(None): None},
    "boolean": {value_key(value): value for value in (False, True)},
}


class Case:
    """A value of one kind, and everything that it has to meet or to violate.

    ``values`` are all there can be, by key, where they are few. ``seen`` are the literals taken in; ``met`` and
    ``violated`` what they say of nodes, by ``Node.same``. Still to be done: ``refutations`` and ``choices``, of each of
    which one list of literals holds (from what is violated, and from what is met), and ``goals``, none of which is met.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.facts: Facts = _FACTS[kind]() if kind in _FACTS else None
        self.values: dict[Any, Any] | None = _VALUES.get(kind)
        self.seen: set[Literal] = set()
        self.met: set[int] = set()
        self.violated: set[int] = set()
        self.met_parts: set[int] = set()
        self.violated_parts: set[int] = set()
        self.refutations: list[list[list[Literal]]] = []
        self.choices: list[list[list[Literal]]] = []
        self.goals: list[list[Node]] = []

    def copy(self) -> Case:
        other = Case.__new__(Case)
        other.kind = self.kind
        other.facts = self.facts.copy() if self.facts is not None else None
        other.values = self.values
        other.seen = set(self.seen)
        other.met = set(self.met)
        other.violated = set(self.violated)
        other.met_parts = set(self.met_parts)
        other.violated_parts = set(self.violated_parts)
        other.refutations = list(self.refutations)
        other.choices = list(self.choices)
        other.goals = list(self.goals)
        return other
