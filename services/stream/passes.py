"""Tickets, and the cookies that they are exchanged for: signed words of this service about who somebody is.

Both say for whom, for which session and for which path they are. A ticket can be redeemed once, by whoever holds it; a
cookie opens feeds until it expires. A revocation is remembered for longer than a cookie lives, so that the cookies of a
session that was ended never come alive again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import uuid4

import orjson

from services.runtime.call import Principal
from services.runtime.errors import InvalidArgument, Unauthenticated
from services.runtime.page_tokens import binding_of, open_token, seal
from services.runtime.tokens import ACCESS_SECONDS

TICKET_SECONDS: Final = 30
# As long as an access token: what is remembered of ended sessions covers that (``REVOCATION_SECONDS``).
COOKIE_SECONDS: Final = ACCESS_SECONDS
# What a ticket or cookie is for when it is not for the feed of one namespace: the connection of many watches.
MANY: Final = ""
_Claims: TypeAlias = list[object]


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket says. ``host``: of the page, "" if unknown.

    ``parent``: ``namespaces/{namespace}``, ``namespaces/{namespace}/members`` or ``MANY``.

    ``principal.expires_at`` is when it can be redeemed no more.
    """

    id: str
    principal: Principal
    parent: str
    host: str


@dataclass(frozen=True, slots=True)
class Passes:
    """Makes and reads tickets and cookies. *secure*: browsers reach this installation over TLS."""

    key: bytes
    secure: bool

    @property
    def cookie_name(self) -> str:
        # Browsers take a name with this prefix only over TLS. `__Host-` would forbid the narrow path.
        return "__Secure-strandline-watch" if self.secure else "strandline-watch"

    def issue(self, principal: Principal, parent: str, host: str) -> tuple[str, int]:
        """A ticket for *principal*, and when it expires, in seconds since the epoch."""
        expires = int(time.time()) + TICKET_SECONDS
        claims = [*_who(principal), parent, expires, str(uuid4()), host]
        return seal(self.key, _TICKET, orjson.dumps(claims)), expires

    def open_ticket(self, text: str) -> Ticket:
        """What *text* says.

        Raises:
            Unauthenticated: TICKET_INVALID, it is no ticket, or has expired.
        """
        try:
            *who, parent, expires, number, host = orjson.loads(open_token(self.key, _TICKET, text))
        except InvalidArgument:
            raise invalid_ticket() from None
        if time.time() > expires:
            raise invalid_ticket()
        return Ticket(number, _principal(who, expires), parent, host)

    def cookie(self, ticket: Ticket) -> tuple[str, str, int]:
        """The value of ``Set-Cookie`` for *ticket*, the path in it, and when it expires."""
        path = f"/v1/{ticket.parent or 'namespaces'}:watch"
        expires = int(time.time()) + COOKIE_SECONDS
        value = seal(self.key, _cookie_for(ticket.parent), orjson.dumps([*_who(ticket.principal), expires]))
        secure = "; Secure" if self.secure else ""
        options = f"Path={path}; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict{secure}"
        return f"{self.cookie_name}={value}; {options}", path, expires

    def open_cookie(self, value: str, parent: str) -> Principal:
        """Who sends *value* to the watch of *parent*.

        Raises:
            Unauthenticated: TOKEN_INVALID, it is no cookie for that, or has expired.
        """
        try:
            *who, expires = orjson.loads(open_token(self.key, _cookie_for(parent), value))
        except InvalidArgument:
            raise _invalid_cookie() from None
        if time.time() > expires:
            raise _invalid_cookie()
        return _principal(who, expires)


_TICKET = binding_of("ticket")


def _cookie_for(parent: str) -> bytes:
    return binding_of("cookie", parent)


def _who(principal: Principal) -> _Claims:
    return [principal.user_id, principal.session_id, sorted(principal.scopes)]


def _principal(who: list[object], expires: int) -> Principal:
    user_id, session_id, scopes = who
    assert isinstance(scopes, list)
    return Principal(str(user_id), str(session_id), frozenset(map(str, scopes)), expires)


def invalid_ticket() -> Unauthenticated:
    """The refusal of a ticket, whatever the cause."""
    return Unauthenticated("TICKET_INVALID", "the ticket was used, has expired, or is none")


def _invalid_cookie() -> Unauthenticated:
    return Unauthenticated("TOKEN_INVALID", "the cookie has expired, or is not for this")
