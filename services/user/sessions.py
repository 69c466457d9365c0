"""Sessions and their refresh tokens.

A refresh token is ``slr_`` and base64url of session id (16 bytes), generation (4) and the first 16 bytes of an
HMAC-SHA-256 over both: it can be made again from the session's row, so nothing secret is stored, and a lost answer can
be repeated exactly. Each use moves the session to the next generation; ``present`` is the whole rule.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Final
from uuid import UUID

from services.runtime.tokens import ACCESS_SECONDS
from services.user.model import EndReason, Session

ACCESS_LIFE: Final = timedelta(seconds=ACCESS_SECONDS)
IDLE_LIFE: Final = timedelta(days=14)
ABSOLUTE_LIFE: Final = timedelta(days=30)
# How long the token before the newest may be presented again, because its answer may have been lost.
REPLAY_WINDOW: Final = timedelta(seconds=10)
_PREFIX: Final = "slr_"
_TAG_BYTES: Final = 16
_PURPOSE: Final = b"strandline 1 refresh\0"


class Outcome(Enum):
    """What presenting a refresh token does."""

    ROTATE = auto()
    """The newest token: the session moves to the next generation."""
    REPEAT = auto()
    """The one before it, just now: the same successor again."""
    REUSED = auto()
    """An older one: somebody has a copy. The session ends."""
    ENDED = auto()
    """The session is over."""


def present(session: Session, generation: int, now: datetime) -> Outcome:
    """What presenting the token of *generation* at *now* does to *session*."""
    if session.end_reason is not None:
        # Both holders of a copied token hear why they were signed out.
        return Outcome.REUSED if session.end_reason is EndReason.REFRESH_REUSED else Outcome.ENDED
    if now >= session.expire_time or now >= session.rotate_time + IDLE_LIFE:
        return Outcome.ENDED
    if generation == session.generation:
        return Outcome.ROTATE
    if generation > session.generation:
        return Outcome.ENDED  # issued by a database that has since lost it
    if generation == session.generation - 1 and now <= session.rotate_time + REPLAY_WINDOW:
        return Outcome.REPEAT
    return Outcome.REUSED


@dataclass(frozen=True, slots=True)
class Presented:
    """What a genuine refresh token says."""

    session_id: str
    generation: int


class RefreshTokens:
    """Makes and reads refresh tokens."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, session_id: str, generation: int) -> str:
        """The token of *generation* of a session."""
        content = UUID(session_id).bytes + generation.to_bytes(4, "big")
        return _PREFIX + base64.urlsafe_b64encode(content + self._tag(content)).decode()

    def read(self, token: str) -> Presented | None:
        """What *token* says; None if it was not made here."""
        try:
            raw = base64.b64decode(token.removeprefix(_PREFIX).encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            return None
        if len(raw) != 20 + _TAG_BYTES:
            return None
        said = Presented(str(UUID(bytes=raw[:16])), int.from_bytes(raw[16:20], "big"))
        # Compared as a whole: decoding takes "+" for "-" too, and only the spelling that was issued is a token.
        return said if hmac.compare_digest(self.issue(said.session_id, said.generation), token) else None

    def _tag(self, content: bytes) -> bytes:
        return hmac.digest(self._key, _PURPOSE + content, "sha256")[:_TAG_BYTES]
