"""Load from h2load (C): gRPC calls over HTTP/2 on a unix socket, from core 1.

h2load knows HTTP only. A gRPC error is HTTP 200 without a body, so ``Load.answer_bytes`` is what tells success: it must
be the size of a right answer.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import LOAD_CORE, pin

MISSING = "h2load is not installed: apt-get install nghttp2-client"
_FINISHED = re.compile(r"finished in ([\d.]+)(us|ms|s|m)\b")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_COUNTS = re.compile(r"requests: (\d+) total, \d+ started, \d+ done, (\d+) succeeded")
_DATA = re.compile(r"\((\d+)\) data")


@dataclass(frozen=True, slots=True)
class Load:
    """What was sent and what came back."""

    requests: int
    succeeded: int
    """HTTP 2xx."""
    seconds: float
    answer_bytes: float
    """Mean size of an answer, with gRPC's 5 bytes of framing."""

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


def installed() -> bool:
    return shutil.which("h2load") is not None


def write_call(path: Path, message: bytes) -> Path:
    """Write *message* as the body of a gRPC call."""
    path.write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    return path


async def run(socket: Path, method: str, calls: Sequence[Path], requests: int, in_flight: int, token: str) -> Load:
    """Make *requests* calls of *method*, *in_flight* at a time, spread over *calls* (bodies; a process for each).

    Raises:
        RuntimeError: h2load itself failed.
    """
    connections = max(1, 8 // len(calls))
    streams = in_flight // (connections * len(calls))
    share = requests // len(calls)
    outputs = await asyncio.gather(
        *(_process(socket, method, call, share, connections, streams, token) for call in calls)
    )
    parsed = [_parse(output) for output in outputs]
    total = sum(load.requests for load in parsed)
    return Load(
        total,
        sum(load.succeeded for load in parsed),
        max(load.seconds for load in parsed),
        sum(load.answer_bytes * load.requests for load in parsed) / total,
    )


async def _process(
    socket: Path, method: str, call: Path, requests: int, connections: int, streams: int, token: str
) -> str:
    headers = {"content-type": "application/grpc", "te": "trailers", "authorization": f"Bearer {token}"}
    process = await asyncio.create_subprocess_exec(
        *pin(LOAD_CORE),
        *("h2load", "-n", str(requests), "-c", str(connections), "-m", str(streams), "-d", str(call)),
        *(option for name, value in headers.items() for option in ("-H", f"{name}: {value}")),
        *("-B", f"unix:{socket}", f"http://localhost{method}"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"h2load failed: {output.decode(errors='replace')[-500:]}")
    return output.decode()


def _parse(output: str) -> Load:
    finished, counts, data = _FINISHED.search(output), _COUNTS.search(output), _DATA.search(output)
    if finished is None or counts is None or data is None:
        raise RuntimeError(f"h2load said something unknown: {output[-500:]}")
    requests = int(counts[1])
    return Load(requests, int(counts[2]), float(finished[1]) * _UNITS[finished[2]], int(data[1]) / requests)
