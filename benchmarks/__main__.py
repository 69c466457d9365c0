"""``make bench``: every figure with its ceiling, as JSON lines. ``--only NAME`` one of them, ``--quick`` shorter.

The whole takes some ten minutes; ``million``, which takes as long again, is run by its name alone. Run it on a machine
that does nothing else: each line says in ``cpu.foreign`` how many cores somebody else took.
"""

from __future__ import annotations

import argparse
import asyncio

from benchmarks import (
    batch_writes,
    deliveries,
    delivery,
    edge_delivery,
    filtered,
    idle,
    imports,
    million,
    point_reads,
    replicas,
    resume,
    single_writes,
    stalled,
)
from benchmarks.machine import LOAD_CORE, on_core
from benchmarks.stack import stack

# Each with the service that is measured.
_BENCHMARKS = {
    "point_reads": (point_reads.run, "entity"),
    "single_writes": (single_writes.run, "entity"),
    "batch_writes": (batch_writes.run, "entity"),
    "replicas": (replicas.run, "entity"),
    "delivery": (delivery.run, "stream"),
    "deliveries": (deliveries.run, "stream"),
    "filtered": (filtered.run, "stream"),
    "stalled": (stalled.run, "stream"),
    "resume": (resume.run, "stream"),
    "idle_grpc": (idle.run_grpc, "stream"),
    "idle_ndjson": (idle.run_ndjson, "stream"),
}


async def _main(only: str | None, quick: bool) -> None:
    for name, (run, subject) in _BENCHMARKS.items():
        if only in (None, name):
            # Each gets an empty platform, so that none inherits the tables of the one before.
            names = ("user", "entity", "stream") if subject == "stream" else ("user", "entity")
            with on_core(LOAD_CORE):
                async with stack(names, subject=subject) as running:
                    await run(running, quick=quick)
    # Whole platforms have all cores.
    if only in (None, "edge_delivery"):
        await edge_delivery.run(quick=quick)
    if only in (None, "imports"):
        await imports.run(quick=quick)
    if only == "million":  # ten minutes by itself
        await million.run(quick=quick)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=[*_BENCHMARKS, "edge_delivery", "imports", "million"])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: a try, not a figure")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = _arguments()
    asyncio.run(_main(arguments.only, arguments.quick))
