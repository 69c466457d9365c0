"""What an operator may set, read once at start. Durations are in seconds in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every service needs. A missing variable is a ``KeyError`` with its name, at start."""

    listen: str
    """gRPC address, ``unix:/path`` or ``127.0.0.1:port``: only the sidecar reaches it."""
    database_url: str = field(repr=False)
    """Connection of the app role, password included."""
    migrate_url: str = field(default="", repr=False)
    """Connection of the migrating role. When set, the schema is brought up to date before serving (local topology)."""
    nats_url: str = ""
    """Bus; empty: none, everything is then learned by asking."""
    nats_credentials: tuple[str, str] = field(default=("", ""), repr=False)
    """User and password on the bus."""
    tls_dir: Path | None = None
    """Folder with cert.pem, key.pem and ca.pem for the bus."""
    secrets_dir: Path
    """Folder with this service's keys."""
    metrics_listen: str = ""
    """HTTP address of ``/metrics``, ``unix:/path`` or ``127.0.0.1:port``; empty: none."""
    token_issuer: str = "https://strandline.local"
    """``iss`` of access tokens."""
    drain: timedelta = timedelta(seconds=5)
    """How long running calls may take after SIGTERM."""
    log_level: str = "INFO"

    @classmethod
    def common(cls, env: Mapping[str, str]) -> dict[str, object]:
        """The fields of this class from ``STRANDLINE_*``."""
        credentials = env.get("STRANDLINE_NATS_CREDENTIALS_FILE")
        user, _, password = Path(credentials).read_text().strip().partition(":") if credentials else ("", "", "")
        tls_dir = env.get("STRANDLINE_TLS_DIR")
        return {
            "listen": env["STRANDLINE_LISTEN"],
            "database_url": with_password(env["STRANDLINE_DATABASE_URL"], env.get("STRANDLINE_DATABASE_PASSWORD_FILE")),
            "migrate_url": with_password(
                env.get("STRANDLINE_MIGRATE_URL", ""), env.get("STRANDLINE_MIGRATE_PASSWORD_FILE")
            ),
            "nats_url": env.get("STRANDLINE_NATS_URL", ""),
            "nats_credentials": (user, password),
            "tls_dir": Path(tls_dir) if tls_dir else None,
            "secrets_dir": Path(env["STRANDLINE_SECRETS_DIR"]),
            "metrics_listen": env.get("STRANDLINE_METRICS_LISTEN", ""),
            "token_issuer": env.get("STRANDLINE_TOKEN_ISSUER", cls.token_issuer),
            "drain": timedelta(seconds=float(env.get("STRANDLINE_DRAIN_SECONDS", cls.drain.total_seconds()))),
            "log_level": env.get("STRANDLINE_LOG_LEVEL", cls.log_level),
        }

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read ``STRANDLINE_*``."""
        return cls(**cls.common(env))  # type: ignore[arg-type]  # the keys are this class's own fields


def with_password(url: str, password_file: str | None) -> str:
    """*url* with the password from a file put in (as ``password=``, so that nothing needs quoting by hand)."""
    if not url or not password_file:
        return url
    from urllib.parse import quote

    separator = "&" if "?" in url else "?"
    return f"{url}{separator}password={quote(Path(password_file).read_text().strip(), safe='')}"


def read_key(folder: Path, name: str) -> bytes:
    """A secret key of 32 bytes; a shorter file, or one that others may read, is refused at start."""
    path = folder / name
    if path.stat().st_mode & 0o077:
        raise RuntimeError(f"{path} can be read by others: chmod 600 it")
    key = path.read_bytes()
    if len(key) != 32:
        raise RuntimeError(f"{path} must hold 32 bytes, it holds {len(key)}")
    return key


def read_keys(folder: Path) -> dict[int, bytes]:
    """The keys ``<version>.key`` in *folder*, by version."""
    versions = [int(name.removesuffix(".key")) for name in os.listdir(folder) if name.endswith(".key")]
    return {version: read_key(folder, f"{version}.key") for version in versions}
