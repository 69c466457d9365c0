"""Many readers that come back at once, far behind: they cost one read of the log, and see nothing that was purged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from prometheus_client import REGISTRY
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2, stream_service_pb2
from strandline.stream.v1.stream_service_pb2 import WatchManyRequest, WatchManyResponse

from services.runtime.changelog import CREATED, LOCK_HEAD, PURGED, Change, append, begin_life, encode_unit
from services.runtime.database import Statement, pipeline
from services.stream.envelopes import AboutWatch

from .conftest import TIDES, MakeStream
from .owner import Owner
from .service import StreamService, access_token

WATCH = "/strandline.stream.v1.StreamService/Watch"
SECRET = b"first-mate"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def sample(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0


async def commit(owner: Owner, first: int, units: Sequence[Sequence[Change]], *statements: Statement) -> int:
    """Write *units* from revision *first* on, quicker than one by one; how many bytes they take."""
    logged = [
        encode_unit(revision, BEGAN + timedelta(milliseconds=revision), "ann", "", changes)
        for revision, changes in enumerate(units, first)
    ]
    async with owner.database.connection() as connection:
        await pipeline(
            connection,
            Statement("BEGIN"),
            Statement("SELECT set_config('app.namespace', %s, true)", (TIDES.id,)),
            begin_life(TIDES.id, TIDES.epoch),
            Statement(LOCK_HEAD, (TIDES.id,)),
            *append(TIDES.id, logged),
            *statements,
            Statement("COMMIT"),
        )
    return sum(len(unit.body) for unit in logged)


def created(number: int, secret: bytes = b"") -> Change:
    name = f"namespaces/tides/types/buoy/entities/b{number}"
    entity = entity_pb2.Entity(name=name, type="buoy", revision=number, created_by=secret.decode())
    entity.data["n"] = number
    return Change(CREATED, "buoy", f"b{number}", entity.SerializeToString())


async def resume(stream: StreamService, channel: grpc.aio.Channel, after: int, to: int) -> AsyncIterator[bytes]:
    """The messages of a feed as bytes, until they have covered *to*; checks that they are complete.

    Goes on where it was when the feed ends or cannot be had: all of this is one process, which may be slow.
    """
    watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(WATCH)
    while after < to:
        request = stream_service_pb2.WatchRequest(parent="namespaces/tides", after_revision=after, epoch=TIDES.epoch)
        feed = watch(request.SerializeToString(), metadata=(("authorization", f"Bearer {access_token()}"),))
        try:
            async for raw in feed:
                message = feed_pb2.WatchResponse.FromString(raw)
                assert message.after_revision == after, "ranges do not join up"
                if message.HasField("units"):
                    expected = list(range(after + 1, message.revision + 1))
                    assert [unit.revision for unit in message.units.units] == expected, "units are not dense"
                assert message.HasField("units") or message.revision == after, "units are missing"
                after = message.revision
                yield raw
                if after >= to:
                    break
        except grpc.aio.AioRpcError as failure:
            if failure.code() != grpc.StatusCode.UNAVAILABLE:
                raise
        feed.cancel()


async def test_two_hundred_readers_that_resume_ten_thousand_revisions_behind_cost_one_read_of_the_log(
    owner: Owner, stream: StreamService
) -> None:
    total = await commit(owner, 1, [[created(number)] for number in range(1, 10_001)])
    reads, read = sample("strandline_stream_log_reads_total"), sample("strandline_stream_log_read_bytes_total")

    async def follow(channel: grpc.aio.Channel, after: int) -> None:
        async for _ in resume(stream, channel, after, 10_000):
            pass

    async with grpc.aio.insecure_channel(stream.grpc_address) as channel:
        await asyncio.gather(*(follow(channel, number % 4) for number in range(200)))
    read = sample("strandline_stream_log_read_bytes_total") - read
    reads = sample("strandline_stream_log_reads_total") - reads
    assert total <= read <= 1.5 * total
    assert reads <= 2 * total / 2**17, "segments are read in pieces"


async def test_a_purge_is_in_every_feed_that_begins_after_it_was_seen(owner: Owner, stream: StreamService) -> None:
    await commit(owner, 1, [[created(number, SECRET if number == 500 else b"")] for number in range(1, 3_001)])
    async with grpc.aio.insecure_channel(stream.grpc_address) as channel:

        async def shows_secret(to: int) -> bool:
            return any([SECRET in raw async for raw in resume(stream, channel, 0, to)])

        assert await shows_secret(3_000)
        blank = Statement(
            "UPDATE units SET body = overlay(body placing %s from position(%s::bytea in body))"
            " WHERE namespace = %s AND revision = 500",
            (bytes(len(SECRET)), SECRET, TIDES.id),
        )
        async with stream.watch(now=True) as live:
            await live.next()
            coming = [asyncio.create_task(shows_secret(3_000)) for _ in range(20)]
            await commit(owner, 3_001, [[Change(PURGED, "buoy", "b500", created(500).entity)]], blank)
            await live.until(3_001)
            assert not any(await asyncio.gather(*(shows_secret(3_001) for _ in range(20))))
            await asyncio.gather(*coming)


@pytest.mark.parametrize("selection", [{}, {"filter": "data.n >= 0"}], ids=["everything", "filtered"])
@pytest.mark.parametrize("kept_in", ["ring", "segments"])
async def test_a_purge_is_in_every_feed_that_begins_after_it_was_answered(
    owner: Owner, stream: StreamService, kept_in: str, selection: dict[str, str]
) -> None:
    """Nobody has told the stream service of it: the bus may be late, or lost."""
    units = [[created(1, SECRET)], [created(2)]]
    blank = Statement(
        "UPDATE units SET body = overlay(body placing %s from position(%s::bytea in body))"
        " WHERE namespace = %s AND revision = 1",
        (bytes(len(SECRET)), SECRET, TIDES.id),
    )
    async with stream.watch(now=True) as live:
        if kept_in == "ring":
            await live.next()
        await commit(owner, 1, units)
        async with stream.watch(after_revision=0, **selection) as before:
            assert SECRET in (await before.until(2))[0].SerializeToString()
        await live.until(2)
        await commit(owner, 3, [[Change(PURGED, "buoy", "b1", created(1).entity)]], blank)
        async with stream.watch(after_revision=0, **selection) as after:
            assert SECRET not in b"".join(unit.SerializeToString() for unit in await after.until(3))


@pytest.mark.parametrize("once", [False, True])
async def test_who_cannot_catch_up_because_the_owner_went_away_is_told(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch, once: bool
) -> None:
    monkeypatch.setattr("services.stream.feed.PATIENCE_SECONDS", 0.5)
    async with stream.watch(now=True) as live:
        await live.next()
        owner.reads.clear()  # from here on the hub sees nothing new, and heads are still told
        await commit(owner, 1, [[created(1)]])
        async with stream.watch(after_revision=0, once=once) as behind:
            while not (message := await behind.next()).HasField("end"):
                assert message.HasField("progress")
            assert message.end.reason == feed_pb2.End.UNAVAILABLE
        owner.reads.set()
        await live.until(1)


async def test_a_purge_is_in_what_a_feed_held_back_while_its_reader_took_nothing(
    owner: Owner, stream: StreamService
) -> None:
    await commit(owner, 1, [[created(1, SECRET)], [created(2)]])
    blank = Statement(
        "UPDATE units SET body = overlay(body placing %s from position(%s::bytea in body))"
        " WHERE namespace = %s AND revision = 1",
        (bytes(len(SECRET)), SECRET, TIDES.id),
    )

    async def requests() -> AsyncIterator[WatchManyRequest]:
        for watch_id in "ab":
            watch = stream_service_pb2.WatchRequest(parent="namespaces/tides", after_revision=0)
            yield WatchManyRequest(create=WatchManyRequest.Create(watch_id=watch_id, watch=watch))

    async with stream.watch(now=True) as live, stream.connection() as connection:
        await live.next()
        reads = sample("strandline_stream_log_reads_total")
        await connection.read(requests())
        await until(lambda: stream.open_feeds == 3)
        responses = connection.responses()
        async with asyncio.timeout(15), aclosing(responses):
            for _ in range(2):
                assert isinstance(await anext(responses), AboutWatch)  # now both may look at the log
            await until(lambda: sample("strandline_stream_log_reads_total") > reads)
            # One has the message that is taken next; the other has read the same, and waits.
            await commit(owner, 3, [[Change(PURGED, "buoy", "b1", created(1).entity)]], blank)
            await live.until(3)
            first = said = WatchManyResponse.FromString((await anext(responses)).protobuf)
            while said.watch_id == first.watch_id:
                said = WatchManyResponse.FromString((await anext(responses)).protobuf)
    assert SECRET not in said.SerializeToString()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_readers_with_filters_share_what_is_read(owner: Owner, make_stream: MakeStream) -> None:
    stream = await make_stream()
    total = await commit(owner, 1, [[created(number)] for number in range(1, 3_001)])
    read = sample("strandline_stream_log_read_bytes_total")

    async def follow(number: int) -> list[int]:
        async with stream.watch(after_revision=0, filter=f"data.n = {number}") as reader:
            return [unit.revision for unit in await reader.until(3_000)]

    found = await asyncio.gather(*(follow(number) for number in range(100, 3_000, 100)))
    assert found == [[number] for number in range(100, 3_000, 100)]
    assert sample("strandline_stream_log_read_bytes_total") - read <= 1.5 * total


@pytest.mark.parametrize("size", [100, 30_000])
async def test_a_reader_meets_live_changes_at_the_end_of_the_log_without_a_seam(
    owner: Owner, make_stream: MakeStream, size: int
) -> None:
    stream = await make_stream(ring_bytes=8_000)  # most is below the ring all the time
    async with stream.watch(now=True) as live:
        await live.next()
        writing = asyncio.gather(*(owner.put(TIDES, f"b{n}", text="x" * size) for n in range(200)))
        async with stream.watch(after_revision=0) as reader:
            await reader.until(200)
            assert [unit.revision for unit in reader.units] == list(range(1, 201))
        await live.until(200)
        await writing
