"""The way into every handler: who calls, may they, and is the request well-formed. In this order.

All of it follows from the RPC's ``access`` option, so a handler contains no access check that could be forgotten.
"""

from __future__ import annotations

import time
from typing import Protocol

from google.protobuf.message import Message
from strandline.rpc.v1 import access_pb2

from services.runtime.call import Call, Namespace, Principal, namespace_of
from services.runtime.errors import Unauthenticated
from services.runtime.rpc import Method
from services.runtime.rules import check_rules
from services.runtime.tokens import LEEWAY, TokenVerifier

VIEWER, EDITOR, OWNER = access_pb2.Access.VIEWER, access_pb2.Access.EDITOR, access_pb2.Access.OWNER


class Access(Protocol):
    """Who may do what: the truth in the user service, a copy of it elsewhere."""

    async def authorize(self, principal: Principal, namespace_id: str, role: int, *, write: bool) -> Namespace:
        """The namespace, if *principal* has at least *role* in it.

        Raises:
            NotFound: a stranger, or no such namespace.
            PermissionDenied: a member with a lesser role (ROLE_INSUFFICIENT).
            Unavailable: it cannot be known now (ACCESS_UNVERIFIABLE).
        """
        ...

    async def check_session(self, principal: Principal) -> None:
        """Raises ``Unauthenticated`` if the session of *principal* was ended."""
        ...


class Gate:
    """Admits calls."""

    def __init__(self, verifier: TokenVerifier, access: Access) -> None:
        self._verifier = verifier
        self._access = access

    async def admit(self, method: Method, request: Message, call: Call) -> None:
        """Fill in ``call.principal`` and ``call.namespace``, or raise."""
        if method.needs_token:
            await self.identify(call)
        await self._permit(method, request, call)

    async def admit_again(self, method: Method, request: Message, call: Call) -> None:
        """Fill in ``call.namespace``, or raise, for a caller who has proved before who it is."""
        await self.recheck(call.identified())
        await self._permit(method, request, call)

    async def recheck(self, principal: Principal) -> None:
        """Refuse one who has proved before who it is, when the proof has expired or the session was ended.

        Raises:
            Unauthenticated: TOKEN_INVALID.
        """
        check_life(principal)
        await self._access.check_session(principal)

    async def _permit(self, method: Method, request: Message, call: Call) -> None:
        if method.role:
            principal = call.identified()
            namespace_id = namespace_of(method.resource_name(request), method.resource)
            # What changes something, or goes on for long, is not let in on an old copy of the access rules.
            write = method.role >= EDITOR or method.streams
            call.namespace = await self._access.authorize(principal, namespace_id, method.role, write=write)
        check_rules(request)

    async def identify(self, call: Call) -> Principal:
        """The principal of the call's bearer token."""
        scheme, _, token = call.metadata.get("authorization", "").partition(" ")
        if not scheme:
            raise Unauthenticated("TOKEN_MISSING", "an access token is needed: Authorization: Bearer <token>")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("TOKEN_INVALID", "the access token is not valid")
        call.principal = await self.verify(token)
        return call.principal

    async def verify(self, token: str) -> Principal:
        """Who *token* speaks for, if their session lives."""
        principal = self._verifier.recall(token) or await self._verifier.verify(token)
        await self._access.check_session(principal)
        return principal


def check_life(principal: Principal) -> None:
    """Refuse one whose proof has expired.

    Raises:
        Unauthenticated: TOKEN_INVALID.
    """
    if principal.expires_at + LEEWAY < time.time():
        raise Unauthenticated("TOKEN_INVALID", "the access token is not valid")
