"""Access tokens: made here, and only here; the public keys to check them with."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.runtime.tokens import AUDIENCE, TOKEN_TYPE, KeySet
from services.user.sessions import ACCESS_LIFE


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One key of the JWK set: ``kid`` is its RFC 7638 thumbprint, ``x`` the key, both base64url."""

    kid: str
    x: str


class TokenSigner:
    """Signs access tokens with the newest of its keys, and publishes all of them."""

    def __init__(self, folder: Path, issuer: str) -> None:
        """Read the PEM files of *folder*, by name: the last that is not named ``next*`` signs.

        A key is published as ``next`` for a while before it signs, so that whoever keeps the set knows it by then.

        Raises:
            RuntimeError: no key, a key that others may read, or one that is not Ed25519.
        """
        self._issuer = issuer
        paths = sorted(folder.glob("*.pem"))
        keys = {path: _read_private_key(path) for path in paths}
        signing = [path for path in paths if not path.name.startswith("next")]
        if not signing:
            raise RuntimeError(f"{folder} holds no signing key")
        self._private_key = keys[signing[-1]]
        self._header = {"alg": "EdDSA", "typ": TOKEN_TYPE, "kid": _public(self._private_key).kid}
        self.public_keys: Sequence[PublicKey] = [_public(key) for key in keys.values()]
        self._key_set = KeySet.from_jwks({"kid": key.kid, "crv": "Ed25519", "x": key.x} for key in self.public_keys)

    def issue(self, user_id: str, session_id: str, scopes: Sequence[str], now: float) -> str:
        """A token for one session, valid for 10 minutes from *now* (seconds since the epoch)."""
        issued = int(now)
        claims = {
            "iss": self._issuer,
            "aud": AUDIENCE,
            "sub": user_id,
            "sid": session_id,
            "jti": secrets.token_urlsafe(16),
            "iat": issued,
            "nbf": issued,
            "exp": issued + int(ACCESS_LIFE.total_seconds()),
            "scope": " ".join(scopes),
        }
        content = f"{_encoded(self._header)}.{_encoded(claims)}"
        return f"{content}.{_base64url(self._private_key.sign(content.encode()))}"

    async def key_set(self, look_again: bool) -> KeySet:
        """The public keys, as ``TokenVerifier`` asks for them."""
        return self._key_set


def _read_private_key(path: Path) -> Ed25519PrivateKey:
    if path.stat().st_mode & 0o077:
        raise RuntimeError(f"{path} can be read by others: chmod 600 it")
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise RuntimeError(f"{path} is not an Ed25519 key")
    return key


def _public(key: Ed25519PrivateKey) -> PublicKey:
    x = _base64url(key.public_key().public_bytes_raw())
    # RFC 7638: the required members only, sorted, without white space.
    members = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"))
    return PublicKey(_base64url(hashlib.sha256(members.encode()).digest()), x)


def _encoded(value: dict[str, Any]) -> str:
    return _base64url(json.dumps(value, separators=(",", ":")).encode())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
