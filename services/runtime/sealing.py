"""Sealing what a dump of a database must not tell: AES-256-GCM, bound to the place where it is stored.

A sealed value is ``0x01 | key version (2) | nonce (12) | ciphertext | tag (16)``. The place is additional data, so that
a value moved to another row or column does not open.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_FORMAT: Final = 1
_NONCE_BYTES: Final = 12
_HEADER_BYTES: Final = 3
_TAG_BYTES: Final = 16


class SealError(Exception):
    """A sealed value does not open: a wrong key, another place, or changed bytes."""


class SealingKeys:
    """The platform's keys, by version from 1; the newest one seals."""

    def __init__(self, keys: Mapping[int, bytes]) -> None:
        if not keys:
            raise RuntimeError("there is no key to seal with")
        self._ciphers = {version: AESGCM(key) for version, key in keys.items()}
        self.newest = max(keys)

    def seal(self, place: bytes, content: bytes) -> bytes:
        """*content* as it is stored at *place*."""
        return seal(self._ciphers[self.newest], self.newest, place, content)

    def unseal(self, place: bytes, sealed: bytes) -> bytes:
        """What ``seal`` was given for the same place, by whichever version of the key.

        Raises:
            SealError: the key is missing, or the value is of another place, or was changed.
        """
        version = int.from_bytes(sealed[1:_HEADER_BYTES], "big")
        cipher = self._ciphers.get(version)
        if cipher is None:
            raise SealError(f"platform key {version} is missing")
        return unseal(cipher, place, sealed)


def place_of(table: str, column: str, row: str) -> bytes:
    """Where a value belongs."""
    return f"strandline|v1|{table}|{column}|{row}".encode()


def seal(cipher: AESGCM, version: int, place: bytes, content: bytes) -> bytes:
    """*content*, sealed by *cipher*, the key of *version*."""
    nonce = os.urandom(_NONCE_BYTES)
    return bytes((_FORMAT,)) + version.to_bytes(2, "big") + nonce + cipher.encrypt(nonce, content, place)


def unseal(cipher: AESGCM, place: bytes, sealed: bytes) -> bytes:
    """The content of *sealed*; ``SealError``."""
    nonce, rest = sealed[_HEADER_BYTES : _HEADER_BYTES + _NONCE_BYTES], sealed[_HEADER_BYTES + _NONCE_BYTES :]
    if sealed[:1] != bytes((_FORMAT,)) or len(rest) < _TAG_BYTES:
        raise SealError("not a sealed value")
    try:
        return cipher.decrypt(nonce, rest, place)
    except InvalidTag:
        raise SealError("the sealed value does not open here") from None
