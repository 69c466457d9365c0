"""Pages: how many rows one holds, and its token: a position in a walk, sealed to the list that gave it (AIP-158).

A token is base64url without padding of the position followed by 16 bytes of HMAC-SHA-256 over the list and the
position. It hides nothing: the position holds only what the caller may read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Final

from services.runtime.errors import InvalidArgument, invalid_field

DEFAULT_PAGE: Final = 50
MAX_PAGE: Final = 1000
_MAC_BYTES: Final = 16
_MAX_TOKEN: Final = 4096
"""Characters; an index key, an id and the seal take at most 2,900."""
_PURPOSE: Final = b"strandline page token 1"


def page_size(asked: int) -> int:
    """The number of rows for a ``page_size`` as the contract has it."""
    return min(asked or DEFAULT_PAGE, MAX_PAGE)


def list_binding(
    *, namespace: str, type_id: str, filter: str, order_by: str, show_deleted: bool, search: str = ""
) -> bytes:
    """Return the binding of a list of entities."""
    return binding_of(namespace, type_id, filter, order_by, "deleted" if show_deleted else "", search)


def binding_of(*parts: str) -> bytes:
    """Return 32 bytes that differ between any two lists whose positions must not be mixed."""
    digest = hashlib.sha256()
    for part in parts:
        text = part.encode()
        digest.update(len(text).to_bytes(4, "big") + text)
    return digest.digest()


def seal(key: bytes, binding: bytes, position: bytes) -> str:
    """Return the token of *position* in the list that *binding* names.

    Args:
        key: secret, at least 32 bytes; the same in every replica.
        binding: from ``list_binding`` or ``binding_of``.
        position: where the next page begins; opaque here.
    """
    return base64.urlsafe_b64encode(position + _mac(key, binding, position)).rstrip(b"=").decode()


def open_token(key: bytes, binding: bytes, token: str) -> bytes:
    """Return the position that ``seal`` put into *token*.

    Raises:
        InvalidArgument: ``PAGE_TOKEN_INVALID``: changed, cut, of another list, or sealed with another key.
    """
    sealed = _decode(token)
    position, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, binding, position)):
        raise _invalid()
    return position


def _mac(key: bytes, binding: bytes, position: bytes) -> bytes:
    # The length keeps the border between binding and position where it is.
    message = _PURPOSE + len(binding).to_bytes(4, "big") + binding + position
    return hmac.digest(key, message, "sha256")[:_MAC_BYTES]


def _decode(token: str) -> bytes:
    if len(token) > _MAX_TOKEN:
        raise _invalid()
    try:
        sealed = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _invalid() from None
    # The last character may have spare bits: only the spelling that ``seal`` gives is a token.
    if base64.urlsafe_b64encode(sealed).rstrip(b"=").decode() != token:
        raise _invalid()
    return sealed


def _invalid() -> InvalidArgument:
    return invalid_field("page_token", "was not issued for this list", reason="PAGE_TOKEN_INVALID")
