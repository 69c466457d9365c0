"""The service as a process of its own, with a real bus, seen from the services around it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from psycopg import sql
from strandline.stream.v1 import log_service_pb2
from strandline.user.v1 import auth_service_pb2 as auth
from strandline.user.v1 import auth_service_pb2_grpc, namespace_service_pb2_grpc
from strandline.user.v1 import namespace_service_pb2 as pb

from services.runtime.access import HEARTBEAT_SECONDS, AccessCopy
from services.runtime.bus import Bus
from services.runtime.errors import Error
from services.runtime.gate import EDITOR, VIEWER
from services.runtime.remote_keys import RemoteKeys
from services.runtime.tokens import TokenVerifier
from tests.integration.user.conftest import PASSWORD, DatabaseFactory, Mailbox, Person, token_in
from tests.nats import Nats

ADMIN = "admin@example.com"
CANARY = "canary-7f3a"
PATIENCE_SECONDS = 60.0
"""A start takes 4 s, half of it imports, and a busy machine ten times that."""


@dataclass
class Process:
    """A running ``strandline-user``."""

    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel
    environment: dict[str, str]
    superuser: str
    started_in: float

    @property
    def auth(self) -> Any:
        return auth_service_pb2_grpc.AuthServiceStub(self.channel)

    @property
    def namespaces(self) -> Any:
        return namespace_service_pb2_grpc.NamespaceServiceStub(self.channel)

    async def sign_in(self, email: str) -> Person:
        answer = await self.auth.Login(auth.LoginRequest(email=email, password=PASSWORD))
        return Person(email, access_token=answer.access_token, refresh_token=answer.refresh_token)

    async def stop(self) -> tuple[int, str]:
        """SIGTERM; the exit code and everything that was logged."""
        self.process.send_signal(signal.SIGTERM)
        _, logged = await asyncio.wait_for(self.process.communicate(), PATIENCE_SECONDS)
        assert self.process.returncode is not None
        return self.process.returncode, logged.decode()


@pytest.fixture(scope="session")
def nats_server() -> Iterator[Nats]:
    server = Nats()
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def environment(
    databases: DatabaseFactory, folder: Path, secrets_dir: Path, mailbox: Mailbox, nats_server: Nats
) -> tuple[dict[str, str], str]:
    """What the supervisor tells the process, on a database that is empty yet; and a superuser's URL."""
    name = f"user{time.time_ns()}"
    app, migrating, superuser = await databases(name)
    password = folder / "admin-password"
    password.write_text(PASSWORD)
    return (
        {
            "PATH": os.environ["PATH"],
            "STRANDLINE_LISTEN": f"unix:{folder}/{name}.sock",
            "STRANDLINE_DATABASE_URL": url_of(app),
            "STRANDLINE_MIGRATE_URL": url_of(migrating),
            "STRANDLINE_NATS_URL": nats_server.url,
            "STRANDLINE_SECRETS_DIR": str(secrets_dir),
            "STRANDLINE_ENTITY_ADDRESS": f"unix:{folder}/nobody.sock",
            "STRANDLINE_SMTP_URL": f"smtp://127.0.0.1:{mailbox.port}",
            "STRANDLINE_BOOTSTRAP_ADMIN_EMAIL": ADMIN,
            "STRANDLINE_BOOTSTRAP_ADMIN_PASSWORD_FILE": str(password),
        },
        superuser,
    )


def url_of(conninfo: str) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    return f"postgresql://{parts['user']}@/{parts['dbname']}?host={parts['host']}"


@asynccontextmanager
async def launched(environment: tuple[dict[str, str], str]) -> AsyncIterator[Process]:
    variables, superuser = environment
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.user.server"),
        env=variables,
        cwd=Path(__file__).parents[3],
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with grpc.aio.insecure_channel(variables["STRANDLINE_LISTEN"]) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=PATIENCE_SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            yield Process(process, channel, variables, superuser, time.monotonic() - began)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Wait until *check* holds."""
    began = time.monotonic()
    while not await check():
        assert time.monotonic() - began < PATIENCE_SECONDS
        await asyncio.sleep(0.02)


async def test_grpcs_threads_do_not_interrupt_the_loop(environment: tuple[dict[str, str], str]) -> None:
    async with launched(environment) as user:
        pid = user.process.pid
        policies = []
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                policies += [os.sched_getscheduler(int(thread.name))] if int(thread.name) != pid else []
        assert os.sched_getscheduler(pid) == os.SCHED_OTHER
        # What the loop has started since is as the loop.
        assert policies.count(os.SCHED_BATCH) > policies.count(os.SCHED_OTHER)


async def test_it_starts_on_an_empty_database_makes_an_administrator_and_stops_cleanly(
    environment: tuple[dict[str, str], str],
) -> None:
    for _ in range(2):  # the second start finds everything made
        async with launched(environment) as user:
            admin = await user.sign_in(ADMIN)
            answer = await user.auth.GetJwks(auth.GetJwksRequest())
            assert len(answer.keys) == 2
            principal = await TokenVerifier("https://strandline.local", RemoteKeys(user.channel).get).verify(
                admin.access_token
            )
            assert principal.is_administrator
            assert proportional_megabytes(user.process.pid) < 130  # the first start holds the migration tool too
            code, logged = await user.stop()
            assert code == 0, logged
    async with await psycopg.AsyncConnection.connect(environment[1]) as connection:
        rows = await (await connection.execute("SELECT count(*) FROM users")).fetchall()
    assert rows == [(1,)]


def proportional_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


async def test_without_a_database_it_ends_with_one_clear_line(environment: tuple[dict[str, str], str]) -> None:
    variables = environment[0] | {"STRANDLINE_SECRETS_DIR": "/nonexistent"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.user.server"),
        env=variables,
        cwd=Path(__file__).parents[3],
        stderr=asyncio.subprocess.PIPE,
    )
    _, logged = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode == 1
    (line,) = logged.decode().splitlines()
    assert "cannot run" in line


async def test_others_learn_of_changes_and_hear_a_heartbeat_every_half_second(
    environment: tuple[dict[str, str], str], nats_server: Nats, mailbox: Mailbox
) -> None:
    async with launched(environment) as user:
        admin = await user.sign_in(ADMIN)
        bus = Bus(nats_server.url, ("", ""), None, "watcher")
        bus.start()
        heads: list[log_service_pb2.Head] = []

        async def heard(payload: bytes) -> None:
            heads.append(log_service_pb2.Head.FromString(payload))

        began = time.monotonic()
        await bus.subscribe("strandline.heartbeat.system", heard)
        copy = AccessCopy(user.channel, bus)
        await copy.start()
        verifier = TokenVerifier("https://strandline.local", RemoteKeys(user.channel).get)
        principal = await verifier.verify(admin.access_token)
        await user.namespaces.CreateNamespace(
            pb.CreateNamespaceRequest(namespace_id="tides"), metadata=admin.credentials
        )
        assert (await copy.authorize(principal, "tides", EDITOR, write=True)).id == "tides"
        assert copy.fresh

        async def signed_out() -> bool:
            try:
                await copy.check_session(principal)
            except Error:
                return True
            return False

        await user.auth.Logout(auth.LogoutRequest(refresh_token=admin.refresh_token))
        await eventually(signed_out)
        again = await user.sign_in(ADMIN)
        await user.namespaces.DeleteNamespace(
            pb.DeleteNamespaceRequest(name="namespaces/tides"), metadata=again.credentials
        )

        async def gone() -> bool:
            try:
                await copy.recheck(await verifier.verify(again.access_token), "tides")
            except Error:
                return True
            return False

        await eventually(gone)
        seen = len(heads)

        async def beats() -> bool:
            return len(heads) >= seen + 4

        await eventually(beats)
        # One that was late is followed by the next one in time.
        assert len(heads) <= (time.monotonic() - began) / HEARTBEAT_SECONDS + 2
        assert {head.namespace_id for head in heads} == {"system"}
        assert VIEWER < EDITOR
        await copy.stop()
        await bus.close()


async def test_personal_data_is_in_no_table_log_line_or_message(
    environment: tuple[dict[str, str], str], nats_server: Nats, mailbox: Mailbox
) -> None:
    """The mail alone holds the address; the dump holds nothing of it, neither as text nor as hexadecimal."""
    email = f"{CANARY}@example.com"
    messages: list[bytes] = []
    variables, superuser = environment
    environment = (variables | {"STRANDLINE_LOG_LEVEL": "DEBUG"}, superuser)
    async with launched(environment) as user:
        bus = Bus(nats_server.url, ("", ""), None, "listener")
        bus.start()

        async def heard(payload: bytes) -> None:
            messages.append(payload)

        async def listens() -> bool:
            return bool(messages)

        await bus.subscribe("strandline.>", heard)
        await eventually(listens)  # a heartbeat: from here on nothing goes unheard
        mailbox.refuse = 1  # what the mail server says about a recipient must not be logged either
        names = {"given_name": f"{CANARY}-given", "family_name": f"{CANARY}-family"}
        await user.auth.Register(auth.RegisterRequest(email=email, password=PASSWORD, **names))
        (mail,) = await mailbox.wait_for(email)
        await user.auth.Register(auth.RegisterRequest(email=email.upper(), password=PASSWORD))
        await user.auth.VerifyEmail(auth.VerifyEmailRequest(token=token_in(mail)))
        await user.auth.Register(auth.RegisterRequest(email=email, password=PASSWORD))
        person = await user.sign_in(email)
        for wrong in (email, f"{CANARY}@nowhere.example", f"{CANARY}\r\n"):
            with pytest.raises(grpc.aio.AioRpcError):
                await user.auth.Login(auth.LoginRequest(email=wrong, password="wrong" * 4))
        with pytest.raises(grpc.aio.AioRpcError):
            await user.auth.Register(auth.RegisterRequest(email=f"{CANARY} no address", password=PASSWORD))
        await user.namespaces.CreateNamespace(
            pb.CreateNamespaceRequest(namespace_id="tides"), metadata=person.credentials
        )
        me = await auth_service_pb2_grpc.UserServiceStub(user.channel).GetMe(
            auth.GetMeRequest(), metadata=person.credentials
        )
        assert (me.user.email, me.user.given_name) == (email, names["given_name"])
        await mailbox.wait_for(email, 2)
        dump = await dump_of(superuser)
        code, logged = await user.stop()
        await bus.close()
    assert code == 0
    assert "serving" in logged
    assert me.user.user_id in dump
    secrets = (CANARY, CANARY.upper(), CANARY.encode().hex(), PASSWORD, person.refresh_token, token_in(mail))
    for secret in secrets:
        assert secret not in dump
        assert secret not in logged
        assert not any(secret.encode() in message for message in messages)


async def dump_of(superuser: str) -> str:
    """Every row of every table, as text."""
    async with await psycopg.AsyncConnection.connect(superuser) as connection:
        tables = await (
            await connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ).fetchall()
        assert len(tables) >= 12
        everything = sql.SQL(" UNION ALL ").join(
            sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table)) for (table,) in tables
        )
        rows = await (await connection.execute(everything)).fetchall()
    return "\n".join(row for (row,) in rows)


async def test_lost_connections_are_made_again_without_anybody_noticing(
    environment: tuple[dict[str, str], str],
) -> None:
    async with launched(environment) as user:
        admin = await user.sign_in(ADMIN)
        for number in range(3):
            async with await psycopg.AsyncConnection.connect(environment[1], autocommit=True) as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE '%\\_app'"
                )
            request = pb.CreateNamespaceRequest(namespace_id=f"tides{number}")
            await user.namespaces.CreateNamespace(request, metadata=admin.credentials)
            await user.sign_in(ADMIN)


async def test_the_heartbeat_and_the_deletions_outlive_failures_that_nobody_expected(
    environment: tuple[dict[str, str], str], nats_server: Nats
) -> None:
    async with launched(environment) as user:
        bus = Bus(nats_server.url, ("", ""), None, "watcher")
        bus.start()
        heads = 0

        async def heard(payload: bytes) -> None:
            nonlocal heads
            heads += 1

        await bus.subscribe("strandline.heartbeat.system", heard)
        async with await psycopg.AsyncConnection.connect(environment[1], autocommit=True) as connection:
            for table in ("heads", "namespaces"):
                await connection.execute(f"ALTER TABLE {table} RENAME TO {table}_away".encode())
            await asyncio.sleep(6)  # the deletions are looked for every 5 s
            for table in ("heads", "namespaces"):
                await connection.execute(f"ALTER TABLE {table}_away RENAME TO {table}".encode())
        before = heads

        async def beats() -> bool:
            return heads > before + 2

        await eventually(beats)
        await bus.close()
        code, logged = await user.stop()
        assert code == 0, logged
        assert logged.count("Traceback") >= 2
        assert "never retrieved" not in logged
