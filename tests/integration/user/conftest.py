"""A running user service on a real database, with a mail server that keeps what it gets."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, Protocol

import grpc
import psycopg
import pytest
from aiosmtpd.smtp import SMTP
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.rpc import error_details_pb2, status_pb2
from strandline.stream.v1 import log_service_pb2_grpc
from strandline.user.v1 import auth_service_pb2, auth_service_pb2_grpc, namespace_service_pb2_grpc

from services.runtime import changelog
from services.runtime.migrations import migrate
from services.user.model import SYSTEM
from services.user.server import MIGRATIONS, UserService
from services.user.settings import Keys, UserSettings
from tests.postgres import postgres  # noqa: F401  (a fixture)

PASSWORD = "a quiet harbour at dusk"
_numbers = itertools.count(1)


class Mailbox:
    """A mail server; ``refuse`` makes it answer 451 that many times."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.refuse = 0
        self.port = 0
        self._arrived = asyncio.Condition()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.refuse:
            self.refuse -= 1
            return "451 later"
        mail = message_from_bytes(envelope.content, policy=default)
        assert isinstance(mail, EmailMessage)
        async with self._arrived:
            self.mails.append(mail)
            self.recipients += envelope.rcpt_tos
            self._arrived.notify_all()
        return "250 kept"

    def to(self, address: str) -> list[EmailMessage]:
        return [mail for mail, recipient in zip(self.mails, self.recipients, strict=True) if recipient == address]

    async def wait_for(self, address: str, count: int = 1) -> list[EmailMessage]:
        """The mails to *address* once there are *count*."""
        async with self._arrived, asyncio.timeout(30):
            await self._arrived.wait_for(lambda: len(self.to(address)) >= count)
        return self.to(address)


def token_in(mail: EmailMessage) -> str:
    found = re.search(r"slv_[A-Za-z0-9_-]{43}", mail.get_content())
    assert found, "the mail holds no token"
    return found.group()


@dataclass
class Person:
    """Somebody with an account; ``access_token`` and ``refresh_token`` are of the newest sign-in."""

    email: str
    user_id: str = ""
    access_token: str = ""
    refresh_token: str = ""

    @property
    def credentials(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.access_token}"),)


@dataclass
class Running:
    """A user service in this process, and stubs that call it over its socket."""

    service: UserService
    url: str
    channel: grpc.aio.Channel
    mailbox: Mailbox
    keys: Keys
    auth: Any = field(init=False)
    users: Any = field(init=False)
    namespaces: Any = field(init=False)
    access: Any = field(init=False)
    log: Any = field(init=False)

    def __post_init__(self) -> None:
        self.auth = auth_service_pb2_grpc.AuthServiceStub(self.channel)
        self.users = auth_service_pb2_grpc.UserServiceStub(self.channel)
        self.namespaces = namespace_service_pb2_grpc.NamespaceServiceStub(self.channel)
        self.access = namespace_service_pb2_grpc.AccessServiceStub(self.channel)
        self.log = log_service_pb2_grpc.LogServiceStub(self.channel)

    async def register(self, email: str, password: str = PASSWORD, **names: str) -> None:
        await self.auth.Register(auth_service_pb2.RegisterRequest(email=email, password=password, **names))

    async def person(self, name: str = "ann") -> Person:
        """A new verified person who has signed in."""
        person = Person(f"{name}{next(_numbers)}@example.com")
        await self.register(person.email)
        (mail,) = await self.mailbox.wait_for(person.email)
        await self.auth.VerifyEmail(auth_service_pb2.VerifyEmailRequest(token=token_in(mail)))
        await self.sign_in(person)
        me = await self.users.GetMe(auth_service_pb2.GetMeRequest(), metadata=person.credentials)
        person.user_id = me.user.user_id
        return person

    async def sign_in(self, person: Person, password: str = PASSWORD) -> None:
        answer = await self.auth.Login(auth_service_pb2.LoginRequest(email=person.email, password=password))
        person.access_token, person.refresh_token = answer.access_token, answer.refresh_token

    async def rows(self, query: str, *params: Any) -> list[Any]:
        """Look into the database, past the service."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            return await (await connection.execute(query, params)).fetchall()

    async def execute(self, statement: str, *params: Any) -> None:
        """Change the database, past the service."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(statement, params)

    async def head(self) -> changelog.Head:
        (head,) = await changelog.read_heads(self.service.database, [SYSTEM])
        return head


class DatabaseFactory(Protocol):
    async def __call__(self, name: str) -> tuple[str, str, str]: ...


@pytest.fixture(scope="session")
def databases(postgres: str) -> DatabaseFactory:  # noqa: F811
    """Makes a database with the roles of a deployment; URLs of its app, its migrating and its super user."""

    async def make(name: str) -> tuple[str, str, str]:
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as connection:
            for statement in (
                f"CREATE ROLE {name}_owner NOLOGIN",
                f"CREATE ROLE {name}_migrate LOGIN IN ROLE {name}_owner",
                f"CREATE ROLE {name}_app LOGIN",
                f'CREATE DATABASE "{name}" OWNER {name}_owner',
                f'REVOKE ALL ON DATABASE "{name}" FROM PUBLIC',
                f'GRANT CONNECT ON DATABASE "{name}" TO {name}_migrate, {name}_app',
            ):
                await connection.execute(statement.encode())
        superuser = psycopg.conninfo.make_conninfo(postgres, dbname=name)
        async with await psycopg.AsyncConnection.connect(superuser, autocommit=True) as connection:
            for statement in (
                "REVOKE ALL ON SCHEMA public FROM PUBLIC",
                f"ALTER SCHEMA public OWNER TO {name}_owner",
                f"GRANT USAGE ON SCHEMA public TO {name}_app",
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {name}_owner GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES "
                f"TO {name}_app",
                f"ALTER DEFAULT PRIVILEGES FOR ROLE {name}_owner GRANT USAGE ON SEQUENCES TO {name}_app",
            ):
                await connection.execute(statement.encode())
        as_user = psycopg.conninfo.make_conninfo
        return as_user(superuser, user=f"{name}_app"), as_user(superuser, user=f"{name}_migrate"), superuser

    return make


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for unix sockets."""
    made = Path(tempfile.mkdtemp(prefix="sl-user-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def secrets_dir(folder: Path) -> Path:
    """The secrets of a first start."""
    secrets = folder / "secrets"
    for name in ("kek/1.key", "blind_index.key", "pepper.key", "refresh.key", "page_token.key"):
        write_secret(secrets / name, os.urandom(32))
    for name in ("001.pem", "next.pem"):
        key = Ed25519PrivateKey.generate()
        write_secret(secrets / "signing" / name, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return secrets


def write_secret(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


@pytest.fixture(scope="session")
async def mailbox() -> AsyncIterator[Mailbox]:
    made = Mailbox()
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(made, hostname="localhost", enable_SMTPUTF8=True), "127.0.0.1", 0
    )
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


def settings_for(folder: Path, url: str, secrets_dir: Path, mailbox: Mailbox, **more: Any) -> UserSettings:
    return UserSettings(
        listen=f"unix:{folder}/user{next(_numbers)}.sock",
        database_url=url,
        secrets_dir=secrets_dir,
        entity_address=f"unix:{folder}/nobody.sock",
        smtp_url=f"smtp://127.0.0.1:{mailbox.port}",
        **more,
    )


@asynccontextmanager
async def run_service(settings: UserSettings, superuser: str, mailbox: Mailbox) -> AsyncIterator[Running]:
    """Serve inside this process until the block ends."""
    async with await psycopg.AsyncConnection.connect(superuser) as connection:
        row = await (await connection.execute("SELECT epoch FROM heads WHERE namespace = 'system'")).fetchone()
    assert row is not None
    keys = Keys.read(settings.secrets_dir)
    service = UserService(settings, keys, row[0])
    serving = asyncio.create_task(service.run())
    async with grpc.aio.insecure_channel(settings.listen) as channel:
        async with asyncio.timeout(30):
            await channel.channel_ready()
        yield Running(service, superuser, channel, mailbox, keys)
        service.server.stop()
        await serving


@pytest.fixture(scope="session")
async def user(databases: DatabaseFactory, folder: Path, secrets_dir: Path, mailbox: Mailbox) -> AsyncIterator[Running]:
    """The user service."""
    app, migrating, superuser = await databases("user")
    await migrate(migrating, MIGRATIONS)
    async with run_service(settings_for(folder, app, secrets_dir, mailbox), superuser, mailbox) as running:
        yield running


def reason_of(failure: grpc.aio.AioRpcError) -> str:
    """The stable reason of a refusal."""
    reason: str = error_info(failure).reason
    return reason


def error_info(failure: grpc.aio.AioRpcError) -> Any:
    details = dict(failure.trailing_metadata() or ())["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(details)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """The error that *call* ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value
