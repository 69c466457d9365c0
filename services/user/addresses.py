"""E-mail addresses: which are accepted, which are the same, and how one is found without being readable.

Two spellings are the same address when NFKC, case folding and IDNA (of the domain) make them equal. The index is
HMAC-SHA-256 of that canonical form under a key that is used for nothing else.
"""

from __future__ import annotations

import hmac
import unicodedata
from dataclasses import dataclass

from email_validator import EmailNotValidError, validate_email

from services.runtime.errors import InvalidArgument, invalid_field

_PURPOSE = b"strandline 1 users.email\0"


@dataclass(frozen=True, slots=True)
class Address:
    """An accepted address: as written (``text``), and in the form that is compared."""

    text: str
    canonical: str

    @property
    def local_part(self) -> str:
        return self.canonical.rpartition("@")[0]


def parse_address(raw: str) -> Address:
    """The address in *raw*.

    Raises:
        InvalidArgument: INVALID_FIELD ``email``. Control characters are refused before white space is trimmed: a line
            break that reached a mail header would be another header.
    """
    if any(unicodedata.category(character) == "Cc" for character in raw):
        raise invalid_field("email", "must not contain control characters")
    text = unicodedata.normalize("NFKC", raw).strip()
    try:
        parsed = validate_email(text, check_deliverability=False, strict=True)
    except EmailNotValidError:
        # The library's text repeats parts of the address, and this one may end in a log.
        raise invalid_field("email", "is not an e-mail address") from None
    folded = unicodedata.normalize("NFKC", parsed.local_part.casefold())
    return Address(text, f"{folded}@{parsed.ascii_domain.lower()}")


class AddressIndex:
    """Blind index of addresses."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, address: Address) -> bytes:
        """32 bytes, the same for every spelling of *address*."""
        return hmac.digest(self._key, _PURPOSE + address.canonical.encode(), "sha256")

    def of_attempt(self, raw: str) -> bytes:
        """The index to look *raw* up with at sign-in; what is no address gets one that nobody has."""
        try:
            return self.of(parse_address(raw))
        except InvalidArgument:
            return hmac.digest(self._key, b"strandline 1 no address\0" + raw.encode(), "sha256")
