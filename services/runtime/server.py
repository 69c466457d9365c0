"""The life of a service process: listen, serve, drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from services.runtime.rpc import Admission, generic_handler
from services.runtime.settings import Settings
from services.runtime.upstream import MESSAGE_OPTIONS

logger = logging.getLogger(__name__)

Hook = Callable[[], Awaitable[None]]


class Server:
    """One gRPC server with health, on an address that only the sidecar reaches."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._server = grpc.aio.server(options=(*MESSAGE_OPTIONS, ("grpc.so_reuseport", 0)))
        self._health = health.aio.HealthServicer()
        self._drain_hooks: list[Hook] = []
        self._stopping = asyncio.Event()

    def add(self, service: str, handlers: object, admit: Admission) -> None:
        """Serve *handlers* as *service* (full proto name), each call behind *admit*."""
        self._server.add_generic_rpc_handlers((generic_handler(service, handlers, admit),))

    def on_drain(self, hook: Hook) -> None:
        """Await *hook* when the drain begins, while running calls still run: streams say goodbye here."""
        self._drain_hooks.append(hook)

    def stop(self) -> None:
        """Begin to drain, as SIGTERM does."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; then give running calls ``settings.drain`` to finish."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        remove_stale_socket(self._settings.listen)
        # Services are asked in order whether a call is theirs: health last, the busiest was added first.
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_insecure_port(self._settings.listen)
        await self._server.start()
        let_the_loop_finish()
        metrics = await serve_metrics(self._settings.metrics_listen) if self._settings.metrics_listen else None
        await self._health.set("", health_pb2.HealthCheckResponse.SERVING)
        logger.info("serving on %s", self._settings.listen)
        await self._stopping.wait()
        logger.info("draining")
        await self._health.enter_graceful_shutdown()  # NOT_SERVING: callers look elsewhere
        await asyncio.gather(*(hook() for hook in self._drain_hooks))
        await self._server.stop(grace=self._settings.drain.total_seconds())
        if metrics is not None:
            metrics.close()


def let_the_loop_finish() -> None:
    """Have gRPC's threads wait for a free core, or their turn, before they run; the main thread goes on meanwhile.

    Else each event that gRPC has for the loop interrupts the loop, where both share a core: 12 switches a call. So the
    loop sees to all that came meanwhile at once: 2. A thread that starts later is as the one that started it.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return  # no Linux
    for thread in map(int, os.listdir("/proc/self/task")):
        if thread != os.getpid():
            with suppress(OSError):  # it has ended, or this may not be asked for here: then calls cost more
                os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def remove_stale_socket(address: str) -> None:
    """A unix socket that a killed predecessor left would refuse the new one."""
    if address.startswith("unix:"):
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)


async def serve_metrics(address: str) -> asyncio.Server:
    """``/metrics`` for Prometheus, over the smallest HTTP that its scraper needs."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            body = generate_latest()
            head = f"HTTP/1.1 200 OK\r\ncontent-type: {CONTENT_TYPE_LATEST}\r\ncontent-length: {len(body)}\r\n"
            writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, ConnectionError):
            logger.debug("a scrape broke off")
        finally:
            writer.close()

    if address.startswith("unix:"):
        remove_stale_socket(address)
        return await asyncio.start_unix_server(answer, address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await asyncio.start_server(answer, host, int(port))


def run_main(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *main* on uvloop; leave with 1 and one clear line when it cannot start."""
    os.umask(0o077)  # sockets are for this user's processes only
    # What a call of ours makes dies by reference count; full collections took a quarter of the time of batchWrite. What
    # grpcio and failures leave: see ``rpc.COLLECT_EVERY``.
    gc.freeze()
    gc.set_threshold(100_000, 10, 100)
    try:
        uvloop.run(main())
    except (KeyError, OSError, RuntimeError) as failure:
        logger.critical("cannot run: %s: %s", type(failure).__name__, failure)
        raise SystemExit(1) from failure
