"""One RPC of the entity service against the echo of the same message sizes, both under the same load from h2load."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import h2load
from benchmarks.machine import SUBJECT_CORE, Meter, pin, wait_for_socket
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant

IN_FLIGHT = 64
# Of answers whose revision or time grows by a byte while the benchmark runs.
SIZE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Comparison:
    """Calls per second of both sides per round; where the CPU went."""

    ours: Sequence[float]
    echo: Sequence[float]
    cpu: dict[str, float]
    context: dict[str, object]


async def compare(
    stack: Stack, tenant: Tenant, method: str, calls: Sequence[bytes], answer_bytes: int, *, requests: int, rounds: int
) -> Comparison:
    """Load both in turn.

    Args:
        calls: the messages to send, a load process for each.
        answer_bytes: size of a right answer.

    Raises:
        RuntimeError: some answers were errors.
    """
    bodies = [h2load.write_call(stack.layout.run / f"call-{n}", call) for n, call in enumerate(calls)]
    async with echo(stack.layout.run / "echo.sock", answer_bytes) as echoing:
        ours, theirs = Meter(stack.pids), Meter({"echo": echoing.pid})
        rates: dict[str, list[float]] = {"ours": [], "echo": []}
        # The first turn warms both up and is thrown away.
        for turn in range(rounds + 1):
            for side, meter, socket in (
                ("echo", theirs, stack.layout.run / "echo.sock"),
                ("ours", ours, stack.address("entity")),
            ):
                count = requests if turn else requests // 4
                with meter.running():
                    load = await h2load.run(socket, method, bodies, count, IN_FLIGHT, tenant.token)
                check(load, answer_bytes)
                if turn:
                    rates[side].append(load.per_second)
        calls_made = requests // 4 + rounds * requests
        context = {
            "in_flight": IN_FLIGHT,
            "cores": stack.cores,
            "sidecars": False,
            "answer_bytes": answer_bytes,
            "cpu_us_per_call": ours.microseconds(calls_made),
            "ceiling_cpu": theirs.cores(),
            "ceiling_cpu_us_per_call": theirs.microseconds(calls_made),
        }
        return Comparison(rates["ours"], rates["echo"], ours.cores(), context)


def check(load: h2load.Load, answer_bytes: int) -> None:
    """Refuse figures of calls that failed: an error has no body, so the mean size gives it away."""
    expected = answer_bytes + 5
    if load.succeeded != load.requests or abs(load.answer_bytes / expected - 1) > SIZE_TOLERANCE:
        raise RuntimeError(f"not all calls succeeded: {load}, expected {expected} bytes per answer")


@asynccontextmanager
async def echo(socket: Path, answer_bytes: int) -> AsyncIterator[Process]:
    """An echo server on the core of the services."""
    command = (sys.executable, "-m", "benchmarks.echo", f"unix:{socket}", str(answer_bytes))
    process = await asyncio.create_subprocess_exec(*pin(SUBJECT_CORE), *command)
    try:
        await wait_for_socket(socket, process)
        yield process
    finally:
        process.terminate()
        await process.wait()
        socket.unlink(missing_ok=True)
