"""Whether a log still has, or has already, what follows a position; and how it is refused if not."""

from __future__ import annotations

from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from services.runtime.call import Namespace
from services.runtime.changelog import Head
from services.runtime.errors import FailedPrecondition, OutOfRange, Unavailable
from services.runtime.rules import time_of
from services.stream.upstream import Logs

SNAPSHOT: Final = "start with a snapshot"
"""What a reader does whose position was cut from the log."""
SEEK: Final = "go on with what is left: `beginning`, or a later start"
"""What the owner of a subscription does."""


def check_position(revision: int, epoch: str, head: Head, instead: str = SNAPSHOT) -> None:
    """Return if everything after *revision* of the life *epoch* (empty: whichever it is) can be read from the log.

    *instead* says what to do if it was cut.

    Raises:
        FailedPrecondition: EPOCH_CHANGED, FUTURE_REVISION.
        OutOfRange: COMPACTED.
    """
    check_epoch(epoch, head)
    if revision > head.revision:
        raise FailedPrecondition("FUTURE_REVISION", "the revision does not exist yet", head_revision=str(head.revision))
    if revision < head.horizon:
        raise compacted(head.horizon, instead)


def check_epoch(epoch: str, head: Head) -> None:
    """Return if *epoch* (empty: any) is the life of the log that *head* is of; EPOCH_CHANGED if not."""
    if epoch not in ("", head.epoch):
        raise FailedPrecondition("EPOCH_CHANGED", "the position is of another life of the namespace", epoch=head.epoch)


def compacted(horizon: int, instead: str = SNAPSHOT) -> OutOfRange:
    """The refusal of a position below *horizon*; *instead* says what to do."""
    return OutOfRange("COMPACTED", f"that part of the log is gone; {instead}", horizon_revision=str(horizon))


async def head_of(logs: Logs, namespace: Namespace) -> Head:
    """The head of a namespace's log; one that nothing was written to has none yet, and is empty."""
    return (await logs.heads([namespace.id])).get(namespace.id) or Head(namespace.id, namespace.epoch, 0)


async def position_at(logs: Logs, moment: Timestamp, head: Head, field: str, instead: str = SNAPSHOT) -> int:
    """The last revision that was committed at or before *moment* in the life of the log that *head* is of; 0: none.

    *field* names the moment in the request, *instead* says what to do if nobody can tell any more.

    Raises:
        InvalidArgument: INVALID_FIELD, no time.
        OutOfRange: COMPACTED.
        Unavailable: the log has another life by now, or its owner does not answer.
    """
    time_of(moment, field)
    if not head.revision:
        return 0
    revision, now = await logs.revision_at(head.namespace, moment)
    if now.epoch != head.epoch:
        raise Unavailable("OVERLOADED", "the namespace is being made anew; retry")
    if 0 < now.horizon >= revision:
        # Whether something between the time and the horizon is gone can no longer be known.
        raise compacted(now.horizon, instead)
    return revision
