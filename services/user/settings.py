"""What an operator may set for the user service, and its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from services.runtime.settings import Settings, read_key, read_keys
from services.user.envelope import Keyring


@dataclass(frozen=True, kw_only=True)
class UserSettings(Settings):
    """``Settings`` and what only this service needs."""

    entity_address: str
    """gRPC address of the entity service, as the sidecar offers it."""
    smtp_url: str
    """``smtp://[user:password@]host:port``, or ``smtps://`` for TLS from the first byte."""
    mail_from: str = "Strandline <no-reply@strandline.local>"
    """Sender of every mail."""
    bootstrap_email: str = ""
    """Address of an administrator to make at start if there is none with it; empty: none."""
    bootstrap_password: str = field(default="", repr=False)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Self:
        """Read ``STRANDLINE_*``."""
        password_file = env.get("STRANDLINE_BOOTSTRAP_ADMIN_PASSWORD_FILE")
        return cls(
            **cls.common(env),  # type: ignore[arg-type]  # the keys are fields of the base class
            entity_address=env["STRANDLINE_ENTITY_ADDRESS"],
            smtp_url=env["STRANDLINE_SMTP_URL"],
            mail_from=env.get("STRANDLINE_MAIL_FROM", cls.mail_from),
            bootstrap_email=env.get("STRANDLINE_BOOTSTRAP_ADMIN_EMAIL", ""),
            bootstrap_password=Path(password_file).read_text().strip() if password_file else "",
        )


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The secrets of this service; all of them are files that nobody else may read."""

    keyring: Keyring = field(repr=False)
    blind_index: bytes = field(repr=False)
    pepper: bytes = field(repr=False)
    refresh: bytes = field(repr=False)
    page_token: bytes = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read *folder*; ``kek/<version>.key`` are the keys that wrap users' keys."""
        return cls(
            keyring=Keyring(read_keys(folder / "kek")),
            blind_index=read_key(folder, "blind_index.key"),
            pepper=read_key(folder, "pepper.key"),
            refresh=read_key(folder, "refresh.key"),
            page_token=read_key(folder, "page_token.key"),
        )
