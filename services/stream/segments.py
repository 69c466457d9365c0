"""History, read from its owner once for all who need it.

The log is cut into *segments* whose borders depend on the log alone: of the blocks of 1,024, 512, ... 1 revisions, each
beginning at a multiple of its size, a segment is the largest around a revision that takes at most 256 KiB. So everybody
who asks gets the same ones, and a full one never changes, but by a purge (which blanks in place: its borders stay) and
where the log is cut.

A block that is too large is found to be so by reading its beginning, which is kept as that of smaller blocks: nothing
is read twice. Concurrent readers wait for the same read. What was read is kept until newer segments need the room, a
purge that it may not have seen is seen by the hub, or the hub goes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple, Protocol

from prometheus_client import Counter

from services.runtime.changelog import Head
from services.runtime.errors import OutOfRange
from services.stream.hub import Hub
from services.stream.messages import MAX_SHARED, LogUnit, UnitsMessage
from services.stream.positions import check_epoch, compacted
from services.stream.views import UnitView

MAX_UNITS: Final = 1024
# Many readers catch up at once, and each one's transport holds a copy of what it is sending.
MAX_BYTES: Final = 2**18
# Of all segments: as the owner encoded them, and with everything that was made of that for readers.
CACHE_BYTES: Final = 64 * 2**20
_ENTRY_BYTES: Final = 1024
# What filters look at takes so many times the bytes it was parsed from (4 to 11, measured on 0.5 to 4 kB a unit).
_VIEWED: Final = 11

READS = Counter("strandline_stream_log_reads", "Runs of units read from owners for readers behind the ring.")
READ_BYTES = Counter("strandline_stream_log_read_bytes", "Bytes of units in these runs.")


class Units(Protocol):
    """Reads units from the log's owner (``upstream.Logs``)."""

    async def units(
        self, namespace: str, after: int, to: int = 0, max_bytes: int = 0
    ) -> tuple[Head, Sequence[bytes]]: ...


class _Footprint:
    """The bytes that a segment takes, and the segments that it is kept among, if it is."""

    def __init__(self, taken: int) -> None:
        self.taken = taken
        self.among: Segments | None = None

    def grow(self, taken: int) -> None:
        self.taken += taken
        if self.among is not None:
            self.among.grow(taken)


class _Rest(UnitsMessage):
    """The rest of a segment after a cursor. What is made of it is kept with it, and takes room."""

    def __init__(self, segment: Segment, after: int) -> None:
        super().__init__(segment.epoch, after, segment.revision, segment.units[after - segment.after :])
        # And not the segment, which would then hold itself.
        self._footprint = segment.footprint
        self._parsed = segment.views
        self._taken = 0

    @cached_property
    def protobuf(self) -> bytes:
        made = super().protobuf
        self._take(2 * len(made))  # with and without its position
        return made

    @cached_property
    def json(self) -> bytes:
        fresh = [unit for unit in self.units if "json" not in vars(unit)]
        made = super().json
        self._take(2 * len(made))
        self._footprint.grow(sum(len(unit.json) for unit in fresh))  # of the units, which stay
        return made

    @cached_property
    def views(self) -> list[UnitView]:
        views = self._parsed
        for revision, unit in enumerate(self.units, self.after + 1):
            if revision not in views:
                views[revision] = UnitView(unit.body)
                self._footprint.grow(_VIEWED * len(unit.body))
        return [views[revision] for revision in range(self.after + 1, self.revision + 1)]

    def leave(self) -> None:
        """Be kept no longer: only those who read it now hold it."""
        self._footprint.grow(-self._taken)
        self._footprint, self._parsed = _Footprint(0), {}

    def _take(self, taken: int) -> None:
        self._taken += taken
        self._footprint.grow(taken)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Segment:
    """The units ``(after, revision]``; *seen*: everything committed up to there had its effect on them.

    ``end`` is where the segment ends once it is full. Until then it ends at the head as it was, or it is only begun:
    not *whole*, and not to be shown. ``views`` are its units for filters, by revision: parsed once, wherever in the
    segment a reader begins.
    """

    epoch: str
    after: int
    end: int
    units: Sequence[LogUnit]
    footprint: _Footprint
    seen: int
    whole: bool
    views: dict[int, UnitView] = field(default_factory=dict)
    _batches: dict[int, _Rest] = field(default_factory=dict)

    @property
    def revision(self) -> int:
        return self.after + len(self.units)

    def batch(self, cursor: int) -> UnitsMessage:
        """The rest of it after *cursor*; the same object for those who ask for it together."""
        if (made := self._batches.get(cursor)) is None:
            if len(self._batches) >= MAX_SHARED:
                for rest in self._batches.values():
                    rest.leave()
                self._batches.clear()
            made = self._batches[cursor] = _Rest(self, cursor)
        return made


class _Block(NamedTuple):
    """The revisions ``(after, after + size]`` of one hub's log; *after* is a multiple of *size*."""

    hub: Hub
    after: int
    size: int

    @property
    def end(self) -> int:
        return self.after + self.size


class Segments:
    """The segments that this process holds."""

    def __init__(self, logs: Units, *, max_bytes: int = CACHE_BYTES) -> None:
        self._logs = logs
        self._max_bytes = max_bytes
        # In the order of their use. None: the block is too large to be a segment.
        self._kept: OrderedDict[_Block, Segment | None] = OrderedDict()
        self.held_bytes = 0
        self._reads: dict[_Block, asyncio.Task[Segment | None]] = {}

    async def after(self, hub: Hub, cursor: int, reach: int = 0) -> Segment | None:
        """The segment around the revision after *cursor*; None while there is no such revision.

        It shows every purge that *hub* has seen, and holds the revisions up to *reach* that belong to it.

        Raises:
            OutOfRange: COMPACTED.
            FailedPrecondition: EPOCH_CHANGED, the log has another life than the hub's.
            NotFound: there is no log.
            Unavailable: its owner does not answer.
        """
        for block in _blocks_around(hub, cursor):
            segment = await self._segment(block, min(block.end, max(cursor + 1, reach)))
            if cursor < hub.horizon:
                raise compacted(hub.horizon)
            if segment is not None:
                return segment if segment.revision > cursor else None
        raise AssertionError("one unit is never too large")

    def sweep(self) -> None:
        """Let go of what may hold purged content, and of hubs that are gone."""
        for block, segment in list(self._kept.items()):
            if block.hub.ended or (segment is not None and segment.seen < block.hub.purged_to):
                self._drop(block)

    async def _segment(self, block: _Block, reach: int) -> Segment | None:
        """What *block* is, up to the revision *reach* if there is one; None: too large."""
        while True:
            if block in self._kept:
                segment = self._kept[block]
                if segment is None or (
                    segment.whole and segment.seen >= block.hub.purged_to and segment.revision >= reach
                ):
                    self._kept.move_to_end(block)
                    return segment
            begun = self._reads.get(block)
            segment = await asyncio.shield(begun or self._begin_reading(block))
            # A read that others began may be from before the unit was committed.
            if segment is None or (segment.seen >= block.hub.purged_to and (segment.revision >= reach or not begun)):
                return segment

    def _begin_reading(self, block: _Block) -> asyncio.Task[Segment | None]:
        async def read() -> Segment | None:
            try:
                return await self._read(block)
            finally:
                # Before it is done: who found a done one too old would find it again, without end.
                del self._reads[block]

        def ended(task: asyncio.Task[Segment | None]) -> None:
            if not task.cancelled():
                task.exception()  # those who wait get it; if nobody does any more, nobody needs it

        task = self._reads[block] = asyncio.create_task(read())
        task.add_done_callback(ended)
        return task

    async def _read(self, block: _Block) -> Segment | None:
        """Read *block*, or what it lacks."""
        hub = block.hub
        held = self._kept.get(block)
        if held is not None and held.seen < hub.purged_to:
            held = None
        after = held.after if held else max(block.after, hub.horizon)
        begin = held.revision if held else after
        try:
            head, bodies = await self._logs.units(hub.namespace, begin, block.end, MAX_BYTES)
        except OutOfRange as refusal:
            horizon = int(refusal.metadata.get("horizon_revision", "0"))
            hub.learn(Head(hub.namespace, hub.epoch, 0, horizon))
            if not begin < horizon < block.end:
                raise
            after = begin = horizon
            held = None
            head, bodies = await self._logs.units(hub.namespace, begin, block.end, MAX_BYTES)
        READS.inc()
        READ_BYTES.inc(sum(map(len, bodies)))
        check_epoch(hub.epoch, head)
        hub.learn(head)
        units = [*(held.units if held else ()), *map(LogUnit, bodies)]
        is_all = begin + len(bodies) >= min(block.end, head.revision)
        return self._keep(block, after, units, min(head.revision, held.seen) if held else head.revision, is_all)

    def _keep(self, block: _Block, after: int, units: Sequence[LogUnit], seen: int, is_all: bool) -> Segment | None:
        """Remember *block*, which begins with *units*, as a segment or as too large and the segment it begins with."""
        size = sum(len(unit.body) for unit in units)
        if is_all and (size <= MAX_BYTES or block.size == 1):
            return self._put(
                block, Segment(block.hub.epoch, after, block.end, units, _Footprint(size), seen, whole=True)
            )
        self._put(block, None)
        half = _Block(block.hub, block.after, block.size // 2)
        own = max(0, half.end - after)
        if own:
            self._keep(half, after, units[:own], seen, is_all or len(units) >= own)
        other = _Block(block.hub, half.end, half.size)
        if units[own:] and other not in self._kept:
            footprint = _Footprint(sum(len(unit.body) for unit in units[own:]))
            self._put(
                other, Segment(block.hub.epoch, after + own, other.end, units[own:], footprint, seen, whole=False)
            )
        return None

    def grow(self, taken: int) -> None:
        """Something that is kept takes so many bytes more: make room."""
        self.held_bytes += taken
        while self.held_bytes > self._max_bytes:
            self._drop(next(iter(self._kept)))

    def _put(self, block: _Block, segment: Segment | None) -> Segment | None:
        self._drop(block)
        self._kept[block] = segment
        if segment is not None:
            segment.footprint.among = self
        self.grow(_cost(segment))
        return segment

    def _drop(self, block: _Block) -> None:
        if block in self._kept:
            segment = self._kept.pop(block)
            if segment is not None:
                segment.footprint.among = None
            self.held_bytes -= _cost(segment)


def _blocks_around(hub: Hub, cursor: int) -> Iterator[_Block]:
    """Every block that holds the revision after *cursor*, the largest first."""
    size = MAX_UNITS
    while size:
        yield _Block(hub, cursor // size * size, size)
        size //= 2


def _cost(segment: Segment | None) -> int:
    return _ENTRY_BYTES + (segment.footprint.taken if segment else 0)
