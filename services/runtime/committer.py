"""Group commit: every unit that waits in a namespace goes into one transaction, decided under the head's lock.

One lane per namespace and process (``lanes``). What it takes is committed in two pipelined round trips and one fsync:
(1) lock the head, look up request ids, read what the units need; decide each unit in arrival order, in plain Python;
(2) append to the log, apply the rows, COMMIT. Because everything is decided under the lock and no unit of a batch can
change what another one is decided on, one unit's refusal never fails its neighbours, and two replicas order each other
by the head row. If a statement still fails, the batch is bisected until only the guilty unit fails. A connection lost
inside COMMIT is answered by committing the same batch again: a request id that is found was committed.

A large batch is written in parts, so that PostgreSQL stores one while the next is decided.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

import psycopg

from services.runtime import changelog, request_ids
from services.runtime.call import Namespace
from services.runtime.changelog import Change, Head, LoggedUnit
from services.runtime.database import Connection, Database, Row, Statement, pipeline
from services.runtime.errors import Error, Unavailable, refusal_of
from services.runtime.lanes import (
    MAX_BATCH_BYTES,
    MAX_WAITING_UNITS,
    Lane,
    Submission,
    Waiting,
    unanswered,
)
from services.runtime.request_ids import AnsweredRequest
from services.runtime.units import Outcomes, Receipt, Unit

logger = logging.getLogger(__name__)

# How many units are written while the next ones are decided: about as much as a socket takes at once.
PART_UNITS = 128
# How long a batch is tried again after its connection was lost.
RECONNECT_SECONDS = 10.0


class Stamp(NamedTuple):
    """What a unit gets if it changes something."""

    namespace: str
    epoch: str
    revision: int
    commit_time: datetime


class Decision(NamedTuple):
    """What a unit will do: its changes (none: it changes nothing and takes no revision), and its answer.

    ``answer`` is kept with the request id and must suffice to answer a repetition; ``result`` goes to this caller.
    ``accepted`` is called before the next unit is decided if the changes go into the log: they may be too much for it.
    """

    changes: Sequence[Change]
    answer: bytes = b""
    result: Any = None
    accepted: Callable[[], None] | None = None


U = TypeVar("U", bound=Unit)
U_contra = TypeVar("U_contra", bound=Unit, contravariant=True)


class TooMuch(Exception):
    """A unit cannot be decided in this round, but in one of fewer units. Never raised in a round of one unit."""


class Round(Protocol[U_contra]):
    """One batch under the lock. Nothing here awaits."""

    def decide(self, unit: U_contra, stamp: Stamp) -> Decision:
        """What *unit* does at *stamp*; raises ``Error`` to refuse it, ``TooMuch`` to end the round here.

        Must leave no trace when it raises.
        """
        ...

    def writes(self, accepted: Sequence[tuple[U_contra, Stamp]]) -> Sequence[Statement]:
        """Statements that apply the rows of the *accepted* units (those with changes, not ``validate_only``).

        Called once for each part of the batch.
        """
        ...


class Ledger(Protocol[U_contra]):
    """What a service adds to the transaction: what it reads under the lock, and its rules."""

    def reads(self, namespace: str, units: Sequence[U_contra]) -> Sequence[Statement]:
        """What deciding *units* needs, set-based."""
        ...

    def open_round(self, namespace: str, units: Sequence[U_contra], rows: Sequence[list[Row]]) -> Round[U_contra]:
        """A round over what was read: *rows* in the order of ``reads``."""
        ...


@dataclass(frozen=True, slots=True)
class Commit:
    """What one transaction added to a log: the units in ``(after, head.revision]``."""

    head: Head
    after: int
    units: Sequence[bytes]


class Committer(Generic[U]):
    """Commits units to the logs of one database."""

    def __init__(self, database: Database, ledger: Ledger[U], published: Callable[[Commit], Awaitable[None]]) -> None:
        """*published* is told of each commit before its callers are, in the order of revisions within a namespace.

        It must neither raise nor wait.
        """
        self._database = database
        self._ledger = ledger
        self._published = published
        self._lanes: dict[tuple[str, str], Lane[U]] = {}

    async def commit(self, namespace: Namespace, unit: U) -> Receipt:
        """Commit *unit*; returns when it is on disk.

        Raises:
            Error: the unit was refused, and changed nothing.
            Unavailable: nothing is known of the unit, or too many wait: repeat it with the same ``request_id``.
        """
        (outcome,) = await self.submit(namespace, unit)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def submit(self, namespace: Namespace, *units: U) -> asyncio.Future[Outcomes]:
        """Queue *units*, each for itself, and return what became of each, as ``commit`` returns or raises it.

        Units on the same names apply in the order of submission. Raises ``Unavailable`` if too many wait.
        """
        key = (namespace.id, namespace.epoch)
        lane = self._lanes.setdefault(key, Lane(namespace))
        if len(lane.waiting) + len(units) > MAX_WAITING_UNITS:
            raise Unavailable("OVERLOADED", "too many writes wait in this namespace; retry")
        submission = Submission(len(units))
        for place, unit in enumerate(units):
            if not unit.request_id:
                unit.request_id = uuid.uuid4().hex
            lane.waiting.append(Waiting(unit, submission, place))
        if lane.worker is None:
            lane.worker = asyncio.create_task(self._work(key, lane))
        return submission.done

    async def drain(self) -> None:
        """Wait until everything that was submitted is answered."""
        workers = [lane.worker for lane in self._lanes.values() if lane.worker is not None]
        await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, key: tuple[str, str], lane: Lane[U]) -> None:
        try:
            while batch := lane.take():
                await self._commit_or_bisect(lane.namespace, batch)
                await lane.gather(len(batch))
        finally:
            lane.worker = None
            if not lane.waiting:
                self._lanes.pop(key, None)

    async def _commit_or_bisect(self, namespace: Namespace, batch: Sequence[Waiting[U]]) -> None:
        try:
            await self._commit_through_reconnects(namespace, batch)
        except Exception as failure:
            failed = unanswered(batch)
            if len(failed) > 1 and not isinstance(failure, Error) and not _is_passing(failure):
                middle = len(failed) // 2
                await self._commit_or_bisect(namespace, failed[:middle])
                await self._commit_or_bisect(namespace, failed[middle:])
                return
            for item in failed:
                item.submission.answer(item.place, failure)

    async def _commit_through_reconnects(self, namespace: Namespace, batch: Sequence[Waiting[U]]) -> None:
        deadline = asyncio.get_running_loop().time() + RECONNECT_SECONDS
        pause = 0.02
        while missing := unanswered(batch):
            try:
                async with self._database.connection() as connection:
                    await self._attempt(connection, namespace, missing)
                return
            except psycopg.OperationalError as failure:
                if not _is_passing(failure) or asyncio.get_running_loop().time() + pause > deadline:
                    raise
                logger.warning("commit to %s is tried again: %s", namespace.id, failure)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 0.5)
                await self._database.discard_idle()

    async def _attempt(self, connection: Connection, namespace: Namespace, batch: Sequence[Waiting[U]]) -> None:
        units = [item.unit for item in batch]
        try:
            (_, head_rows, request_rows, *rows) = await pipeline(
                connection,
                Statement("BEGIN"),
                Statement(changelog.LOCK_HEAD, (namespace.id,)),
                request_ids.find_requests(
                    namespace.id,
                    [unit.request_id for unit in units if unit.share is None],
                    [unit.share for unit in units if unit.share is not None],
                ),
                *self._ledger.reads(namespace.id, units),
            )
            if not head_rows or head_rows[0][0] != namespace.epoch:
                await self._begin_life(connection, namespace)
                return await self._attempt(connection, namespace, batch)
            epoch, revision, commit_time = head_rows[0]
            known = {request.key: request for request in request_ids.answered_requests(request_rows)}
            deciding = _Deciding(
                self._ledger.open_round(namespace.id, units, rows),
                known,
                Stamp(namespace.id, epoch, revision, commit_time),
            )
            await _write(connection, namespace.id, units, deciding)
        except BaseException:
            if not connection.closed:
                await connection.rollback()
            raise
        if deciding.logged:
            head = Head(namespace.id, epoch, deciding.revision)
            await self._published(Commit(head, revision, deciding.logged))
        decided = len(deciding.results)
        for item, result in zip(batch[:decided], deciding.results, strict=True):
            item.submission.answer(item.place, result)
        # The rest was read in vain. It goes in portions that grow, or all of it would be read again for each that fits.
        portion = decided or 1
        while decided < len(batch):
            await self._attempt(connection, namespace, batch[decided : decided + portion])
            decided += portion
            portion *= 2

    async def _begin_life(self, connection: Connection, namespace: Namespace) -> None:
        # lock_head has set the namespace for row-level security; another replica may have been faster.
        _, rows, _ = await pipeline(
            connection,
            changelog.begin_life(namespace.id, namespace.epoch),
            changelog.select_head(namespace.id),
            Statement("COMMIT"),
        )
        if not rows or rows[0][0] != namespace.epoch:
            # The caller was late: what it believes in is dead, or another life is still being removed.
            raise Unavailable("OVERLOADED", "the namespace is being made anew; retry")


async def _write(connection: Connection, namespace: str, units: Sequence[U], deciding: _Deciding[U]) -> None:
    """Decide *units*, write what they do, and commit; or roll back if they do nothing."""
    writing: asyncio.Task[object] | None = None
    try:
        for begin in range(0, len(units), PART_UNITS):
            statements = deciding.statements(namespace, units[begin : begin + PART_UNITS])
            if writing is not None:
                await writing
                writing = None
            if deciding.enough or begin + PART_UNITS >= len(units):
                break
            if statements:
                writing = asyncio.create_task(pipeline(connection, *statements))
                await asyncio.sleep(0)  # it is on its way while the next part is decided
        if deciding.answered:
            await pipeline(connection, *statements, Statement("COMMIT"))
        else:
            await connection.rollback()
    finally:
        if writing is not None:
            await asyncio.wait([writing])


class _Deciding(Generic[U]):
    """Decides the units of one batch, in order and in parts, as far as one transaction is meant to go."""

    def __init__(self, round_: Round[U], known: Mapping[tuple[str, str, str], AnsweredRequest], head: Stamp) -> None:
        """*head* is the current revision, and the commit time of the next one."""
        self._round = round_
        self._known = known
        self._head = head
        self._commit_time = head.commit_time
        self._logged_bytes = 0
        self._cut = False
        self.revision = head.revision
        self.logged: list[bytes] = []
        self.answered = False
        """Whether there is anything to commit."""
        self.results: Outcomes = []

    @property
    def enough(self) -> bool:
        # Sizes are estimates until a unit is decided: what it deletes is known only under the lock.
        return self._cut or self._logged_bytes > MAX_BATCH_BYTES

    def statements(self, namespace: str, units: Sequence[U]) -> list[Statement]:
        """Decide *units*; statements that write what they do."""
        logged: list[LoggedUnit] = []
        answers: list[AnsweredRequest] = []
        accepted: list[tuple[U, Stamp]] = []
        for unit in units:
            if self.enough:
                break
            try:
                self._decide(unit, logged, answers, accepted)
            except TooMuch:
                self._cut = True
            except Exception as failure:
                if not isinstance(failure, Error):
                    logger.exception("a unit could not be decided")
                self.results.append(failure)
        if not answers:
            return []
        self.answered = True
        self.logged += [unit.body for unit in logged]
        return [
            *changelog.append(namespace, logged),
            request_ids.remember(namespace, answers),
            *self._round.writes(accepted),
        ]

    def _decide(
        self, unit: U, logged: list[LoggedUnit], answers: list[AnsweredRequest], accepted: list[tuple[U, Stamp]]
    ) -> None:
        head = self._head
        if self._known and (answered := self._known.get(unit.request_key)) and not unit.validate_only:
            self.results.append(_repeat(unit, answered, head.epoch))
            return
        stamp = Stamp(head.namespace, head.epoch, self.revision + 1, self._commit_time)
        changes, answer, result, accept = self._round.decide(unit, stamp)
        encoded = None
        if changes:
            encoded = changelog.encode_unit(
                stamp.revision, stamp.commit_time, unit.actor, unit.request_id, changes, unit.field
            )
        if not unit.validate_only:
            if encoded is not None:
                logged.append(encoded)
                accepted.append((unit, stamp))
                if accept is not None:
                    accept()
                self._logged_bytes += len(encoded.body)
                self.revision += 1
                self._commit_time += _TICK
            answers.append(
                AnsweredRequest(
                    unit.actor, unit.method, unit.request_id, unit.body_hash, self.revision, answer, unit.share
                )
            )
        self.results.append(Receipt(self.revision, head.epoch, answer, result))


_TICK: Final = timedelta(microseconds=1)


def _is_passing(failure: Exception) -> bool:
    """Whether the same batch may succeed in a moment: the connection or another's lock is to blame, not the work."""
    if not isinstance(failure, psycopg.OperationalError):
        return False
    state = failure.sqlstate
    if state is None or isinstance(failure, (psycopg.errors.LockNotAvailable, psycopg.errors.TooManyConnections)):
        return True
    # Classes "connection exception" and "operator intervention", but for a statement that took too long.
    return state[:2] in ("08", "57") and not isinstance(failure, psycopg.errors.QueryCanceled)


def _repeat(unit: Unit, answered: AnsweredRequest, epoch: str) -> Receipt:
    if answered.body_hash != unit.body_hash:
        message = "the request id was used with another body"
        raise refusal_of("request_id", "REQUEST_ID_REUSED", message, field="request_id")
    return Receipt(answered.revision, epoch, answered.answer)
