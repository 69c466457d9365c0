"""Sealing personal data: a key per user, wrapped by a key of the platform.

A sealed value is ``0x01 | key version (2) | nonce (12) | ciphertext | tag (16)``, AES-256-GCM. The additional data
names table, column and user, so that a value moved to another row or column does not open. Removing a user's wrapped
key makes their data unreadable everywhere, in every backup that does not hold the key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORMAT: Final = 1
_NONCE_BYTES: Final = 12
_HEADER_BYTES: Final = 3
_TAG_BYTES: Final = 16
# A user has one key for life; the number leaves room for a second one after a compromise.
_USER_KEY_VERSION: Final = 1


class SealError(Exception):
    """A sealed value does not open: a wrong key, another place, or changed bytes."""


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A user's key, sealed by the platform key of ``kek_version``."""

    kek_version: int
    sealed: bytes


class UserKey:
    """The key of one user's personal data, in the clear: keep it no longer than a request."""

    def __init__(self, user_id: str, key: bytes) -> None:
        self._user_id = user_id
        self._cipher = AESGCM(key)

    def seal(self, column: str, text: str) -> bytes:
        """*text* as it is stored in *column* of ``users``."""
        return _seal(self._cipher, _USER_KEY_VERSION, _place("users", column, self._user_id), text.encode())

    def open(self, column: str, sealed: bytes) -> str:
        """The text that ``seal`` was given for the same column.

        Raises:
            SealError: it was sealed for another place or by another key, or was changed.
        """
        return _open(self._cipher, _place("users", column, self._user_id), sealed).decode()


class Keyring:
    """The platform's keys, by version from 1; the newest one wraps."""

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        if not keys:
            raise RuntimeError("there is no key to wrap users' keys with")
        self._ciphers = {version: AESGCM(key) for version, key in keys.items()}
        self._newest = max(keys)

    def new_key(self, user_id: str) -> tuple[UserKey, WrappedKey]:
        """A fresh key for the user *user_id*."""
        key = os.urandom(32)
        place = _place("user_keys", "wrapped_key", user_id)
        return UserKey(user_id, key), WrappedKey(
            self._newest, _seal(self._ciphers[self._newest], self._newest, place, key)
        )

    def unwrap(self, user_id: str, wrapped: WrappedKey) -> UserKey:
        """The key of the user *user_id*.

        Raises:
            SealError: the platform key is missing, or it is another user's.
        """
        cipher = self._ciphers.get(wrapped.kek_version)
        if cipher is None:
            raise SealError(f"platform key {wrapped.kek_version} is missing")
        return UserKey(user_id, _open(cipher, _place("user_keys", "wrapped_key", user_id), wrapped.sealed))


def _place(table: str, column: str, user_id: str) -> bytes:
    return f"strandline|v1|{table}|{column}|{user_id}".encode()


def _seal(cipher: AESGCM, version: int, place: bytes, content: bytes) -> bytes:
    nonce = os.urandom(_NONCE_BYTES)
    return bytes((_FORMAT,)) + version.to_bytes(2, "big") + nonce + cipher.encrypt(nonce, content, place)


def _open(cipher: AESGCM, place: bytes, sealed: bytes) -> bytes:
    nonce, rest = sealed[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES], sealed[_HEADER_BYTES + _NONCE_BYTES :]
    if sealed[:1] != bytes((_FORMAT,)) or len(rest) < _TAG_BYTES:
        raise SealError("not a sealed value")
    try:
        return cipher.decrypt(nonce, rest, place)
    except InvalidTag:
        raise SealError("the sealed value does not open here") from None
