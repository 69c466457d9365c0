"""Logs as JSON lines, metrics for Prometheus, traces when asked for."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime

import orjson
from prometheus_client import Counter, Histogram

CALLS = Counter("strandline_rpc_calls_total", "Unary calls by outcome.", ["method", "code"])
SECONDS = Histogram(
    "strandline_rpc_seconds",
    "Duration of unary calls.",
    ["method"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


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
        return orjson.dumps(line).decode()


def configure_logging(service: str, level: str = "INFO") -> None:
    """Write everything to stderr, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # its remarks on how libraries close TLS help nobody
    logging.getLogger("nats").setLevel(logging.ERROR)  # its reconnect attempts are reported by our own callbacks


def observer(method: str) -> Callable[[str, float], None]:
    """A function that records one call of *method*: its code and its seconds."""
    seconds = SECONDS.labels(method)
    ok = CALLS.labels(method, "OK")

    def observe(code: str, duration: float) -> None:
        seconds.observe(duration)
        (ok if code == "OK" else CALLS.labels(method, code)).inc()

    return observe
