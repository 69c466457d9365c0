"""A plan carried out: the files that it leaves, and what there is to say about them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from strandline_cli.unify.match import Decision, Matched, Matcher
from strandline_cli.unify.merge import Conflict, merged
from strandline_cli.unify.plan import Plan
from strandline_cli.unify.review import review_lines
from strandline_cli.unify.sources import Tables
from strandline_cli.words import counted


@dataclass(frozen=True, slots=True)
class Unified:
    """What a plan came to. ``entities``, ``review`` and ``conflicts`` are files of JSON lines."""

    namespace: str
    mode: str
    entities: Path
    review: Path
    conflicts: Path
    entity_count: int
    review_count: int
    conflict_count: int
    lines: tuple[str, ...]
    """For people: where the rows of each source went, and which decisions may be slips."""


def unify(plan: Plan, decisions: Mapping[tuple[str, str], Decision], folder: Path) -> Unified:
    """Carry out *plan*, and write its files into *folder*.

    Raises:
        PlanError: it cannot be carried out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entities, review, conflicts = (folder / name for name in ("entities.jsonl", "review.jsonl", "conflicts.jsonl"))
    with tempfile.TemporaryDirectory(prefix="strandline-unify-") as scratch:
        tables = Tables(plan, Path(scratch))
        matched = Matcher(tables, decisions).run()
        entity_count = conflict_count = 0
        with entities.open("wb") as entity_file, conflicts.open("wb") as conflict_file:
            for entity in merged(tables):
                _write(entity_file, {"type": plan.type, "id": entity.id, "data": entity.data})
                entity_count += 1
                for conflict in entity.conflicts:
                    _write(conflict_file, _conflict(conflict))
                    conflict_count += 1
        review.write_bytes(b"".join(line + b"\n" for line in review_lines(tables, matched.ambiguous)))
        lines = (*_said(tables, matched), *matched.remarks)
    return Unified(
        plan.namespace,
        plan.mode,
        entities,
        review,
        conflicts,
        entity_count,
        len(matched.ambiguous),
        conflict_count,
        lines,
    )


def _write(file: Any, record: Mapping[str, Any]) -> None:
    file.write(orjson.dumps(record, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))


def _conflict(conflict: Conflict) -> dict[str, Any]:
    return {
        "id": conflict.id,
        "fields": conflict.fields,
        "values": {name: dict(zip(conflict.fields, values, strict=True)) for name, values in conflict.values.items()},
    }


def _said(tables: Tables, matched: Matched) -> Iterable[str]:
    for place, source in enumerate(tables.plan.sources):
        parts = [f"{count:,} {rule}" for (of, rule), count in matched.placed.items() if of == place and count]
        doubtful = sum(item.source == place for item in matched.ambiguous)
        if doubtful:
            parts.append(f"{doubtful:,} ambiguous")
        yield f"{source.name}: {counted(tables.count(place), 'row')} = {' + '.join(parts) or 'none'}"
