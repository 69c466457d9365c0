"""Review files: JSON lines of what the rules cannot tell, with both sides and why; decided, they are read back.

A person writes the decision: the name "source:key" of the candidate that it is, "new" if it is none, or "skip".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from strandline_cli.unify.match import Ambiguous, Decision
from strandline_cli.unify.merge import as_json
from strandline_cli.unify.plan import PlanError
from strandline_cli.unify.sources import ROW, Tables, quoted

_CHOICES: Final = ("new", "skip")


def read_decisions(path: Path) -> dict[tuple[str, str], Decision]:
    """The decisions of a review file, by (source, key); lines without one are left out.

    Raises:
        PlanError: it is no review file.
    """
    decisions: dict[tuple[str, str], Decision] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = orjson.loads(line)
            source, key, decision = str(record["source"]), str(record["key"]), record.get("decision")
            candidates = [str(candidate["decision"]) for candidate in record.get("candidates", ())]
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise PlanError(f"{path}, line {number}: is no line of a review file") from None
        if decision is None:
            continue
        if not isinstance(decision, str) or (decision not in _CHOICES and ":" not in decision):
            raise PlanError(f'{path}, line {number}: a decision is "source:key" of a candidate, "new" or "skip"')
        if (source, key) in decisions:
            raise PlanError(f"{path}, line {number}: {source}:{key} is decided twice")
        offered = not candidates or decision in (*_CHOICES, *candidates)
        decisions[(source, key)] = Decision(decision, f"{path.name}, line {number}", offered)
    return decisions


def review_lines(tables: Tables, ambiguous: Iterable[Ambiguous]) -> Iterable[bytes]:
    """What people must decide, in the order of (source, key)."""
    for item in sorted(ambiguous):
        source = tables.plan.sources[item.source]
        row = _row(tables, item.source, item.row)
        yield orjson.dumps(
            {
                "source": source.name,
                "key": str(row[source.key]),
                "why": item.rule,
                "row": row,
                "candidates": [
                    {"score": round(candidate.score, 6), **_thing(tables, candidate.thing)}
                    for candidate in item.candidates
                ],
                "decision": None,
            }
        )


def _thing(tables: Tables, thing: int) -> dict[str, Any]:
    """A thing: its name, and its rows by source."""
    members = list(tables.rows(f"SELECT source, n FROM members WHERE thing = {thing} ORDER BY source"))
    rows = {place: _row(tables, place, n) for place, n in members}
    first = tables.plan.sources[members[0][0]]
    return {
        "decision": f"{first.name}:{rows[members[0][0]][first.key]}",
        "rows": {tables.plan.sources[place].name: row for place, row in rows.items()},
    }


def _row(tables: Tables, place: int, n: int) -> Mapping[str, Any]:
    columns = tables.columns[place]
    (values,) = tables.rows(f"SELECT {', '.join(map(quoted, columns))} FROM source_{place} WHERE {ROW} = {n}")
    return {name: as_json(value) for name, value in zip(columns, values, strict=True)}
