"""A copy of who may do what, tailed from the log of ``system``, that knows how fresh it is.

A change takes effect within 2 seconds: heartbeats on the bus carry the head of ``system`` every 500 ms; when one is
missed the log is asked by RPC at the same pace. Stale means that neither has come for 1.5 s: then writes are checked at
the user service itself or refused, reads go on until their token expires. A miss in the copy asks once and is never
remembered as a no.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError
from strandline.entity.v1.entity_pb2 import Entity
from strandline.rpc.v1 import access_pb2
from strandline.stream.v1 import feed_pb2, log_service_pb2, log_service_pb2_grpc
from strandline.user.v1 import (
    namespace_service_pb2,
    namespace_service_pb2_grpc,
)

from services.runtime import bus as bus_module
from services.runtime import changelog
from services.runtime.bus import Bus
from services.runtime.call import Namespace, Principal, Quota
from services.runtime.errors import NotFound, PermissionDenied, Unauthenticated, Unavailable

logger = logging.getLogger(__name__)

SYSTEM = "system"
HEARTBEAT_SUBJECT = "strandline.heartbeat.system"
HEARTBEAT_SECONDS = 0.5
STALE_SECONDS = 1.5
CALL_SECONDS = 1.0
START_SECONDS = 15.0
_ROLES = {"VIEWER": access_pb2.Access.VIEWER, "EDITOR": access_pb2.Access.EDITOR, "OWNER": access_pb2.Access.OWNER}


class AccessCopy:
    """Memberships, namespaces and ended sessions, as of a known moment."""

    def __init__(self, user_service: grpc.aio.Channel, bus: Bus) -> None:
        self._log = log_service_pb2_grpc.LogServiceStub(user_service)
        self._truth = namespace_service_pb2_grpc.AccessServiceStub(user_service)
        self._bus = bus
        self._namespaces: dict[str, Namespace] = {}
        self._began: dict[str, int] = {}
        self._roles: dict[tuple[str, str], int] = {}
        self._ended: dict[str, float] = {}
        self._epoch = ""
        self._revision = 0
        self._confirmed_at = -1e9  # time.monotonic()
        self._behind = asyncio.Event()
        self._complete = asyncio.Event()
        self._listeners: list[Callable[[str], None]] = []
        self._follower: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Follow ``system`` from now on; returns once the copy is complete.

        Raises:
            RuntimeError: the user service did not answer for 15 s.
        """
        await self._bus.subscribe(HEARTBEAT_SUBJECT, self._on_heartbeat)
        await self._bus.subscribe(bus_module.commit_subject(SYSTEM), self._on_commit)
        self._follower = asyncio.create_task(self._follow())
        try:
            await asyncio.wait_for(self._complete.wait(), START_SECONDS)
        except TimeoutError:
            raise RuntimeError("the user service does not answer, so nobody's access can be checked") from None

    async def stop(self) -> None:
        if self._follower is not None:
            self._follower.cancel()

    @property
    def unverifiable_for(self) -> float:
        """Seconds since the copy stopped being fresh; 0 while it is."""
        return max(0.0, time.monotonic() - self._confirmed_at - STALE_SECONDS)

    @property
    def fresh(self) -> bool:
        """Whether the copy held everything committed up to 1.5 s ago."""
        return self.unverifiable_for == 0

    def on_change(self, listener: Callable[[str], None]) -> None:
        """Call *listener* with a namespace id when something about access to it changed; "" for an ended session."""
        self._listeners.append(listener)

    # The Access protocol

    async def authorize(self, principal: Principal, namespace_id: str, role: int, *, write: bool) -> Namespace:
        """See ``gate.Access``. *write* demands a fresh copy, or the user service's own word."""
        if write and not self.fresh:
            return await self._authorize_at_source(principal, namespace_id, role)
        namespace, held = self._look_up(principal, namespace_id)
        if namespace is None or held < role:
            # The copy may be a moment behind: ask once, and do not remember a no.
            return await self._authorize_at_source(principal, namespace_id, role)
        return namespace

    async def check_session(self, principal: Principal) -> None:
        """Raises ``Unauthenticated`` if the session was ended."""
        if principal.session_id in self._ended:
            raise Unauthenticated("TOKEN_INVALID", "the access token is not valid")

    async def recheck(self, principal: Principal, namespace_id: str) -> Namespace:
        """Whether a stream that lives may go on reading; from the copy alone, so that it costs nothing.

        Raises:
            NotFound, PermissionDenied, Unauthenticated: it may not.
        """
        await self.check_session(principal)
        namespace, held = self._look_up(principal, namespace_id)
        return _granted(namespace, held, access_pb2.Access.VIEWER)

    def exists(self, namespace_id: str) -> bool:
        """Whether the namespace lives, as far as the copy knows: tells a stream whose reader lost it why."""
        return namespace_id == SYSTEM or namespace_id in self._namespaces

    def began(self, namespace: Namespace) -> int | None:
        """The revision of ``system`` at which that life of *namespace* began; None: the copy does not know it."""
        known = self._namespaces.get(namespace.id)
        return self._began[namespace.id] if known is not None and known.epoch == namespace.epoch else None

    def epoch_of(self, namespace_id: str) -> str | None:
        """The life that the namespace has, as far as the copy knows; None: none."""
        namespace = self._namespaces.get(namespace_id)
        return namespace.epoch if namespace else None

    def _look_up(self, principal: Principal, namespace_id: str) -> tuple[Namespace | None, int]:
        if namespace_id == SYSTEM:
            held = access_pb2.Access.VIEWER if principal.is_administrator else 0
            return Namespace(SYSTEM, self._epoch), held
        return self._namespaces.get(namespace_id), self._roles.get((namespace_id, principal.user_id), 0)

    async def _authorize_at_source(self, principal: Principal, namespace_id: str, role: int) -> Namespace:
        if namespace_id == SYSTEM:
            return _granted(*self._look_up(principal, SYSTEM), role)
        try:
            answer = await self._truth.CheckAccess(
                namespace_service_pb2.CheckAccessRequest(
                    namespace_id=namespace_id, user_id=principal.user_id, session_id=principal.session_id
                ),
                timeout=CALL_SECONDS,
            )
        except grpc.aio.AioRpcError as failure:
            raise Unavailable("ACCESS_UNVERIFIABLE", "your access cannot be checked right now; retry") from failure
        if answer.revoked:
            raise Unauthenticated("TOKEN_INVALID", "the access token is not valid")
        namespace = None
        if answer.HasField("namespace"):
            guard = answer.namespace.mass_change_guard != answer.namespace.OFF
            limits = answer.namespace.quota
            quota = Quota(limits.max_entities, limits.max_bytes, limits.max_writes_per_second)
            namespace = Namespace(namespace_id, answer.namespace.epoch, guard, quota)
        return _granted(namespace, answer.role, role)

    # Following `system`

    async def _on_heartbeat(self, payload: bytes) -> None:
        try:
            self._heard(log_service_pb2.Head.FromString(payload))
        except DecodeError:
            logger.warning("a heartbeat could not be read")

    async def _on_commit(self, payload: bytes) -> None:
        self._behind.set()

    def _heard(self, head: log_service_pb2.Head) -> None:
        if (head.epoch, head.revision) == (self._epoch, self._revision):
            self._confirm(time.monotonic())
        else:
            self._behind.set()

    async def _follow(self) -> None:
        while True:
            try:
                await self._catch_up()
            except grpc.aio.AioRpcError as failure:
                level = logging.WARNING if self._complete.is_set() else logging.INFO  # at start the others start, too
                logger.log(level, "the copy of access rules cannot be renewed: %s", failure.details())
                await asyncio.sleep(HEARTBEAT_SECONDS / 2)
            except Exception:
                # Whatever it was: a copy that nobody follows any more would stay stale for ever.
                logger.exception("the copy of access rules cannot be renewed")
                await asyncio.sleep(HEARTBEAT_SECONDS)
            while not self._behind.is_set():
                try:
                    await asyncio.wait_for(self._behind.wait(), HEARTBEAT_SECONDS)
                except TimeoutError:
                    if time.monotonic() - self._confirmed_at > HEARTBEAT_SECONDS:
                        break  # the bus is silent: ask
            self._behind.clear()

    async def _catch_up(self) -> None:
        while True:
            asked_at = time.monotonic()
            answer = await self._log.ReadUnits(
                log_service_pb2.ReadUnitsRequest(namespace_id=SYSTEM, after_revision=self._revision),
                timeout=CALL_SECONDS,
            )
            if answer.head.epoch != self._epoch:
                self._forget(answer.head.epoch)
                continue
            for raw in answer.units:
                self._apply(feed_pb2.Unit.FromString(raw))
            if self._revision >= answer.head.revision:
                self._confirm(asked_at)
                return

    def _confirm(self, moment: float) -> None:
        """The copy held everything at *moment*."""
        self._confirmed_at = max(self._confirmed_at, moment)
        self._complete.set()

    def _forget(self, epoch: str) -> None:
        self._epoch, self._revision = epoch, 0
        self._confirmed_at = -1e9  # an empty copy must not pass for the truth
        self._namespaces.clear()
        self._began.clear()
        self._roles.clear()
        self._ended.clear()

    def _apply(self, unit: feed_pb2.Unit) -> None:
        for change in unit.changes:
            gone = change.kind in (changelog.DELETED, changelog.PURGED)
            changed = self._apply_entity(change.entity, gone)
            if changed is not None:
                for listener in self._listeners:
                    listener(changed)
        self._revision = unit.revision

    def _apply_entity(self, entity: Entity, gone: bool) -> str | None:
        """Take over one record of ``system``; the namespace it is about, "" for a session, None if it is of no use."""
        data = entity.data.fields
        if entity.type == "namespace":
            namespace_id = entity.name.rsplit("/", 1)[1]
            if gone or data["state"].string_value != "ACTIVE":
                self._namespaces.pop(namespace_id, None)
                self._began.pop(namespace_id, None)
            else:
                self._began.setdefault(namespace_id, entity.revision)
                guard = data["massChangeGuard"].string_value != "OFF"
                limits = data["quota"].struct_value.fields
                names = ("maxEntities", "maxBytes", "maxWritesPerSecond")
                quota = Quota(*(int(limits[name].number_value) for name in names))
                self._namespaces[namespace_id] = Namespace(namespace_id, data["epoch"].string_value, guard, quota)
            return namespace_id
        if entity.type == "membership":
            key = (data["namespace"].string_value, data["user"].string_value)
            if gone:
                self._roles.pop(key, None)
            else:
                self._roles[key] = _ROLES[data["role"].string_value]
            return key[0]
        if entity.type == "revocation":
            now = time.time()
            self._ended = {session: dead_at for session, dead_at in self._ended.items() if dead_at > now}
            if (dead_at := data["expiresAt"].number_value) > now:
                self._ended[entity.name.rsplit("/", 1)[1]] = dead_at
            return ""
        return None


def _granted(namespace: Namespace | None, held: int, needed: int) -> Namespace:
    if namespace is None or not held:
        raise NotFound("NOT_FOUND", "there is no such namespace, or you are not a member of it")
    if held < needed:
        raise PermissionDenied("ROLE_INSUFFICIENT", "your role in the namespace does not allow this")
    return namespace
