"""The secrets of a local platform, made at its first start and never printed.

Every file is 0600 in a 0700 folder:

    postgres/{superuser,<service>_migrate,<service>_app}     passwords
    nats/<service>                                           user:password
    user/   signing/{001,next}.pem, kek/1.key, blind_index.key, pepper.key, refresh.key, page_token.key
    entity/ page_token.key        stream/ resume_token.key, ticket.key, kek/1.key
    admin/  password              of the administrator that `strandline token` signs in
"""

from __future__ import annotations

import secrets
from pathlib import Path

from strandline_cli.home import write_private

SERVICES = ("user", "entity", "stream")
ADMIN_EMAIL = "admin@example.com"
_PASSWORDS = (
    "admin/password",
    "postgres/superuser",
    *(f"postgres/{service}_{role}" for service in SERVICES for role in ("migrate", "app")),
)
_KEYS = (
    "user/kek/1.key",
    "user/blind_index.key",
    "user/pepper.key",
    "user/refresh.key",
    "user/page_token.key",
    "entity/page_token.key",
    "stream/resume_token.key",
    "stream/kek/1.key",
    "stream/ticket.key",
)
_SIGNING_KEYS = ("user/signing/001.pem", "user/signing/next.pem")
_KEY_BYTES = 32


def ensure_secrets(folder: Path) -> None:
    """Make every secret that is missing, but for the signing keys; what exists is never touched (it encrypts data)."""
    for name in _PASSWORDS:
        _ensure(folder / name, new_password().encode())
    for service in SERVICES:
        _ensure(folder / "nats" / service, f"{service}:{new_password()}".encode())
    for name in _KEYS:
        _ensure(folder / name, secrets.token_bytes(_KEY_BYTES))


def ensure_signing_keys(folder: Path) -> None:
    """Make the keys that sign access tokens, when they are missing."""
    for name in _SIGNING_KEYS:
        if not (folder / name).exists():
            _ensure(folder / name, _new_signing_key())


def new_password() -> str:
    """192 random bits, letters and digits only: safe in URLs, SQL and configuration files."""
    return secrets.token_hex(24)


def _ensure(path: Path, content: bytes) -> None:
    for parent in reversed(path.parents):
        parent.mkdir(mode=0o700, exist_ok=True)
    if not path.exists():
        write_private(path, content)


def _new_signing_key() -> bytes:
    # Imported here: 0.1 s and 10 MB that every other command does without.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
