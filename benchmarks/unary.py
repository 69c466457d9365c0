"""One RPC of the entity service against the echo of the same message sizes, both under the same load from h2load.

The ceiling is grpc.aio as it comes. ``echo_as_served`` is the same echo with gRPC's older I/O and threads that stand
back, as the services run it: what is left between it and a call is ours.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import h2load
from benchmarks.machine import SUBJECT_CORE, Meter, pin, wait_for_socket
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant
from services import OLDER_IO

IN_FLIGHT = 64
WARM_UP = 2048
# Of answers whose revision or time grows by a byte while the benchmark runs.
SIZE_TOLERANCE = 0.05


@dataclass(frozen=True)
class Comparison:
    """Calls per second of both sides per round; where the CPU went."""

    ours: Sequence[float]
    echo: Sequence[float]
    calls: int
    """Calls that the service answered, all turns together."""
    cpu: dict[str, float]
    context: dict[str, object]


async def compare(
    stack: Stack, tenant: Tenant, method: str, calls: Sequence[bytes], answer_bytes: int, *, quick: bool
) -> Comparison:
    """Load both in turn.

    Args:
        calls: the messages to send, a load process for each.
        answer_bytes: size of a right answer.

    Raises:
        RuntimeError: some answers were errors.
    """
    rounds, seconds = (2, 1.0) if quick else (12, 1.0)
    bodies = [h2load.write_call(stack.layout.run / f"call-{n}", call) for n, call in enumerate(calls)]
    plain, tuned = stack.layout.run / "echo.sock", stack.layout.run / "echo-as-served.sock"
    async with echo(plain, answer_bytes) as plain_echo, echo(tuned, answer_bytes, as_served=True) as tuned_echo:
        sides = (
            _Side(plain, Meter({"echo": plain_echo.pid})),
            _Side(tuned, Meter({"echo": tuned_echo.pid})),
            _Side(stack.address("entity"), Meter(stack.pids)),
        )
        # The first turn warms both up, says how much the others may take, and is thrown away.
        for turn in range(rounds + 1):
            for side in sides:
                count = round(side.rates[0] * seconds) // IN_FLIGHT * IN_FLIGHT if turn else WARM_UP
                with side.meter.running():
                    load = await h2load.run(side.socket, method, bodies, count, IN_FLIGHT, tenant.token)
                check(load, answer_bytes)
                side.calls += load.requests
                side.rates.append(load.per_second)
    echo_side, tuned_side, ours = sides
    context = {
        "in_flight": IN_FLIGHT,
        "cores": stack.cores,
        "sidecars": False,
        "answer_bytes": answer_bytes,
        "cpu_us_per_call": ours.meter.microseconds(ours.calls),
        "ceiling_cpu": echo_side.meter.cores(),
        "ceiling_cpu_us_per_call": echo_side.meter.microseconds(echo_side.calls),
        "echo_as_served": round(statistics.median(tuned_side.rates[1:])),
        "echo_as_served_cpu_us_per_call": tuned_side.meter.microseconds(tuned_side.calls),
    }
    return Comparison(ours.rates[1:], echo_side.rates[1:], ours.calls, ours.meter.cores(), context)


@dataclass(slots=True)
class _Side:
    socket: Path
    meter: Meter
    calls: int = 0
    rates: list[float] = field(default_factory=list)


def check(load: h2load.Load, answer_bytes: int) -> None:
    """Refuse figures of calls that failed: an error has no body, so the mean size gives it away."""
    expected = answer_bytes + 5
    if load.succeeded != load.requests or abs(load.answer_bytes / expected - 1) > SIZE_TOLERANCE:
        raise RuntimeError(f"not all calls succeeded: {load}, expected {expected} bytes per answer")


@asynccontextmanager
async def echo(socket: Path, answer_bytes: int, *, as_served: bool = False) -> AsyncIterator[Process]:
    """An echo server on the core of the services."""
    command = [sys.executable, "-m", "benchmarks.echo", f"unix:{socket}", str(answer_bytes)]
    if as_served:
        command.append("as-served")
    environment = {**os.environ, "GRPC_EXPERIMENTS": OLDER_IO if as_served else ""}
    process = await asyncio.create_subprocess_exec(*pin(SUBJECT_CORE), *command, env=environment)
    try:
        await wait_for_socket(socket, process)
        yield process
    finally:
        process.terminate()
        await process.wait()
        socket.unlink(missing_ok=True)
