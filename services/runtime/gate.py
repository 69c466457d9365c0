"""The way into every handler: who calls, may they, and is the request well-formed. In this order.

All of it follows from the RPC's ``access`` option, so a handler contains no access check that could be forgotten.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol

import protovalidate
from google.protobuf.message import Message
from strandline.rpc.v1 import access_pb2

from services.runtime.call import Call, Namespace, Principal, namespace_of
from services.runtime.errors import InvalidArgument, Unauthenticated, Violation
from services.runtime.rpc import Method
from services.runtime.tokens import TokenVerifier

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
        access = method.access
        if access.identity == access_pb2.Access.TOKEN:
            await self.identify(call)
        if access.role:
            if call.principal is None:
                raise AssertionError(f"{method.path} needs a role, so it must need a token")
            namespace_id = namespace_of(resource_name(request, access.resource), access.resource)
            # What changes something, or goes on for long, is not let in on an old copy of the access rules.
            write = access.role >= EDITOR or method.descriptor.server_streaming
            call.namespace = await self._access.authorize(call.principal, namespace_id, access.role, write=write)
        check_rules(request)

    async def identify(self, call: Call) -> Principal:
        """The principal of the call's bearer token."""
        scheme, _, token = call.metadata.get("authorization", "").partition(" ")
        if not scheme:
            raise Unauthenticated("TOKEN_MISSING", "an access token is needed: Authorization: Bearer <token>")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("TOKEN_INVALID", "the access token is not valid")
        call.principal = await self._verifier.verify(token)
        await self._access.check_session(call.principal)
        return call.principal


def resource_name(request: Message, path: str) -> str:
    """The value of the (possibly nested) string field *path*."""
    value: Any = request
    for part in path.split("."):
        value = getattr(value, part)
    return str(value)


@cache
def _validator() -> protovalidate.Validator:
    return protovalidate.Validator()


def check_rules(request: Message) -> None:
    """Refuse a request that breaks the rules written in its proto, naming each field."""
    violations = _validator().collect_violations(request)
    if violations:
        listed = [
            Violation(_field_path(violation.proto.field), _in_our_words(violation.proto.message))
            for violation in violations[:100]
        ]
        raise InvalidArgument("INVALID_FIELD", f"{listed[0].field}: {listed[0].message}", violations=listed)


def _in_our_words(message: str) -> str:
    return message.replace("does not match regex pattern", "must match") or "is not valid"


def _field_path(path: Any) -> str:
    return ".".join(
        element.field_name + (f"[{element.subscript.value}]" if element.subscript else "") for element in path.elements
    )
