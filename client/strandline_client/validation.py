"""Judges recorded feeds against what was committed. Pure: the same history gives the same verdict anywhere.

The promises, by the name of their check:

- ``ordered``: revisions never decrease.
- ``unique``: no unit comes twice.
- ``reliable``: every committed unit that concerns the reader comes, and nothing comes that was not committed.
- ``atomic``: the changes of a unit come together, all of them.
- ``dense``: revisions have no holes, ranges join up, and who asked for everything gets every revision of a range.
- ``resumable``: a connection begins exactly where the one before it ended; anew only after the platform said, by its
  ``End`` or a refusal, that this place is lost.
- ``bookmarkable``: what was said to be complete is complete: nothing that lies at or below it comes later.
- ``filter``: nothing comes that does not match.
- ``enter_leave``: the kind of a change says how it crosses the filter.
- ``previous_value``: ``previous`` is what the entity held before.
- ``snapshot``: all matching entities as they were at its revision, each once, and the sum is right.
- ``durable``: every acknowledged write is in the log, at the revision that its writer was told.

What an entity held before it was purged is in the log no more, so of its changes before that only what is left is
judged: that they were committed, and by a reader without a filter, that they came.

Those that the stream alone can tell (all but ``reliable``, ``filter``, ``enter_leave``, ``previous_value`` and
``durable``) are checked on live traffic, too; see ``verify``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from strandline_client.errors import Check, FeedViolation
from strandline_client.history import Acknowledgement, Change, Json, Message, Recording, Selection, Session, Unit
from strandline_client.verify import RangeVerifier, SnapshotVerifier

_GONE = frozenset({"DELETED", "EXPIRED", "PURGED"})
# These concern whoever watches the type, whatever the filter says.
_UNFILTERED = frozenset({"PURGED", "SCHEMA_CHANGED"})
_CROSSINGS = frozenset({"UPDATED", "ENTERED", "LEFT"})


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise; *reader* is empty when it is the log itself that broke it."""

    check: Check
    reader: str
    detail: str


def validate(
    log: Sequence[Unit], recordings: Iterable[Recording], acknowledgements: Iterable[Acknowledgement] = ()
) -> list[Violation]:
    """Every promise that was broken.

    Args:
        log: the truth: all units from the first revision on, as one who asked for everything sees them.
        recordings: what readers saw.
        acknowledgements: what writers were told.
    """
    truth = _Truth(log)
    found = [*truth.faults(), *truth.missing(acknowledgements)]
    for recording in recordings:
        faults = (*_of_stream(recording), *_of_contents(recording, truth))
        found += [Violation(fault.check, recording.reader, fault.detail) for fault in faults]
    return found


class _Truth:
    """The log, and what every name held before and after each revision."""

    def __init__(self, log: Sequence[Unit]) -> None:
        self._log = log
        self.units: dict[int, Mapping[str, Change]] = {}
        # By name: what it held before the change at a revision, also if it was deleted by then.
        self.before: dict[tuple[int, str], Json | None] = {}
        # By name: the revision of its last purge.
        self._purges = {
            change.name: unit.revision for unit in log for change in unit.changes if change.kind == "PURGED"
        }
        held: dict[str, Json | None] = {}
        for unit in log:
            self.units[unit.revision] = {change.name: change for change in unit.changes}
            for change in unit.changes:
                begins = change.kind in ("CREATED", "PURGED")
                self.before[unit.revision, change.name] = None if begins else held.get(change.name)
                held[change.name] = change.data

    def faults(self) -> Iterator[Violation]:
        """What is wrong with the log itself."""
        for place, unit in enumerate(self._log):
            if unit.revision != place + 1:
                yield Violation("dense", "", f"unit {unit.revision} of the log stands at place {place + 1}")
                return

    def missing(self, acknowledgements: Iterable[Acknowledgement]) -> Iterator[Violation]:
        """Acknowledged writes that the log does not hold."""
        for told in acknowledgements:
            changes = self.units.get(told.revision, {})
            for name, content in told.contents.items():
                change = changes.get(name)
                if change is None or (_content(change) != content and not self.is_blank(told.revision, name)):
                    yield Violation("durable", "", f"{name} was acknowledged at {told.revision}, the log has {change}")

    def live_at(self, revision: int) -> dict[str, tuple[int, Json]]:
        """Every live entity as it was at *revision*: the revision of its last change, and its content."""
        state: dict[str, tuple[int, Json]] = {}
        for unit in self._log[:revision]:
            for change in unit.changes:
                if change.kind in _GONE:
                    state.pop(change.name, None)
                elif change.data is not None and change.kind != "SCHEMA_CHANGED":
                    state[change.name] = (unit.revision, change.data)
        return state

    def is_blank(self, revision: int, name: str) -> bool:
        """Whether what *name* held at *revision* was purged since."""
        return revision < self._purges.get(name, 0)

    def is_unknown(self, revision: int, change: Change, selection: Selection) -> bool:
        """Whether nobody can tell any more what *change* was to the reader: its filter has nothing to look at."""
        filtered = selection.matches is not None and change.kind not in _UNFILTERED
        return filtered and self.is_blank(revision, change.name)

    def expected(self, revision: int, change: Change, selection: Selection) -> str:
        """What *change* is to the reader; empty: nothing."""
        if not selection.is_about(change.name):
            return ""
        if selection.matches is None or change.kind in _UNFILTERED:
            return change.kind
        before = _matches(selection, self.before[revision, change.name])
        if change.kind in _GONE:
            return change.kind if before else ""
        now = _matches(selection, change.data)
        if change.kind != "UPDATED":
            return change.kind if now else ""
        return ("UPDATED" if now else "LEFT") if before else ("ENTERED" if now else "")


def _matches(selection: Selection, data: Json | None) -> bool:
    return data is not None and selection.matches is not None and selection.matches(data)


def _content(change: Change) -> Json | None:
    return None if change.kind in _GONE else change.data


def _lives(recording: Recording) -> list[list[Session]]:
    """The sessions from each beginning on: the first one, one after a place was lost, one that does not resume."""
    lives: list[list[Session]] = []
    for session in recording.sessions:
        if not lives or lives[-1][-1].lost_its_place or not session.start.resumes:
            lives.append([])
        lives[-1].append(session)
    return lives


def _of_stream(recording: Recording) -> Iterator[FeedViolation]:
    """What the stream alone tells: the live checks, on the whole of it."""
    lives = _lives(recording)
    for life, following in pairwise(lives):
        yield from _of_new_beginning(life, following)
    for life in lives:
        yield from _of_life(life, dense=recording.selection.is_everything)


def _of_new_beginning(life: Sequence[Session], following: Sequence[Session]) -> Iterator[FeedViolation]:
    """One that has a place gives it up only when it is told to, and never goes back behind it."""
    came = [message for session in life for message in session.messages if message.end is None]
    if not came:
        return
    last = came[-1]
    if not life[-1].lost_its_place:
        yield FeedViolation("resumable", f"began anew behind {last.revision}, which was not lost")
    first = next((message for session in following for message in session.messages), None)
    if first is not None and first.epoch == last.epoch and first.revision < last.revision:
        yield FeedViolation("bookmarkable", f"began anew at {first.revision}, behind {last.revision}")


def _of_life(sessions: Sequence[Session], *, dense: bool) -> Iterator[FeedViolation]:
    ranges = RangeVerifier(dense)
    for session in sessions:
        start = session.start
        if start.after_revision is not None:
            if ranges.revision not in (None, start.after_revision):
                yield FeedViolation("resumable", f"cut at {ranges.revision}, resumed after {start.after_revision}")
            ranges = replace(ranges, epoch=start.epoch or ranges.epoch, revision=start.after_revision)
        ranges.reconnected()
        for message in session.messages:
            units = None if message.units is None else [(unit.revision, unit) for unit in message.units]
            yield from ranges.faults(message.after, message.revision, message.epoch, units)
            ranges.move(message.revision, message.epoch, units)
            if message.head is not None and message.head < message.revision:
                yield FeedViolation(
                    "bookmarkable", f"complete up to {message.revision}, but the head is {message.head}"
                )


def _of_contents(recording: Recording, truth: _Truth) -> Iterator[FeedViolation]:
    """What only the log tells."""
    seen: dict[int, set[str]] = {}
    for message in recording.messages:
        for unit in message.units or ():
            seen.setdefault(unit.revision, set()).update(change.name for change in unit.changes)
            yield from _of_unit(unit, recording.selection, truth)
    yield from _of_absences(recording, seen, truth)
    for life in _lives(recording):
        yield from _of_snapshot(life, recording.selection, truth)


def _of_unit(unit: Unit, selection: Selection, truth: _Truth) -> Iterator[FeedViolation]:
    for change in unit.changes:
        committed = truth.units.get(unit.revision, {}).get(change.name)
        where = f"{change.kind} of {change.name} at {unit.revision}"
        if committed is None:
            yield FeedViolation("reliable", f"{where} was never committed")
            continue
        if truth.is_unknown(unit.revision, committed, selection):
            continue
        expected = truth.expected(unit.revision, committed, selection)
        if not expected:
            yield FeedViolation("filter", f"{where} does not match")
        elif change.kind != expected:
            # Among the three that tell how a filter is crossed; any other kind is simply not what happened.
            crossing = {change.kind, expected} <= _CROSSINGS
            yield FeedViolation("enter_leave" if crossing else "reliable", f"{where} should be {expected}")
        if truth.is_blank(unit.revision, change.name):
            continue
        if change.data != committed.data:
            yield FeedViolation("reliable", f"{where} holds {change.data}, committed was {committed.data}")
        shown = selection.previous or change.kind == "SCHEMA_CHANGED"
        before = truth.before[unit.revision, change.name] if shown else None
        if change.previous != before:
            yield FeedViolation("previous_value", f"{where} has previous {change.previous}, it was {before}")


def _of_absences(recording: Recording, seen: Mapping[int, set[str]], truth: _Truth) -> Iterator[FeedViolation]:
    """Units that lie in the covered ranges and concern the reader, but did not come, or not as a whole."""
    covered = {
        revision for message in recording.messages for revision in range(message.after + 1, message.revision + 1)
    }
    for revision in sorted(covered):
        wanted = {
            name
            for name, change in truth.units.get(revision, {}).items()
            if not truth.is_unknown(revision, change, recording.selection)
            and truth.expected(revision, change, recording.selection)
        }
        if revision not in seen:
            if wanted:
                yield FeedViolation("reliable", f"unit {revision} did not come")
        elif missing := wanted - seen[revision]:
            yield FeedViolation("atomic", f"unit {revision} came without {sorted(missing)}")


def _of_snapshot(sessions: Sequence[Session], selection: Selection, truth: _Truth) -> Iterator[FeedViolation]:
    """The pages against the state at their revision; only when the whole of a snapshot was recorded."""
    if not sessions[0].start.snapshot:
        return
    sums = SnapshotVerifier()
    came: dict[str, tuple[int, Json]] = {}
    for message in (message for session in sessions for message in session.messages):
        if message.page is not None:
            came.update((entity.name, (entity.revision, entity.data)) for entity in message.page)
        try:
            if message.page is not None:
                sums.observe((entity.name, entity.revision) for entity in message.page)
            if message.summary is not None:
                sums.check(*message.summary)
        except FeedViolation as fault:
            yield fault
        if message.summary is not None:
            yield from _compare(came, message, selection, truth)
            return


def _compare(
    came: Mapping[str, tuple[int, Json]], done: Message, selection: Selection, truth: _Truth
) -> Iterator[FeedViolation]:
    for name, (revision, data) in truth.live_at(done.revision).items():
        wanted = selection.is_about(name) and (selection.matches is None or selection.matches(data))
        if truth.is_blank(done.revision, name) or came.get(name) == ((revision, data) if wanted else None):
            continue
        yield FeedViolation("snapshot", f"{name} at {done.revision}: {came.get(name)} instead of {(revision, data)}")
    for name in came.keys() - truth.live_at(done.revision).keys():
        if not truth.is_blank(done.revision, name):
            yield FeedViolation("snapshot", f"{name} did not live at {done.revision}")
