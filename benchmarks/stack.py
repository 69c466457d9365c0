"""The services without proxies: PostgreSQL (fsync on), NATS with TLS, and the services as their console scripts run.

Everything is started as the local platform starts it. Two things differ: PostgreSQL notes when each transaction was
committed (``track_commit_timestamp``), and the sidecars are left out, so that a service's way to another one is that
one's own socket. So a figure from here is about the services, and says nothing about what a client pays at the edge.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path

from strandline_cli import nats, services
from strandline_cli.credentials import SERVICES, ensure_secrets, ensure_signing_keys
from strandline_cli.envoys import TRUST_DOMAIN
from strandline_cli.home import Home, Ports
from strandline_cli.parts import Layout, ProcessPart
from strandline_cli.postgres import Postgres
from strandline_cli.probes import grpc_serves
from strandline_cli.process import last_lines, spawn
from strandline_gateway.certificates import ensure_certificates

from benchmarks.machine import LOAD_CORE, SUBJECT_CORE, cores, pin

READY_SECONDS = 30.0


@dataclass(frozen=True)
class Stack:
    """Running processes and how to reach them."""

    layout: Layout
    processes: Mapping[str, Process]
    cores: Mapping[str, int | str]
    """Which core runs what."""

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.processes.items()}

    def address(self, service: str) -> Path:
        """The gRPC port of *service*."""
        return services.app_socket(self.layout, service)

    @property
    def feeds(self) -> Path:
        """The HTTP port of the stream service."""
        return services.http_socket(self.layout)

    def secret(self, name: str) -> str:
        return (self.layout.home.secrets / name).read_text()

    def database(self, service: str) -> str:
        """Conninfo of the superuser in a service's database."""
        folder = self.layout.run / "postgres"
        return f"host={folder} user=postgres password={self.secret('postgres/superuser')} dbname={service}"


@asynccontextmanager
async def stack(names: Sequence[str], *, subject: str) -> AsyncIterator[Stack]:
    """Run PostgreSQL, NATS and the named services in a temporary folder, until the block ends.

    Args:
        subject: the part that is measured; it has a core to itself.

    Raises:
        RuntimeError: a part did not come to serve within 30 s. Any failure inside carries the ends of the logs.
    """
    folder = Path(tempfile.mkdtemp(prefix="sl-bench-"))
    folder.chmod(0o711)  # PostgreSQL's user passes through
    running: dict[str, Process] = {}
    started: list[ProcessPart] = []
    try:
        layout = await asyncio.to_thread(_prepare, folder)

        async def start(*parts: ProcessPart) -> None:
            for part in parts:
                core = SUBJECT_CORE if part.name == subject else LOAD_CORE
                pinned = replace(part, command=(*pin(core), *part.command))
                running[part.name] = await spawn(pinned, layout.home.logs / f"{part.name}.log")
                started.append(part)
            for part in parts:
                await _wait_until_ready(part, running[part.name], layout)

        database = Postgres(layout)
        await database.initialize()
        server = database.part()
        await start(
            replace(server, command=(*server.command, "-ctrack_commit_timestamp=on")),
            nats.part(layout),
        )
        await database.create_databases()
        await start(*(part for part in services.parts(layout) if part.name in names))
        yield Stack(layout, running, cores(subject))
    except Exception as failure:
        for part in started:
            failure.add_note("\n".join([f"the log of {part.name} ends:", *_log(layout, part)]))
        raise
    finally:
        for part in reversed(started):
            await _end(part, running[part.name])
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def second_replica(stack: Stack) -> AsyncIterator[tuple[Process, Path]]:
    """Another process of the entity service, on the core of the first; and its gRPC port."""
    layout = stack.layout
    first = next(part for part in services.parts(layout) if part.name == "entity")
    socket = layout.run / "entity-2.sock"
    own = {
        "STRANDLINE_LISTEN": f"unix:{socket}",
        "STRANDLINE_METRICS_LISTEN": f"unix:{layout.run / 'entity-2-metrics.sock'}",
    }
    part = replace(
        first,
        address=f"unix:{socket}",
        ready=lambda: grpc_serves(socket),
        command=(*pin(SUBJECT_CORE), *first.command),
        environment={**first.environment, **own},
    )
    process = await spawn(part, layout.home.logs / "entity-2.log")
    try:
        await _wait_until_ready(part, process, layout)
        yield process, socket
    finally:
        await _end(part, process)


def _prepare(folder: Path) -> Layout:
    home, run = Home(folder / "home"), folder / "run"
    home.prepare()
    run.mkdir()
    run.chmod(0o711)
    layout = Layout(home, run, _free_ports())
    ensure_secrets(home.secrets)
    ensure_signing_keys(home.secrets)
    ensure_certificates(home.certificates, (*SERVICES, "nats"), TRUST_DOMAIN)
    nats.write_configuration(layout)
    for service, targets in services.UPSTREAMS.items():
        for target in targets:
            services.outbound_socket(layout, service, target).symlink_to(services.app_socket(layout, target))
    return layout


def _free_ports() -> Ports:
    # Any: the well-known ones are what a platform that starts at the same moment would take.
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in fields(Ports)]
        return Ports(*(probe.getsockname()[1] for probe in probes))


async def _wait_until_ready(part: ProcessPart, process: Process, layout: Layout) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        if await part.ready():
            return
        await asyncio.sleep(0.05)
    raise RuntimeError(f"{part.name} does not serve")


def _log(layout: Layout, part: ProcessPart) -> list[str]:
    return last_lines(layout.home.logs / f"{part.name}.log", 10)


async def _end(part: ProcessPart, process: Process) -> None:
    if process.returncode is None:
        process.send_signal(part.stop_signal)
        try:
            await asyncio.wait_for(process.wait(), part.stop_within)
        except TimeoutError:
            process.kill()
            await process.wait()
