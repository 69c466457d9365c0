"""``strandline import --plan`` as people see it: where each source's rows went, and what is left for them to decide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from strandline_cli.words import counted

if TYPE_CHECKING:
    from strandline_cli.unify.run import Unified


class PlanRefused(Exception):
    """The plan cannot be carried out; the message says where and why."""


def run_plan(path: Path, review: Path | None, folder: Path | None) -> Unified:
    """Carry out the plan in *path*, with the decisions in *review*; its files go to *folder*, else beside the plan.

    Raises:
        PlanRefused: it cannot be carried out.
    """
    try:
        from strandline_cli.unify.plan import PlanError, read_plan
        from strandline_cli.unify.review import read_decisions
        from strandline_cli.unify.run import unify
    except ModuleNotFoundError as failure:
        raise PlanRefused(f"plans need {failure.name}: pip install 'strandline[unify]'") from None
    folder = folder or path.with_suffix("")
    try:
        if review is not None and folder.resolve() == review.resolve().parent and review.name == "review.jsonl":
            raise PlanRefused(f"{review} is about to be written anew: keep your decisions in a file of another name")
        unified = unify(read_plan(path), read_decisions(review) if review else {}, folder)
    except PlanError as failure:
        raise PlanRefused(f"{path}: {failure}") from None
    for line in unified.lines:
        print(line)
    print(f"{counted(unified.entity_count, 'entity', 'entities')}: {unified.entities}")
    if unified.conflict_count:
        print(f"{counted(unified.conflict_count, 'disagreement')}: {unified.conflicts}")
    if unified.review_count:
        print(f"{counted(unified.review_count, 'row')} left out, to be decided: {unified.review}")
    return unified
