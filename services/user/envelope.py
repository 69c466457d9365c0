"""Sealing personal data: a key per user, wrapped by a key of the platform.

The place that a value is bound to (``runtime.sealing``) names table, column and user. Removing a user's wrapped key
makes their data unreadable everywhere, in every backup that does not hold the key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.runtime.sealing import SealError, SealingKeys, place_of, seal, unseal

__all__ = ["Keyring", "SealError", "UserKey", "WrappedKey"]

# A user has one key for life; the number leaves room for a second one after a compromise.
_USER_KEY_VERSION: Final = 1


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
        return seal(self._cipher, _USER_KEY_VERSION, place_of("users", column, self._user_id), text.encode())

    def open(self, column: str, sealed: bytes) -> str:
        """The text that ``seal`` was given for the same column.

        Raises:
            SealError: it was sealed for another place or by another key, or was changed.
        """
        return unseal(self._cipher, place_of("users", column, self._user_id), sealed).decode()


class Keyring:
    """The platform's keys, by version from 1; the newest one wraps."""

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        self._keys = SealingKeys(keys)

    def new_key(self, user_id: str) -> tuple[UserKey, WrappedKey]:
        """A fresh key for the user *user_id*."""
        key = os.urandom(32)
        sealed = self._keys.seal(place_of("user_keys", "wrapped_key", user_id), key)
        return UserKey(user_id, key), WrappedKey(self._keys.newest, sealed)

    def unwrap(self, user_id: str, wrapped: WrappedKey) -> UserKey:
        """The key of the user *user_id*.

        Raises:
            SealError: the platform key is missing, or it is another user's.
        """
        return UserKey(user_id, self._keys.unseal(place_of("user_keys", "wrapped_key", user_id), wrapped.sealed))
