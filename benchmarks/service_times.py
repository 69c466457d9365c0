"""How long the calls of one RPC took inside a service: from its own histogram, as Prometheus reads it.

The client's clock has the way there and back in it, and the client itself. The service's runs from the bytes of a
request to those of the answer. A percentile is interpolated inside a bucket, as Prometheus does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

_HISTOGRAM = "strandline_rpc_seconds"
Counts = Mapping[float, float]
"""Calls by the upper bound of their seconds, cumulated."""


class ServiceTimes:
    """The calls of *method* (a path) at the service whose metrics are at *socket*, from ``begin`` on."""

    def __init__(self, socket: Path, method: str) -> None:
        self._socket = socket
        self._method = method
        self._before: Counts = {}

    async def begin(self) -> None:
        """Count from now on."""
        self._before = await self._read()

    async def end(self) -> Counts:
        """The calls since ``begin``."""
        return {bound: count - self._before.get(bound, 0.0) for bound, count in (await self._read()).items()}

    async def _read(self) -> Counts:
        reader, writer = await asyncio.open_unix_connection(self._socket)
        try:
            writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
            _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        return {
            float(sample.labels["le"]): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
            if sample.name == f"{_HISTOGRAM}_bucket" and sample.labels["method"] == self._method
        }


def quantile(counts: Counts, percent: int) -> float:
    """The seconds that *percent* of the calls took at most; of what lies beyond the last bound, that bound."""
    wanted = counts[float("inf")] * percent / 100
    below, passed = 0.0, 0.0
    for bound, count in sorted(counts.items()):
        if bound == float("inf"):
            break
        if count >= wanted:
            return below + (bound - below) * (wanted - passed) / max(count - passed, 1e-9)
        below, passed = bound, count
    return below


def share_within(counts: Counts, seconds: float) -> float:
    """The share of calls that took at most *seconds*, which must be a bound."""
    return counts[seconds] / counts[float("inf")]
