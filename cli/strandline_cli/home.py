"""The folder of one local platform: what lies where, who holds it, and what runs in it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# PostgreSQL refuses to run as root; as root the platform gives its folders to the user `nobody`.
NOBODY = 65534
_LOCK_PATIENCE_SECONDS = 0.5
_OWN_ENTRIES = ("certs", "envoy", "lib", "logs", "mail", "nats", "postgres", "run", "secrets", "state.json")


class AlreadyRunning(Exception):
    """Another supervisor holds this folder; carries its pid."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"another platform runs in this folder, pid {pid}")
        self.pid = pid


@dataclass(frozen=True)
class Ports:
    """TCP ports on 127.0.0.1: the edge, the bus, the mail sink and the sidecars' inbound listeners."""

    edge: int
    nats: int
    mail: int
    user: int
    entity: int
    stream: int


@dataclass(frozen=True, kw_only=True)
class State:
    """What a running supervisor tells other terminals."""

    pid: int
    run: str
    """Folder of the unix sockets."""
    ports: Ports
    pids: dict[str, int | None]
    """Part -> its process; None: between two lives."""

    @property
    def path(self) -> Path:
        """The folder of the unix sockets."""
        return Path(self.run)


@dataclass(frozen=True)
class Home:
    """Paths below ``STRANDLINE_HOME``. Nothing is created before ``prepare``."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """``STRANDLINE_HOME``, else ``/var/lib/strandline`` for root and ``~/.local/share/strandline`` for users."""
        if chosen := os.environ.get("STRANDLINE_HOME"):
            return cls(Path(chosen).expanduser().absolute())
        if os.geteuid() == 0:
            return cls(Path("/var/lib/strandline"))
        return cls(Path("~/.local/share/strandline").expanduser())

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def certificates(self) -> Path:
        return self.root / "certs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def mail(self) -> Path:
        return self.root / "mail"

    @property
    def postgres(self) -> Path:
        return self.root / "postgres"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def _state(self) -> Path:
        return self.root / "state.json"

    @property
    def _lock(self) -> Path:
        return self.root / "lock"

    def prepare(self) -> None:
        """Make the folders. As root the way to PostgreSQL's folders is open to ``nobody``, their content is not."""
        as_root = os.geteuid() == 0
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o711 if as_root else 0o700)
        for name in ("certs", "envoy", "logs", "mail", "nats", "secrets"):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        self.postgres.mkdir(mode=0o700, exist_ok=True)
        if as_root:
            os.chown(self.postgres, NOBODY, NOBODY)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only supervisor of this folder; the kernel ends the hold with the process, however that dies.

        Raises:
            AlreadyRunning: somebody else is.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + _LOCK_PATIENCE_SECONDS  # `status` holds it for an instant, to look
            while not _try_lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise AlreadyRunning(int(os.pread(descriptor, 20, 0) or b"0"))
                time.sleep(0.02)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def holder(self) -> int | None:
        """The pid of the supervisor that holds this folder now."""
        try:
            descriptor = os.open(self._lock, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return None if _try_lock(descriptor, fcntl.LOCK_SH) else int(os.pread(descriptor, 20, 0) or b"0")
        finally:
            os.close(descriptor)

    def save_state(self, state: State) -> None:
        """Replace ``state.json``: a reader sees the old or the new one, never half of it."""
        write_private(self._state, json.dumps(asdict(state), indent=2).encode())

    def load_state(self) -> State | None:
        """What the last supervisor wrote; it may be dead (see ``holder``)."""
        try:
            fields: dict[str, Any] = json.loads(self._state.read_bytes())
        except FileNotFoundError:
            return None
        return State(**{**fields, "ports": Ports(**fields["ports"])})

    def erase(self) -> None:
        """Remove what the platform made, and nothing else that may lie in the folder."""
        for name in _OWN_ENTRIES:
            entry = self.root / name
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)
    temporary.replace(path)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
