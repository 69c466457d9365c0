"""Managing subscriptions: making, looking at, changing and moving them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from strandline.stream.v1 import feed_pb2
from strandline.stream.v1 import subscription_pb2 as pb

from services.runtime.call import Namespace
from services.runtime.changelog import Head
from services.runtime.database import Database, Statement
from services.runtime.errors import (
    Aborted,
    AlreadyExists,
    Error,
    NotFound,
    OutOfRange,
    ResourceExhausted,
    invalid_field,
)
from services.runtime.ids import uuid7
from services.stream import request_store, webhook_store
from services.stream import subscription_store as store
from services.stream.checkpoint import Group
from services.stream.definitions import compiled, settled, updated
from services.stream.positions import SEEK, check_position, head_of, position_at
from services.stream.request_store import Answered, RequestId
from services.stream.subscription_leases import hold, lease_name, needed_after
from services.stream.subscription_store import Definition, Locked, Progress, no_such_subscription, of_this_life
from services.stream.upstream import Logs
from services.stream.webhook_store import Webhook
from services.stream.webhooks import Webhooks

MAX_SUBSCRIPTIONS: Final = 100
"""Of a namespace."""
PROVISIONAL_TTL: Final = timedelta(minutes=10)
"""Of the lease of a subscription that is being made: should that fail, and the lease not be taken back either."""


@dataclass(frozen=True, slots=True)
class Status:
    """A subscription and how far it is. *oldest*: when the first unit after its checkpoint was committed.

    *webhook*: if it pushes; *secret*: if one was made for it now, to be shown this once.
    """

    definition: Definition
    progress: Progress
    head: int
    oldest: datetime | None
    webhook: Webhook | None = None
    secret: str = field(default="", repr=False)

    @property
    def age(self) -> timedelta:
        """How long ago the first unit after the checkpoint was committed."""
        return max(timedelta(0), datetime.now(UTC) - self.oldest) if self.oldest else timedelta(0)


class Subscriptions:
    """Every subscription."""

    def __init__(self, database: Database, logs: Logs, webhooks: Webhooks) -> None:
        self._database = database
        self._logs = logs
        self._webhooks = webhooks

    async def create(
        self,
        namespace: Namespace,
        id: str,
        asked: pb.Subscription,
        request: RequestId | None = None,
        *,
        validate_only: bool = False,
    ) -> Status:
        """Make a subscription, unless *request* has made it already; *validate_only*: see whether it could be made.

        Raises:
            InvalidArgument: START_REQUIRED, INVALID_FIELD, REQUEST_ID_REUSED.
            AlreadyExists: the id is taken.
            FailedPrecondition: FUTURE_REVISION.
            OutOfRange: COMPACTED.
            ResourceExhausted: QUOTA_EXCEEDED.
        """
        if request and not validate_only and (repeated := await self._repeated(namespace, id, request)):
            return repeated
        definition = settled(asked, self._webhooks.receivers)
        revision = await self._position(namespace, asked.start, "subscription.start")
        now = datetime.now(UTC)
        made = Definition(id, uuid7(), namespace.epoch, 1, definition, now, now)
        # Delivery numbers go on where those of an earlier subscription with this id cannot have come.
        progress = Progress(store.ACTIVE, Group(revision, time.time_ns() // 1000))
        if validate_only:
            await self._check_free(namespace, id)
            return await self.status(namespace, made, progress)
        await self._remove_dead(namespace, id)
        secret: bytes | None = None
        statements = store.insert(namespace.id, made, progress)
        if asked.HasField("push"):
            secret, more = self._webhooks.new(namespace.id, id, made.uid)
            statements += more
        if request:
            statements += request_store.remember(namespace, id, made.uid, request, secret)
        try:
            # First: from now on the log is not cut there. Not for long, lest it waits for what is never made.
            await hold(self._logs, namespace, made, revision, revision, PROVISIONAL_TTL)
            await self._insert(namespace, made, statements)
        except BaseException as failure:
            with contextlib.suppress(Error):
                await self._logs.delete_lease(namespace.id, namespace.epoch, lease_name(made))
            # It may have been made by the same request, which was under way a second time.
            if (
                isinstance(failure, AlreadyExists)
                and request
                and (again := await self._repeated(namespace, id, request))
            ):
                return again
            raise
        with contextlib.suppress(Error):  # upkeep does the same in a moment
            await hold(self._logs, namespace, made, revision, revision)
        return replace(await self.status(namespace, made, progress), secret=self._webhooks.show(made.uid, secret))

    async def get(self, namespace: Namespace, id: str) -> Status:
        """Raises ``NotFound``."""
        rows = await self._database.read(namespace.id, *store.select(namespace.id, id))
        found = store.found(rows)
        if found is None or found[0].epoch != namespace.epoch:
            raise no_such_subscription()
        return await self.status(namespace, *found)

    async def list(self, namespace: Namespace, after: str, size: int) -> tuple[Sequence[Status], str]:
        """At most *size* of them, by id, that come after *after*; and after which id more follow, empty: none do."""
        (rows,) = await self._database.read(namespace.id, store.select_page(namespace.id, after, size + 1))
        found = store.listed(rows)
        living = [one for one in found[:size] if one[0].epoch == namespace.epoch]
        head = await head_of(self._logs, namespace)
        statuses = await asyncio.gather(*(self.status(namespace, *one, head) for one in living))
        # A page may be empty: of an earlier life, and not removed yet.
        return statuses, found[size - 1][0].id if len(found) > size else ""

    async def update(
        self,
        namespace: Namespace,
        id: str,
        asked: pb.Subscription,
        fields: Collection[str],
        etag: str,
        request: RequestId | None = None,
        *,
        validate_only: bool = False,
    ) -> Status:
        """Take over *fields* of *asked*, unless *request* has done so; *validate_only*: see what would come of it.

        Raises:
            InvalidArgument: INVALID_FIELD, REQUEST_ID_REUSED.
            NotFound: there is no such subscription.
            Aborted: ETAG_MISMATCH.
        """
        async with store.locked(self._database, namespace.id, id) as found:
            held = of_this_life(found, namespace)
            answered = None
            if request and not validate_only:
                answered = request_store.found(await held.query(request_store.find(namespace, request)), request)
            if answered is None:
                _check_etag(held.definition, etag)
                if asked.uid not in ("", held.definition.uid):
                    raise invalid_field("subscription.uid", "is that of another subscription: read this one again")
                definition = settled(updated(held.definition.definition, asked, fields), self._webhooks.receivers)
                if not validate_only:
                    answered = self._change(held, namespace, definition, request)
        if answered is None:
            return await self.status(namespace, replace(held.definition, definition=definition), held.progress)
        return await self._again(namespace, id, answered)

    def _change(self, held: Locked, namespace: Namespace, definition: bytes, request: RequestId | None) -> Answered:
        """Let a subscription be as in *definition*."""
        id, uid = held.definition.id, held.definition.uid
        if definition != held.definition.definition:
            held.statements.append(store.update(namespace.id, id, definition))
            held.statements.append(store.due_at_once(namespace.id, id))
        secret: bytes | None = None
        pushed, pushes = compiled(held.definition.definition).pushes, compiled(definition).pushes
        if pushes and not pushed:
            secret, statements = self._webhooks.new(namespace.id, id, uid)
            held.statements += statements
        elif pushed and not pushes:
            held.statements.append(webhook_store.delete(namespace.id, id))
        if request:
            held.statements += request_store.remember(namespace, id, uid, request, secret)
        return Answered(uid, secret)

    async def delete(self, namespace: Namespace, id: str, etag: str) -> None:
        """Remove a subscription and what is parked in it.

        Raises:
            NotFound: there is no such subscription.
            Aborted: ETAG_MISMATCH.
        """
        async with store.locked(self._database, namespace.id, id) as found:
            held = of_this_life(found, namespace)
            _check_etag(held.definition, etag)
            held.statements += store.delete(namespace.id, id, held.definition.uid)
        with contextlib.suppress(Error):  # it ends by itself
            await self._logs.delete_lease(namespace.id, namespace.epoch, lease_name(held.definition))

    async def seek(self, namespace: Namespace, id: str, start: pb.Start) -> Status:
        """Go on at *start*.

        Raises:
            InvalidArgument: START_REQUIRED.
            NotFound: there is no such subscription.
            FailedPrecondition: FUTURE_REVISION.
            OutOfRange: COMPACTED.
        """
        revision = await self._position(namespace, start, "start")
        async with store.locked(self._database, namespace.id, id) as found:
            held = of_this_life(found, namespace)
            group = held.progress.group
            # Under the lock, so that no renewal that is under way can let go of what is needed now. Not beyond what
            # is needed if this is not committed, nor beyond what is parked and stays: upkeep moves it on.
            wanted = min(revision, await needed_after(held, namespace))
            await hold(self._logs, namespace, held.definition, wanted, revision)
            group.seek(revision)
            group.parked -= len(await held.query(store.delete_parked_after(namespace.id, id, revision)))
            held.progress.state = store.ACTIVE
            held.statements.append(store.due_at_once(namespace.id, id))
        return await self.status(namespace, held.definition, held.progress)

    # Positions

    async def _position(self, namespace: Namespace, start: pb.Start, field: str) -> int:
        """The revision after which *start* begins."""
        head = await head_of(self._logs, namespace)
        match start.WhichOneof("position"):
            case "now":
                return head.revision
            case "beginning":
                return head.horizon
            case "after_revision":
                check_position(start.after_revision, "", head, SEEK)
                return start.after_revision
            case "after_time":
                return await position_at(self._logs, start.after_time, head, f"{field}.after_time", SEEK)
            case _:
                where = "say where to begin: now, after_revision, after_time or beginning"
                raise invalid_field(field, where, reason="START_REQUIRED")

    async def status(
        self, namespace: Namespace, definition: Definition, progress: Progress, head: Head | None = None
    ) -> Status:
        """How far the subscription is; *head* if it is known already."""
        head = head or await head_of(self._logs, namespace)
        checkpoint = progress.group.checkpoint
        oldest = None
        if checkpoint < head.revision:
            with contextlib.suppress(OutOfRange, NotFound):
                _, bodies = await self._logs.units(namespace.id, checkpoint, checkpoint + 1)
                if bodies:
                    oldest = feed_pb2.Unit.FromString(bodies[0]).commit_time.ToDatetime(UTC)
        pushes = compiled(definition.definition).pushes
        webhook = None
        if pushes:  # without a row of its own it is only validated: as it would be made
            webhook = await self._webhooks.stored(namespace, definition.id) or webhook_store.NEW
        return Status(definition, progress, head.revision, oldest, webhook)

    # Repeated requests

    async def _repeated(self, namespace: Namespace, id: str, request: RequestId) -> Status | None:
        """What *request* has made, if it was answered before."""
        (rows,) = await self._database.read(namespace.id, request_store.find(namespace, request))
        answered = request_store.found(rows, request)
        return await self._again(namespace, id, answered) if answered else None

    async def _again(self, namespace: Namespace, id: str, answered: Answered) -> Status:
        found = store.found(await self._database.read(namespace.id, *store.select(namespace.id, id)))
        if found is None or found[0].uid != answered.uid:
            raise NotFound("NOT_FOUND", "the subscription that this request_id made or changed was deleted since")
        status = await self.status(namespace, *found)
        # One that was replaced meanwhile is not shown: it does not sign any more, or not for long.
        signs = status.webhook is not None and status.webhook.secret == answered.secret
        return replace(status, secret=self._webhooks.show(answered.uid, answered.secret if signs else None))

    # Storing

    async def _insert(self, namespace: Namespace, made: Definition, statements: Sequence[Statement]) -> None:
        ((used,),), inserted, *_ = await store.in_transaction(
            self._database, namespace.id, store.count(namespace.id), *statements
        )
        if not inserted:
            raise _taken()
        # Afterwards, so that making one needs no lock on the others: a few too many are no harm, and are taken back.
        if used >= MAX_SUBSCRIPTIONS:
            await store.in_transaction(self._database, namespace.id, *store.delete(namespace.id, made.id, made.uid))
            raise _too_many(used)

    async def _check_free(self, namespace: Namespace, id: str) -> None:
        """See whether a subscription could be made: ``_insert`` decides."""
        *rows, ((used,),) = await self._database.read(
            namespace.id, *store.select(namespace.id, id), store.count(namespace.id)
        )
        found = store.found(rows)
        if found is not None and found[0].epoch == namespace.epoch:
            raise _taken()
        if used >= MAX_SUBSCRIPTIONS:
            raise _too_many(used)

    async def _remove_dead(self, namespace: Namespace, id: str) -> None:
        """Make room for a new subscription where one of an earlier life of the namespace still lies."""
        found = store.found(await self._database.read(namespace.id, *store.select(namespace.id, id)))
        if found is not None and found[0].epoch != namespace.epoch:
            await store.in_transaction(self._database, namespace.id, *store.delete(namespace.id, id, found[0].uid))


def _taken() -> AlreadyExists:
    return AlreadyExists("ALREADY_EXISTS", "there is a subscription with this id already")


def _too_many(used: int) -> ResourceExhausted:
    return ResourceExhausted(
        "QUOTA_EXCEEDED",
        f"the namespace has {MAX_SUBSCRIPTIONS} subscriptions already",
        quota="subscriptions",
        limit=str(MAX_SUBSCRIPTIONS),
        used=str(used),
    )


def etag_of(definition: Definition) -> str:
    return f'"{definition.version}"'


def _check_etag(definition: Definition, etag: str) -> None:
    if etag not in ("", etag_of(definition)):
        raise Aborted("ETAG_MISMATCH", "the subscription was changed since", etag=etag_of(definition))
