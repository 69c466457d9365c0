"""One JSON line per figure, always with its ceiling from the same run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

Measurement = Callable[[], Awaitable[float]]


async def interleaved(rounds: int, subject: Measurement, ceiling: Measurement) -> tuple[list[float], list[float]]:
    """Measure both in turn, so that whatever else the machine does falls on both."""
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(await ceiling())
        ours.append(await subject())
    return ours, theirs


def emit(
    name: str, unit: str, values: Sequence[float], ceilings: Sequence[float], context: Mapping[str, object]
) -> dict[str, Any]:
    """Print one figure: medians over the rounds, their ratio, and [lowest, highest] of both sides."""
    value, ceiling = statistics.median(values), statistics.median(ceilings)
    line = {
        "name": name,
        "value": _short(value),
        "unit": unit,
        "ceiling": _short(ceiling),
        "ratio": round(value / ceiling, 3),
        "rounds": len(values),
        "range": [_short(min(values)), _short(max(values))],
        "ceiling_range": [_short(min(ceilings)), _short(max(ceilings))],
        **context,
    }
    print(json.dumps(line), flush=True)
    return line


def skip(name: str, why: str) -> None:
    """Print that a figure is missing, and what to do about it."""
    print(json.dumps({"name": name, "skipped": why}), flush=True)


def percentile(values: Sequence[float], percent: int) -> float:
    """The *percent*-th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _short(value: float) -> float:
    return round(value, 3) if abs(value) < 100 else round(value)
