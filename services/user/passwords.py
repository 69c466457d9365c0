"""Passwords: which are accepted, and hashing that neither blocks the process nor takes its memory.

NFKC, then HMAC-SHA-256 under a pepper that no database holds, then argon2id (19 MiB, two passes: about 28 ms). Two
threads hash; when too many calls wait for them the next one is refused instead of queued.
"""

from __future__ import annotations

import asyncio
import ctypes
import hmac
import itertools
import secrets
import unicodedata
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

from services.runtime.errors import Unavailable, invalid_field
from services.user.addresses import Address

_THREADS: Final = 2
# About half a second of work for two threads.
_MAX_IN_HAND: Final = 32
# Which pepper a hash was made with.
_PEPPER: Final = "1:"
_MIN_CHARACTERS: Final = 12
_MAX_CHARACTERS: Final = 128
_MIN_DISTINCT: Final = 5
# What remains of a password without digits and punctuation must not be one of these, or one of them repeated.
_COMMON_WORDS: Final = """
    password passwort passwd pass admin administrator welcome letmein login changeme default secret iloveyou monkey
    dragon football baseball superman batman princess sunshine shadow master starwars trustno whatever computer
    internet strandline qwerty qwertyuiop qwertz qwertzuiop azerty asdfgh asdfghjkl zxcvbn zxcvbnm qazwsx qazwsxedc
    qweasdzxc
"""
_COMMON: Final = frozenset(_COMMON_WORDS.split())

# mallopt(3): blocks from this size on are mapped, and unmapped when they are freed.
_M_MMAP_THRESHOLD: Final = -3
_MAPPED_BYTES: Final = 2**20

T = TypeVar("T")


def check_password(password: str, address: Address) -> None:
    """INVALID_FIELD for a password that is too short, too long, or among the first that anybody would try."""
    if not _MIN_CHARACTERS <= len(password) <= _MAX_CHARACTERS:
        raise invalid_field("password", f"must have {_MIN_CHARACTERS} to {_MAX_CHARACTERS} characters")
    folded = unicodedata.normalize("NFKC", password).casefold()
    if folded in (address.local_part, address.canonical):
        raise invalid_field("password", "must not be the e-mail address")
    if len(set(folded)) < _MIN_DISTINCT or _is_run(folded) or _is_common(folded):
        raise invalid_field("password", "is too easy to guess")


def _is_run(text: str) -> bool:
    """Whether *text* counts up or down by one, as 123456789012 does (9 may be followed by 0)."""
    steps = {ord(second) - ord(first) for first, second in itertools.pairwise(text)}
    return steps <= {1, -9} or steps <= {-1, 9}


def _is_common(text: str) -> bool:
    letters = "".join(character for character in text if character.isalpha())
    return any(letters == word * max(1, len(letters) // len(word)) for word in _COMMON)


def _give_memory_back() -> None:
    """Make glibc return the 19 MiB of a hash when it is done.

    It raises its threshold for mapped blocks to the largest one freed, and would then keep 19 MiB in the heap of every
    thread for good (measured: 40 MB after five sign-ins). Naming a threshold stops that; other libraries lack the call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


class Passwords:
    """Hashes and checks passwords."""

    def __init__(self, pepper: bytes) -> None:
        _give_memory_back()
        self._pepper = pepper
        self._argon2 = PasswordHasher(time_cost=2, memory_cost=19456, parallelism=1)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="argon2")
        self._in_hand = 0
        # Checked for addresses that nobody has, so that they take as long as the others.
        self._nobodys = self._argon2.hash(secrets.token_bytes(32))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Room for one hashing; take it before counting an attempt, so that a refusal here costs the caller nothing.

        Raises:
            Unavailable: OVERLOADED, too many wait already.
        """
        if self._in_hand >= _MAX_IN_HAND:
            raise Unavailable("OVERLOADED", "too many people are signing in; retry")
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    async def hash(self, password: str) -> str:
        """What to store for *password*."""
        return _PEPPER + await self._run(lambda: self._argon2.hash(self._peppered(password)))

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether *stored* (None: nobody's) is the hash of *password*; takes the same time either way."""
        return await self._run(lambda: self._verify(password, stored))

    def is_outdated(self, stored: str) -> bool:
        """Whether *stored* was made with other parameters than ``hash`` uses now."""
        return self._argon2.check_needs_rehash(stored.removeprefix(_PEPPER))

    def _verify(self, password: str, stored: str | None) -> bool:
        try:
            self._argon2.verify((stored or "").removeprefix(_PEPPER) or self._nobodys, self._peppered(password))
        except VerifyMismatchError:
            return False
        return stored is not None

    def _peppered(self, password: str) -> bytes:
        return hmac.digest(self._pepper, unicodedata.normalize("NFKC", password).encode(), "sha256")

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)
