"""Which rows of several sources are the same thing: rules in order, one to one, and never by guessing.

The rows of the first source are things. Each further source is matched against the things so far: a rule finds
candidates, and a pair is taken if each is the other's only good candidate. A row with rivals is ambiguous: it goes to a
person. A row that no rule finds anything for is a thing of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import duckdb

from strandline_cli.unify.plan import Exact, MatchRule, Nearest, PlanError, Similar
from strandline_cli.unify.sources import ROW, Tables, quoted

_EARTH_KM: Final = 6371.0088
_KM_PER_DEGREE: Final = 110.5
"""Of latitude, at least."""


class Candidate(NamedTuple):
    """A thing and a row that may be the same; the smaller the score, the more alike."""

    thing: int
    row: int
    score: float


class Ambiguous(NamedTuple):
    """A row with more than one good candidate, or whose candidate has another good row."""

    source: int
    row: int
    rule: str
    candidates: tuple[Candidate, ...]


class Decision(NamedTuple):
    """What somebody decided of a row: *what* is "source:key" of the thing it is, "new" or "skip".

    *where* it is written; *offered*: not a thing that was none of the row's candidates.
    """

    what: str
    where: str
    offered: bool = True


@dataclass(slots=True)
class Matched:
    """What came of matching: how many rows each (source, rule) placed, and those that people must decide.

    *remarks* are about decisions that were followed, but may be slips.
    """

    placed: dict[tuple[int, str], int] = field(default_factory=dict)
    ambiguous: list[Ambiguous] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def resolve(candidates: Iterable[Candidate], margin: float) -> tuple[list[Candidate], dict[int, list[Candidate]]]:
    """The pairs that are beyond doubt, and the ambiguous rows with their rivals, the most alike first.

    Good is what is at most *margin* worse than the best. A row whose only good candidate has a row that is better by
    more than the margin is neither.
    """
    of_row: dict[int, list[Candidate]] = defaultdict(list)
    of_thing: dict[int, list[Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda item: (item.score, item.thing, item.row)):
        of_row[candidate.row].append(candidate)
        of_thing[candidate.thing].append(candidate)
    good_rows = {thing: _good(items, margin) for thing, items in of_thing.items()}
    pairs, ambiguous = [], {}
    for row, items in sorted(of_row.items()):
        good = _good(items, margin)
        rivals = good_rows[good[0].thing]
        if len(good) > 1 or (good[0] in rivals and len(rivals) > 1):
            ambiguous[row] = good
        elif good[0] in rivals:
            pairs.append(good[0])
    return pairs, ambiguous


def _good(items: list[Candidate], margin: float) -> list[Candidate]:
    return [item for item in items if item.score <= items[0].score + margin]


class Matcher:
    """Matches the sources of a plan. Table ``members`` says which row (source, n) is part of which thing."""

    def __init__(self, tables: Tables, decisions: Mapping[tuple[str, str], Decision]) -> None:
        """*decisions*: by (source, key)."""
        self._tables = tables
        self._database = tables.database
        self._plan = tables.plan
        self._decisions = decisions
        self._things = 0

    def run(self) -> Matched:
        """Match everything.

        Raises:
            PlanError: a rule names a column that a source does not have, or a decision cannot be followed.
        """
        matched = Matched()
        later = {source.name for source in self._plan.sources[1:]}
        for (name, key), decision in self._decisions.items():
            if name not in later:
                raise PlanError(f"{decision.where}: {name}:{key} is no row of a source after the first")
        self._database.execute("CREATE TABLE members (thing BIGINT, source INTEGER, n BIGINT)")
        for number, rule in enumerate(self._plan.match):
            for place in range(len(self._plan.sources)):
                self._tables.check_columns(place, rule.columns, f"match[{number}]")
        for place, source in enumerate(self._plan.sources):
            self._database.execute(f"CREATE OR REPLACE TABLE open_rows AS SELECT {ROW} AS n FROM source_{place}")
            if place:
                self._decided(place, source.name, source.key, matched)
                for rule in self._plan.match:
                    self._apply(place, rule, matched)
            left = [n for (n,) in self._tables.rows("SELECT n FROM open_rows ORDER BY n")]
            self._place(place, [(self._things + step, n) for step, n in enumerate(left)])
            matched.placed[(place, "new")] = matched.placed.get((place, "new"), 0) + len(left)
            self._things += len(left)
        return matched

    def _apply(self, place: int, rule: MatchRule, matched: Matched) -> None:
        try:
            self._database.execute(self._open_things(place, rule))
            candidates = [Candidate(*row) for row in self._tables.rows(_candidates(rule, place))]
        except duckdb.Error as failure:
            raise PlanError(f"match: {rule}: {failure}") from None
        pairs, ambiguous = resolve(candidates, rule.margin)
        # A thing that an earlier rule has left to people is not given to another row meanwhile.
        doubtful = {rival.thing for item in matched.ambiguous if item.source == place for rival in item.candidates}
        ambiguous |= {pair.row: [pair] for pair in pairs if pair.thing in doubtful}
        pairs = [pair for pair in pairs if pair.thing not in doubtful]
        self._place(place, [(pair.thing, pair.row) for pair in pairs])
        self._close(ambiguous)
        matched.placed[(place, str(rule))] = len(pairs)
        matched.ambiguous += [Ambiguous(place, row, str(rule), tuple(rivals)) for row, rivals in ambiguous.items()]

    def _open_things(self, place: int, rule: MatchRule) -> str:
        """Things without a row of this source, with the first value that an earlier source has of each column."""
        joins = "".join(
            f" LEFT JOIN (SELECT * FROM members WHERE source = {other}) m{other} ON m{other}.thing = t.thing"
            f" LEFT JOIN source_{other} s{other} ON s{other}.{ROW} = m{other}.n"
            for other in range(place)
        )
        columns = "".join(
            f", coalesce({', '.join(f's{other}.{quoted(name)}' for other in range(place))}) AS {quoted(name)}"
            for name in dict.fromkeys(rule.columns)
        )
        return (
            f"CREATE OR REPLACE TABLE things AS SELECT t.thing{columns} FROM "
            f"(SELECT DISTINCT thing FROM members WHERE thing NOT IN "
            f"(SELECT thing FROM members WHERE source = {place})) t{joins}"
        )

    def _decided(self, place: int, name: str, key: str, matched: Matched) -> None:
        """Place the rows that people have decided on."""
        wanted = {of: decision for (source, of), decision in self._decisions.items() if source == name}
        rows = {
            str(value): n
            for value, n in self._tables.rows(f"SELECT {quoted(key)}::VARCHAR, {ROW} FROM source_{place}")
            if str(value) in wanted
        }
        things = self._things_of(place, {decision.what for decision in wanted.values()})
        by_thing: dict[int, Decision] = {}
        for of, decision in wanted.items():
            if of not in rows:
                raise PlanError(f"{decision.where}: there is no row {name}:{of}")
            if ":" not in decision.what:
                continue
            if decision.what not in things:
                raise PlanError(f"{decision.where}: {decision.what}, which is no row of an earlier source")
            other = by_thing.setdefault(things[decision.what], decision)
            if other is not decision:
                raise PlanError(f"{decision.where}: makes one thing of two rows of {name}, with {other.where}")
            if not decision.offered:
                matched.remarks.append(f"{decision.where}: {name}:{of} is {decision.what}, none of its candidates")
        decided = {rows[of]: decision.what for of, decision in wanted.items()}
        placed = sorted((things[what], n) for n, what in decided.items() if what in things)
        self._place(place, placed)
        fresh = sorted(n for n, decision in decided.items() if decision == "new")
        self._place(place, [(self._things + step, n) for step, n in enumerate(fresh)])
        self._things += len(fresh)
        self._close(n for n, decision in decided.items() if decision == "skip")
        matched.placed[(place, "decided")] = len(placed) + len(fresh)

    def _things_of(self, place: int, names: set[str]) -> dict[str, int]:
        """The things that hold the rows named "source:key"."""
        found = {}
        for other, source in enumerate(self._plan.sources[:place]):
            query = (
                f"SELECT s.{quoted(source.key)}::VARCHAR, m.thing FROM members m "
                f"JOIN source_{other} s ON s.{ROW} = m.n WHERE m.source = {other}"
            )
            for key, thing in self._tables.rows(query):
                if (name := f"{source.name}:{key}") in names:
                    found[name] = thing
        return found

    def _place(self, place: int, pairs: list[tuple[int, int]]) -> None:
        things, rows = [thing for thing, _ in pairs], [n for _, n in pairs]
        self._database.execute(
            f"INSERT INTO members SELECT unnest($1::BIGINT[]), {place}, unnest($2::BIGINT[])",
            [things, rows],
        )
        self._close(rows)

    def _close(self, rows: Iterable[int]) -> None:
        self._database.execute("DELETE FROM open_rows WHERE n IN (SELECT unnest($1::BIGINT[]))", [list(rows)])


def _candidates(rule: MatchRule, place: int) -> str:
    """Rows (thing, n, score)."""
    rows = f"(SELECT s.* FROM source_{place} s JOIN open_rows o ON o.n = s.{ROW}) r"
    if isinstance(rule, Exact):
        plain = _normalized if rule.normalized else _text
        same = " AND ".join(f"{plain('t', name)} = {plain('r', name)}" for name in rule.fields)
        return f"SELECT t.thing, r.{ROW}, 0::DOUBLE FROM things t JOIN {rows} ON {same}"
    if isinstance(rule, Nearest):
        return _nearest(rule, rows)
    return _similar(rule, rows)


def _nearest(rule: Nearest, rows: str) -> str:
    # Things in bands of latitude as high as the radius: a row's own band and its neighbours hold all that is near.
    height = rule.within / _KM_PER_DEGREE
    latitude, longitude = quoted(rule.latitude), quoted(rule.longitude)
    distance = (
        f"2 * {_EARTH_KM} * asin(sqrt(least(1, sin(radians(r.{latitude} - t.{latitude}) / 2) ** 2 + "
        f"cos(radians(t.{latitude})) * cos(radians(r.{latitude})) * "
        f"sin(radians(r.{longitude} - t.{longitude}) / 2) ** 2)))"
    )
    return (
        f"SELECT thing, n, score FROM (SELECT t.thing, r.{ROW} AS n, {distance} AS score "
        f"FROM (SELECT *, unnest([-1, 0, 1]) + floor({latitude} / {height}) AS band FROM things) t "
        f"JOIN {rows} ON floor(r.{latitude} / {height}) = t.band) WHERE score <= {rule.within}"
    )


def _similar(rule: Similar, rows: str) -> str:
    similarity = f"jaro_winkler_similarity({_normalized('t', rule.field)}, {_normalized('r', rule.field)})"
    same = " AND ".join(f"{_normalized('t', name)} = {_normalized('r', name)}" for name in rule.same) or "true"
    return (
        f"SELECT thing, n, 1 - similarity FROM (SELECT t.thing, r.{ROW} AS n, {similarity} AS similarity "
        f"FROM things t JOIN {rows} ON {same}) WHERE similarity >= {rule.threshold}"
    )


def _text(table: str, name: str) -> str:
    return f"{table}.{quoted(name)}::VARCHAR"


def _normalized(table: str, name: str) -> str:
    """Without case, accents, and anything but letters and digits; null if nothing is left."""
    plain = f"regexp_replace(lower(strip_accents({_text(table, name)})), '[^\\p{{L}}\\p{{N}}]+', ' ', 'g')"
    return f"nullif(trim({plain}), '')"
