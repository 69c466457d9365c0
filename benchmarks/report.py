"""Figures of a benchmark: one JSON object a line as they come, and all of them side by side at the end."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec

P = ParamSpec("P")


class Report:
    """Collects figures of several *subjects* that are compared with each other."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int, str], dict[str, float]] = {}

    def add(self, subject: str, name: str, value: float, unit: str, size: int) -> None:
        """Print and keep one figure; *size* is the number of rows it was measured at."""
        value = round(value, 3)
        print(json.dumps({"name": f"{subject}.{name}", "value": value, "unit": unit, "size": size}), flush=True)
        self._rows.setdefault((name, size, unit), {})[subject] = value

    def add_percentiles(self, subject: str, name: str, milliseconds: Sequence[float], size: int) -> None:
        """Add p50 and p99."""
        self.add(subject, f"{name}.p50", statistics.median(milliseconds), "ms", size)
        self.add(subject, f"{name}.p99", statistics.quantiles(milliseconds, n=100)[98], "ms", size)

    def table(self, subjects: Sequence[str]) -> str:
        """Return every figure, one column per subject."""
        lines = [f"{'figure':34} {'size':>9} {'unit':12}" + "".join(f"{name:>13}" for name in subjects)]
        for (name, size, unit), values in self._rows.items():
            cells = "".join(f"{values.get(subject, ''):>13}" for subject in subjects)
            lines.append(f"{name:34} {size:>9} {unit:12}{cells}")
        return "\n".join(lines)


def timed(action: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> float:
    """Return the seconds that the call took."""
    start = time.perf_counter()
    action(*args, **kwargs)
    return time.perf_counter() - start


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print how long a part of the benchmark itself took."""
    start = time.perf_counter()
    yield
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({"name": f"stage.{name}", "value": seconds, "unit": "s"}), flush=True)
