"""Logs as JSON lines, metrics for Prometheus, traces when asked for."""

from __future__ import annotations

import json
import logging
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import accumulate

import orjson
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class _Observed:
    """The unary calls of one method: how many by outcome, and how long they took.

    Counted by hand, because all calls of a process run in one thread: the metrics of prometheus_client take a lock, and
    3 us of a call.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.codes = {"OK": 0}
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.seconds = 0.0

    def record(self, code: str, duration: float) -> None:
        self.buckets[bisect_left(BUCKETS, duration)] += 1
        self.seconds += duration
        self.codes[code] = self.codes.get(code, 0) + 1


class _Calls(Collector):
    """Every method's calls, for ``/metrics``."""

    def __init__(self) -> None:
        self.observed: dict[str, _Observed] = {}

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily("strandline_rpc_calls", "Unary calls by outcome.", labels=["method", "code"])
        seconds = HistogramMetricFamily("strandline_rpc_seconds", "Duration of unary calls.", labels=["method"])
        bounds = [str(float(bound)) for bound in BUCKETS] + ["+Inf"]
        for observed in self.observed.values():
            for code, count in observed.codes.items():
                calls.add_metric([observed.method, code], count)
            cumulated = list(zip(bounds, accumulate(observed.buckets), strict=True))
            seconds.add_metric([observed.method], cumulated, observed.seconds)
        yield calls
        yield seconds


_CALLS = _Calls()
REGISTRY.register(_CALLS)


class JsonFormatter(logging.Formatter):
    """One line per record: time, level, logger, message and, for failures, the trace."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line).decode()
        except TypeError:  # half a surrogate pair, out of a caller's text
            return json.dumps(line)


def configure_logging(service: str, level: str = "INFO") -> None:
    """Write everything to stderr, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # its remarks on how libraries close TLS help nobody
    # Its own refusals repeat what was sent. What our handlers raise never comes to it.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    logging.getLogger("nats").setLevel(logging.ERROR)  # its reconnect attempts are reported by our own callbacks


def observer(method: str) -> Callable[[str, float], None]:
    """A function that records one call of *method*: its code and its seconds."""
    return _CALLS.observed.setdefault(method, _Observed(method)).record
