"""Whether a living feed may go on: its reader's access, the token, the hub, and this process."""

from __future__ import annotations

import asyncio
import time
from typing import NoReturn, Protocol

from strandline.stream.v1 import feed_pb2

from services.runtime.call import Call, Namespace, Principal
from services.runtime.errors import Error, FailedPrecondition, NotFound, Unauthenticated, Unavailable
from services.runtime.tokens import LEEWAY
from services.stream.hub import Hub
from services.stream.hubs import Hubs

End = feed_pb2.End
# Nothing is delivered while access cannot be verified; after this the reader is told so.
UNVERIFIABLE_SECONDS = 10.0
# Without the bus the copy of access rules hears of a deletion up to this much later than the log's owner.
DELETION_SECONDS = 1.0


class Access(Protocol):
    """What is known of everybody's access (``access.AccessCopy``)."""

    @property
    def fresh(self) -> bool: ...

    @property
    def unverifiable_for(self) -> float: ...

    def exists(self, namespace_id: str) -> bool: ...

    def began(self, namespace: Namespace) -> int | None: ...

    async def recheck(self, principal: Principal, namespace_id: str) -> Namespace: ...


class Way(Protocol):
    """What the feeds of one connection share on their way to its reader."""

    @property
    def closing(self) -> bool:
        """Whether the connection ends, because its client broke the rules."""
        ...

    async def clear(self) -> None:
        """Return when the reader takes more: a feed that waits here holds a cursor, and no message."""
        ...


class Ended(Exception):
    """The feed ends, for a reason of ours."""

    def __init__(self, reason: feed_pb2.End.Reason.ValueType, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def as_error(self) -> Error:
        """The same for a reader who can be sent no ``End`` any more, if the reason is one of ``Permit.check``."""
        if isinstance(self.__cause__, Error):
            return self.__cause__
        kind, reason = _ERRORS[self.reason]
        return kind(reason, self.detail)


_ERRORS: dict[feed_pb2.End.Reason.ValueType, tuple[type[Error], str]] = {
    End.TOKEN_EXPIRED: (Unauthenticated, "TOKEN_INVALID"),
    End.ACCESS_UNVERIFIABLE: (Unavailable, "ACCESS_UNVERIFIABLE"),
    End.NAMESPACE_DELETED: (NotFound, "NOT_FOUND"),
    End.EPOCH_CHANGED: (FailedPrecondition, "EPOCH_CHANGED"),
}


class Permit:
    """One feed's permission, looked at before every message."""

    def __init__(self, access: Access, hubs: Hubs, hub: Hub, call: Call, way: Way | None = None) -> None:
        """*call*: whose principal may be replaced by one with a longer life; *way*: to the reader, if it is shared."""
        self._access = access
        self._hubs = hubs
        self._hub = hub
        self._call = call
        self._way = way
        self._namespace = call.allowed_namespace()
        self._checked = hub.access_changes

    def stands(self) -> bool:
        """Whether a message may be delivered now, as far as that can be told without waiting or asking."""
        return (
            self._way is None
            and not self._hubs.draining
            and not self._hub.ended
            and self._access.fresh
            and self._checked == self._hub.access_changes
            and time.time() <= self._call.identified().expires_at + LEEWAY
        )

    async def demand(self) -> None:
        """Return when a message may be delivered now; wait while nobody can tell.

        Raises:
            Ended: no message may be delivered any more.
        """
        if self._way is not None:
            await self._way.clear()
        while True:
            if self._way is not None and self._way.closing:
                raise Ended(End.REQUEST_INVALID, "the connection ends after a request that was none")
            if self._hubs.draining:
                raise Ended(End.DRAINING, "this server is going away; resume at once")
            if self._hub.ended:
                await self.lose_log()
            if self._is_verifiable():
                break
            await self._hub.changed()
        if self._checked != (changes := self._hub.access_changes):
            await self._check_again()
            self._checked = changes  # only now: another that demands meanwhile checks as well

    async def check(self) -> None:
        """Return if the reader may still have messages, or nobody can tell; also while this process goes away.

        Raises:
            Ended: the reader may have no more.
        """
        if self._hub.ended:
            await self.lose_log()
        if self._is_verifiable():
            await self._check_again()

    def _is_verifiable(self) -> bool:
        """Whether access can be checked now. Raises ``Ended`` if it is of no use, or cannot for too long."""
        if time.time() > self._call.identified().expires_at + LEEWAY:
            raise Ended(End.TOKEN_EXPIRED, "the access token has expired; resume with a new one")
        if self._access.fresh:
            return True
        if self._access.unverifiable_for > UNVERIFIABLE_SECONDS:
            raise Ended(End.ACCESS_UNVERIFIABLE, "your access cannot be verified right now; resume later")
        return False

    async def lose_log(self) -> NoReturn:
        """The life of the log that the feed follows is over: say why.

        Raises:
            Ended: NAMESPACE_DELETED, or EPOCH_CHANGED if the namespace lives.
        """
        deadline = time.monotonic() + DELETION_SECONDS
        while time.monotonic() < deadline:
            await self._check_again()
            await asyncio.sleep(DELETION_SECONDS / 10)
        raise Ended(End.EPOCH_CHANGED, "the log has a new life; start with a snapshot")

    async def _check_again(self) -> None:
        try:
            namespace = await self._access.recheck(self._call.identified(), self._namespace.id)
        except Unauthenticated as failure:
            raise Ended(End.ACCESS_REVOKED, "the session was ended") from failure
        except Error as failure:
            if not self._access.exists(self._namespace.id):
                raise Ended(End.NAMESPACE_DELETED, "the namespace was deleted") from failure
            raise Ended(End.ACCESS_REVOKED, "you may not read the namespace any more") from failure
        if namespace.epoch != self._namespace.epoch:
            raise Ended(End.NAMESPACE_DELETED, "the namespace was deleted, and made again since")
