"""One JSON line per figure, always with its ceiling from the same run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence

# Cores that strangers may take before a figure is marked as taken on a busy machine.
QUIET_CORES = 0.1


def emit(
    name: str,
    unit: str,
    values: Sequence[float],
    ceilings: Sequence[float],
    cpu: Mapping[str, float],
    context: Mapping[str, object],
) -> None:
    """Print one figure: medians over the rounds, their ratio, [lowest, highest] of both sides, and cores used."""
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
        "quiet": cpu["foreign"] <= QUIET_CORES,
        "cpu": cpu,
        **context,
    }
    print(json.dumps(line), flush=True)


def skip(name: str, why: str) -> None:
    """Print that a figure is missing, and what to do about it."""
    print(json.dumps({"name": name, "skipped": why}), flush=True)


def percentile(values: Sequence[float], percent: int) -> float:
    """The *percent*-th percentile."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _short(value: float) -> float:
    return round(value, 3) if abs(value) < 100 else round(value)
