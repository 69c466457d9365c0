"""Whether a log still has, or has already, what follows a position; and how it is refused if not."""

from __future__ import annotations

from typing import Final

from services.runtime.changelog import Head
from services.runtime.errors import FailedPrecondition, OutOfRange

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
