"""Whether there is any value that meets some schemas and violates others: the question behind every comparison.

"All that is valid by A is valid by B" is "nothing meets A and violates B". The demands are taken in for one kind of
value at a time; choices (``anyOf``, ``oneOf``, ``if``, a violated schema of several keywords) are tried one after the
other, and properties and items are smaller questions of the same sort. A question that comes up again inside itself is
answered with yes there: values are finite, so a smallest value that would disprove it does not exist.

*Empty* is always the truth; *not empty* may be said of something empty that is not understood.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from services.entity.compatibility.demands import (
    bound_array,
    bound_number,
    bound_object,
    bound_string,
    branch_literals,
    dependencies,
    violate_array,
    violate_number,
    violate_object,
    violate_string,
    violate_type,
)
from services.entity.compatibility.facts import (
    ArrayFacts,
    Case,
    Count,
    Literal,
    Literals,
    NumberFacts,
    ObjectFacts,
    SomeProperty,
    StringFacts,
)
from services.entity.compatibility.nodes import KINDS, Node, Part, kind_of
from services.entity.compatibility.values import Evaluator, matches

MAX_STEPS: Final = 500_000
MAX_DEPTH: Final = 90
_NEVER: Final = 10**9
_REST: Final = frozenset(("additionalProperties", "unevaluatedProperties"))


class TooComplex(Exception):
    """The schemas cannot be compared within the bound."""


class Budget:
    """How many steps are left; a step takes about two microseconds."""

    def __init__(self, steps: int = MAX_STEPS) -> None:
        self.left = steps

    def spend(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise TooComplex


class Emptiness:
    """Answers for the schemas of one comparison; raises ``TooComplex`` when the budget is spent."""

    def __init__(self, budget: Budget) -> None:
        self.gave_up = False
        """Something was nested so deeply that it was not looked at."""
        self._budget = budget
        self._depth = 0
        self._evaluator = Evaluator(budget.spend)
        self._known: dict[Literals, bool] = {}
        self._open: dict[Literals, int] = {}
        # The outermost open question whose answer the present one has relied on.
        self._relied_on = _NEVER

    def is_empty(self, literals: Iterable[Literal]) -> bool:
        """Whether nothing meets and violates what *literals* say."""
        question = frozenset(literals)
        self._budget.spend(1 + len(question))
        if question in self._known:
            return self._known[question]
        if question in self._open:
            self._relied_on = min(self._relied_on, self._open[question])
            return True
        place = self._open[question] = len(self._open)
        outer, self._relied_on = self._relied_on, _NEVER
        try:
            # Loops and not all(...), here and below: each generator would be one more frame of the recursion.
            empty = True
            for kind in KINDS:
                if not self._closes(Case(kind), question):
                    empty = False
                    break
        finally:
            del self._open[question]
        # An answer that relies on a question still open is not kept: that one may yet be answered with no.
        if not empty or self._relied_on >= place:
            self._known[question] = empty
            self._relied_on = outer
        else:
            self._relied_on = min(outer, self._relied_on)
        return empty

    def surface(self, literals: Iterable[Literal], kind: str) -> Case:
        """What *literals* say of a value of *kind* without any choice made."""
        case = Case(kind)
        self._take_in(case, literals)
        return case

    def property_literals(self, facts: ObjectFacts, name: str) -> Literals:
        """What the value of the property *name* has to meet and to violate."""
        found = set(facts.of_property.get(name, ()))
        for group in facts.groups:
            self._budget.spend(1 + len(group.patterns))
            matched = [matches(pattern, name) for pattern in group.patterns]
            schemas = [schema for schema, hit in zip(group.patterns.values(), matched, strict=True) if hit]
            if name in group.names:
                schemas.append(group.names[name])
            elif not any(hit is not False for hit in matched):
                schemas.append(group.rest)
            found.update(Literal(schema, True) for schema in schemas if schema is not None)
        return frozenset(found)

    def item_literals(self, facts: ArrayFacts, place: int) -> Literals:
        """What the item at *place* has to meet and to violate."""
        found = set(facts.every)
        for group in facts.groups:
            self._budget.spend()
            schema = group.prefix[place] if place < len(group.prefix) else group.rest
            if schema is not None:
                found.add(Literal(schema, True))
        return frozenset(found)

    def _closes(self, case: Case, literals: Iterable[Literal]) -> bool:
        """Whether *case* with *literals* is impossible. Changes *case*."""
        if self._depth >= MAX_DEPTH:
            self.gave_up = True
            return False
        self._depth += 1
        try:
            if not self._take_in(case, literals) or self._contradict(case):
                return True
            return self._closes_all_ways(case)
        finally:
            self._depth -= 1

    def _closes_all_ways(self, case: Case) -> bool:
        """Whether *case*, in which no contradiction is seen yet, closes whatever is chosen in it."""
        if any(schema.same in case.met for goal in case.goals for schema in goal):
            return True
        # What is violated comes first: a part of it often contradicts what is known without any further choice.
        pending = case.refutations or case.choices
        if pending:
            choice = min(pending, key=len)
            pending.remove(choice)
            for alternative in choice:  # noqa: SIM110
                if not self._closes(self._copy(case), alternative):
                    return False
            return True
        if not case.goals:
            return False
        goals, case.goals = case.goals, []
        together = [Literal(schema, False) for goal in goals for schema in goal]
        # Mostly it is one alternative alone that takes in the whole case.
        for literal in together:
            if self._closes(self._copy(case), (literal,)):
                return True
        return len(together) > 1 and self._closes(case, together)

    def _copy(self, case: Case) -> Case:
        self._budget.spend(4 + len(case.seen) // 4)
        return case.copy()

    # Taking in

    def _take_in(self, case: Case, literals: Iterable[Literal]) -> bool:
        """Add *literals* to *case*; False when they contradict it at first sight."""
        waiting = list(literals)
        while waiting:
            literal = waiting.pop()
            if literal in case.seen:
                continue
            self._budget.spend()
            case.seen.add(literal)
            node, positive, part = literal
            if part is not None:
                more = self._part_met(case, node, part) if positive else self._violated(case, node, part)
            elif node.same in (case.violated if positive else case.met):
                return False
            elif positive:
                case.met.add(node.same)
                more = self._met(case, node)
            else:
                case.violated.add(node.same)
                parts = _violable(node, case.kind)
                more = []
                if parts is not None:
                    more = self._choose(case.refutations, [[Literal(node, False, one)] for one in parts])
            if more is None:
                return False
            waiting += more
        return True

    def _choose(self, pending: list[list[list[Literal]]], alternatives: list[list[Literal]]) -> list[Literal] | None:
        """One of *alternatives* holds: nothing when there is none, at once when there is one, else *pending*."""
        self._budget.spend(len(alternatives))
        if not alternatives:
            return None
        if len(alternatives) == 1:
            return alternatives[0]
        if all(alternatives):
            pending.append(alternatives)
        return []

    def _met(self, case: Case, node: Node) -> list[Literal] | None:
        """Take in that *node* is met; what follows from it, or None if it cannot be."""
        keywords = node.keywords
        types = keywords.get("type")
        if not node.value:
            return None
        if types is not None and case.kind not in types:
            if case.kind != "number" or "integer" not in types:
                return None
            assert isinstance(case.facts, NumberFacts)
            case.facts.multiples.add(1)
        case.met_parts.update(node.same_keyword.values())
        if not case.met_parts.isdisjoint(case.violated_parts):
            return None
        for keyword in ("enum", "const"):
            if keyword in keywords and not self._restrict(case, node.listed(keyword)):
                return None
        more = [Literal(schema, True) for schema in keywords.get("allOf", ())]
        if "$ref" in keywords:
            more.append(Literal(node.target, True))
        if "not" in keywords:
            more.append(Literal(keywords["not"], False))
        choices = []
        if "anyOf" in keywords:
            choices.append([[Literal(schema, True)] for schema in keywords["anyOf"]])
        if "oneOf" in keywords:
            branches = range(len(keywords["oneOf"]))
            choices.append([[Literal(node, True, Part("oneOf", place))] for place in branches])
        if "then" in keywords or "else" in keywords:
            choices.append([branch_literals(node, "then", True), branch_literals(node, "else", True)])
        if isinstance(case.facts, NumberFacts):
            bound_number(case.facts, keywords)
        elif isinstance(case.facts, StringFacts):
            bound_string(case.facts, keywords)
        elif isinstance(case.facts, ArrayFacts):
            bound_array(case.facts, node)
        elif isinstance(case.facts, ObjectFacts):
            bound_object(case.facts, node)
            choices += dependencies(node)
        for alternatives in choices:
            chosen = self._choose(case.choices, alternatives)
            if chosen is None:
                return None
            more += chosen
        return more

    def _part_met(self, case: Case, node: Node, part: Part) -> list[Literal] | None:
        """Take in what a positive literal with a part says."""
        if part.keyword in ("present", "absent"):
            assert isinstance(case.facts, ObjectFacts)
            (case.facts.required if part.keyword == "present" else case.facts.absent).add(str(part.key))
            return []
        branches = node.keywords["oneOf"]
        assert isinstance(part.key, int)
        self._budget.spend(len(branches))
        if part.keyword == "oneOf after":
            return self._choose(case.choices, [[Literal(schema, True)] for schema in branches[part.key + 1 :]])
        more = [Literal(branches[part.key], True)]
        for place, schema in enumerate(branches):
            parts = _violable(schema, case.kind) if place != part.key else None
            if parts is not None and len(parts) <= 1:
                more.append(Literal(schema, False))
            elif place != part.key:
                # Known, but not taken apart: how each of the others is violated hardly ever matters.
                case.seen.add(Literal(schema, False))
                case.violated.add(schema.same)
        return more

    def _restrict(self, case: Case, listed: dict[Any, Any]) -> bool:
        """The value is one of *listed*; whether any is left."""
        self._budget.spend(len(listed))
        if case.values is None:
            case.values = {key: value for key, value in listed.items() if kind_of(value) == case.kind}
        else:
            case.values = {key: value for key, value in case.values.items() if key in listed}
        return bool(case.values)

    # Violations

    def _violated(self, case: Case, node: Node, part: Part) -> list[Literal] | None:
        """Take in that *part* of *node* is violated; what follows from it, or None if it cannot be."""
        if part.kind not in (None, case.kind):
            return None
        same = node.same_keyword.get(part)
        if same is not None:
            if same in case.met_parts:
                return None
            case.violated_parts.add(same)
        keyword, said = part.keyword, node.said(part.keyword)
        if keyword == "type":
            return violate_type(case, said)
        if keyword == "$ref":
            return [Literal(node.target, False)]
        if keyword == "allOf":
            return [Literal(said[part.key], False)]
        if keyword == "not":
            return [Literal(said, True)]
        if keyword == "none of oneOf":
            said = node.keywords["oneOf"]
        if keyword in ("anyOf", "none of oneOf"):
            case.goals.append(said)
            return []
        if keyword == "oneOf":
            none = [Literal(node, False, Part("none of oneOf"))]
            several = [
                [Literal(schema, True), Literal(node, True, Part("oneOf after", place))]
                for place, schema in enumerate(said[:-1])
            ]
            return self._choose(case.refutations, [none, *several])
        if keyword in ("then", "else"):
            return branch_literals(node, keyword, False)
        facts = case.facts
        if isinstance(facts, NumberFacts):
            violate_number(facts, keyword, said)
        elif isinstance(facts, StringFacts):
            violate_string(facts, keyword, said)
        elif isinstance(facts, ArrayFacts):
            return [] if violate_array(facts, node, part) else None
        elif isinstance(facts, ObjectFacts):
            return violate_object(facts, node, part)
        return []

    # Contradictions

    def _contradict(self, case: Case) -> bool:
        """Whether what was taken in excludes itself; the choices that are pending are left out."""
        facts = case.facts
        if facts is not None and facts.contradict():
            return True
        values = list(case.values.values()) if case.values is not None else None
        if values is None and isinstance(facts, NumberFacts | StringFacts):
            values = facts.values()
        if values is not None:
            return all(self._excluded(case, value) for value in values)
        if isinstance(facts, ObjectFacts):
            return self._contradict_object(facts)
        return isinstance(facts, ArrayFacts) and self._contradict_array(facts)

    def _excluded(self, case: Case, value: Any) -> bool:
        """Whether one of the literals in *case* is certainly not true of *value*."""
        for node, positive, part in case.seen:
            if part is None:
                answer = self._evaluator.meets(node, value)
            elif positive or part.keyword == "none of oneOf" or (part.keyword in _REST and part.key is not None):
                continue
            else:
                answer = self._evaluator.meets_part(node, part, value)
            if answer is (not positive):
                return True
        return False

    def _contradict_object(self, facts: ObjectFacts) -> bool:
        for name in facts.required - facts.possible_names:
            if not self._may_have(facts, name):
                return True
            facts.possible_names.add(name)
        while facts.possible_some < len(facts.some):
            if not self._may_have_some(facts, facts.some[facts.possible_some]):
                return True
            facts.possible_some += 1
        if facts.least > len(facts.required):
            for group in facts.groups:
                if group.rest is not None and not group.rest.value and not group.patterns:
                    candidates = group.names.keys() - facts.absent
                    if len(candidates) < facts.least:
                        return True
                    if sum(self._may_have(facts, name) for name in candidates) < facts.least:
                        return True
        return False

    def _may_have(self, facts: ObjectFacts, name: str, more: Literals = frozenset()) -> bool:
        """Whether there may be a property *name* whose value meets *more*, too."""
        if name in facts.absent:
            return False
        if any(self._evaluator.meets(node, name) is (not positive) for node, positive, _ in facts.names):
            return False
        return not self.is_empty(self.property_literals(facts, name) | more)

    def _may_have_some(self, facts: ObjectFacts, some: SomeProperty) -> bool:
        if not some.unknown:
            for name in sorted(facts.known_names() - some.names):
                self._budget.spend()
                if any(matches(pattern, name) for pattern in some.patterns):
                    continue
                if some.pattern is not None and matches(some.pattern, name) is False:
                    continue
                if any(self._evaluator.meets(node, name) is (not positive) for node, positive, _ in some.name):
                    continue
                if self._may_have(facts, name, some.value):
                    return True
        patterns = frozenset((some.pattern,)) if some.pattern is not None else frozenset()
        return self._may_have_unknown(facts, some, 0, some.value, patterns)

    def _may_have_unknown(
        self, facts: ObjectFacts, some: SomeProperty, place: int, value: Literals, patterns: frozenset[str]
    ) -> bool:
        """Whether a property that no schema names may be *some*, meet *value* and what the groups from *place* on say.

        Its name matches *patterns*.
        """
        for at in range(place, len(facts.groups)):
            self._budget.spend()
            group = facts.groups[at]
            left = [pattern for pattern in group.patterns if pattern not in some.patterns]
            if some.pattern in group.patterns:
                value = _with(value, group.patterns[some.pattern])
            elif not left:
                value = _with(value, group.rest)
            else:
                # It matches at least one of the patterns, or it belongs to the rest.
                for pattern in left:
                    below = _with(value, group.patterns[pattern])
                    if self._may_have_unknown(facts, some, at + 1, below, patterns | {pattern}):
                        return True
                value = _with(value, group.rest)
        return self._may_be_named(facts, some, patterns) and not self.is_empty(value)

    def _may_be_named(self, facts: ObjectFacts, some: SomeProperty, patterns: frozenset[str]) -> bool:
        literals = some.name | facts.names
        if not literals:
            return True
        case = Case("string")
        assert isinstance(case.facts, StringFacts)
        case.facts.patterns.update(patterns)
        case.facts.not_patterns.update(some.patterns)
        return not self._closes(case, literals)

    def _contradict_array(self, facts: ArrayFacts) -> bool:
        horizon = max((len(group.prefix) for group in facts.groups), default=0)
        for place in range(horizon + 1):
            if place >= facts.most:
                break
            if self.is_empty(self.item_literals(facts, place)):
                facts.most = place
        if facts.contradict():
            return True
        for some in facts.some:
            last = max(horizon, some.first) if some.onwards else some.first
            places = range(some.first, int(min(last + 1, facts.most)))
            if all(self.is_empty(self.item_literals(facts, place) | some.value) for place in places):
                return True
        return any(self._too_few(facts, count, horizon) for count in facts.at_least) or any(
            self._too_many(facts, count, horizon) for count in facts.at_most
        )

    def _too_few(self, facts: ArrayFacts, count: Count, horizon: int) -> bool:
        """Whether there cannot be as many items as *count* says."""
        places = range(int(min(horizon + 1, facts.most)))
        wanted = Literal(count.node, True)
        possible = [not self.is_empty(self.item_literals(facts, place) | {wanted}) for place in places]
        behind = facts.most - horizon if len(possible) > horizon and possible[-1] else 0
        return sum(possible[:horizon]) + behind < count.number

    def _too_many(self, facts: ArrayFacts, count: Count, horizon: int) -> bool:
        """Whether there are more items than *count* allows."""
        anywhere = frozenset(facts.every) if horizon else self.item_literals(facts, 0)
        unwanted = Literal(count.node, False)
        for other in facts.at_least:
            if other.number > count.number and self.is_empty(anywhere | {Literal(other.node, True), unwanted}):
                return True
        if facts.least <= count.number:
            return False
        sure = [self.is_empty(self.item_literals(facts, place) | {unwanted}) for place in range(horizon + 1)]
        behind = max(facts.least - horizon, 0) if sure[-1] else 0
        return sum(sure[: min(horizon, facts.least)]) + behind > count.number


def _with(literals: Literals, schema: Node | None) -> Literals:
    return literals if schema is None else literals | {Literal(schema, True)}


def _violable(node: Node, kind: str) -> list[Part] | None:
    """The parts of *node* one of which every value of *kind* that violates it violates; None if all of them do."""
    types = node.keywords.get("type")
    if not node.value:
        return None
    if types is None or kind in types:
        return list(node.parts(kind))
    return [Part("type"), *node.parts(kind)] if kind == "number" and "integer" in types else None
