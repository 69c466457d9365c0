"""Signatures as Standard Webhooks (version 1.0.0) has them: symmetric, ``v1``.

What is signed is ``<webhook-id>.<webhook-timestamp>.<body>``, with HMAC-SHA256. A secret is shown as ``whsec_`` and
base64. While one secret takes over from another, each request carries a signature by both.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from base64 import b64encode
from collections.abc import Sequence
from typing import Final

PREFIX: Final = "whsec_"
# The specification asks for 24 to 64 random bytes.
_SECRET_BYTES: Final = 32


def new_secret() -> bytes:
    """A fresh secret, as it is sealed and as it signs."""
    return os.urandom(_SECRET_BYTES)


def show(secret: bytes) -> str:
    """*secret* as its owner gets it, and as every Standard Webhooks library takes it."""
    return PREFIX + b64encode(secret).decode()


def signature(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """``v1,<base64>``; *timestamp* is that of the attempt, in seconds since 1970."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return "v1," + b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def headers(secrets: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """What a request carries besides *body*: id, time, and a signature by each of *secrets*, the newest first."""
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(secret, message_id, timestamp, body) for secret in secrets),
    }
