"""Whether a log still has, or has already, what follows a position; and how it is refused if not."""

from __future__ import annotations

from services.runtime.changelog import Head
from services.runtime.errors import FailedPrecondition, OutOfRange


def check_position(revision: int, epoch: str, head: Head) -> None:
    """Return if everything after *revision* of the life *epoch* (empty: whichever it is) can be read from the log.

    Raises:
        FailedPrecondition: EPOCH_CHANGED, FUTURE_REVISION.
        OutOfRange: COMPACTED.
    """
    check_epoch(epoch, head)
    if revision > head.revision:
        raise FailedPrecondition("FUTURE_REVISION", "the revision does not exist yet", head_revision=str(head.revision))
    if revision < head.horizon:
        raise compacted(head.horizon)


def check_epoch(epoch: str, head: Head) -> None:
    """Return if *epoch* (empty: any) is the life of the log that *head* is of; EPOCH_CHANGED if not."""
    if epoch not in ("", head.epoch):
        raise FailedPrecondition("EPOCH_CHANGED", "the position is of another life of the namespace", epoch=head.epoch)


def compacted(horizon: int) -> OutOfRange:
    """The refusal of a position below *horizon*."""
    return OutOfRange("COMPACTED", "that part of the log is gone; start with a snapshot", horizon_revision=str(horizon))
