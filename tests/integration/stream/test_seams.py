"""The places where feeds usually break: between ring and log, bus and poll, one life of a log and the next."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from strandline.stream.v1 import feed_pb2, log_service_pb2

from services.runtime.bus import commit_subject
from services.runtime.call import Namespace
from tests.nats import Nats

from .conftest import TIDES, MakeOwner, MakeStream
from .owner import SYSTEM, Owner
from .service import Reader, StreamService, access_token

ENTERED, LEFT = feed_pb2.Change.ENTERED, feed_pb2.Change.LEFT


async def test_a_no_op_write_takes_no_revision_and_leaves_no_hole(owner: Owner, stream: StreamService) -> None:
    async with stream.watch(now=True) as reader:
        await reader.next()
        for n in (1, 1, 2, 2, 3):
            await owner.put(TIDES, "a", height=n)
        assert [unit.revision for unit in await reader.until(3)] == [1, 2, 3]


async def test_progress_never_overtakes_changes(
    owner: Owner, make_stream: MakeStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.feed.PROGRESS_SECONDS", 0.0)  # a Progress wherever one is possible
    monkeypatch.setattr("services.stream.hubs.POLL_SECONDS", 0.01)
    stream = await make_stream()
    async with stream.watch(now=True) as plain, stream.watch(now=True, filter="data.n = 7") as filtered:
        await asyncio.gather(plain.next(), filtered.next())
        for n in range(300):
            await owner.put(TIDES, "a", n=n % 10)
        # The reader itself asserts that ranges join up and that units lie in their message's range.
        await asyncio.gather(plain.until(300, seconds=60), filtered.until(300, seconds=60))
    assert [unit.revision for unit in plain.units] == list(range(1, 301))
    seen = [(unit.revision, change.kind) for unit in filtered.units for change in unit.changes]
    assert seen == [entry for n in range(7, 300, 10) for entry in ((n + 1, ENTERED), (n + 2, LEFT))]


async def test_a_starved_reader_falls_off_the_ring_and_misses_nothing(owner: Owner, make_stream: MakeStream) -> None:
    stream = await make_stream(ring_bytes=1_000_000)
    padding = "x" * 200_000  # the socket's buffers hold a few of these
    async with stream.watch(now=True) as starved, stream.watch(now=True) as other:
        await asyncio.gather(starved.next(), other.next())
        for n in range(60):
            await owner.put(TIDES, "a", n=n, padding=padding)
            await other.until(n + 1)
        before = owner.reads_of_units
        assert [unit.revision for unit in await starved.until(60)] == list(range(1, 61))
        assert owner.reads_of_units > before, "the reader never left the ring"


async def test_the_last_message_lost_on_the_bus_is_repaired_though_nothing_follows_it(
    owner: Owner, stream: StreamService
) -> None:
    async with stream.watch(now=True) as reader:
        await reader.next()
        owner.announces = False  # as if killed between commit and publish, with no later write
        await owner.put(TIDES, "a", height=1)
        await reader.until(1)


async def test_a_hole_in_the_middle_is_filled_from_the_log(owner: Owner, stream: StreamService) -> None:
    async with stream.watch(now=True) as reader:
        await reader.next()
        for n in range(100):
            owner.announces = n % 3 == 0
            await owner.put(TIDES, "a", n=n)
        assert [unit.revision for unit in await reader.until(100)] == list(range(1, 101))


async def test_duplicates_and_late_notices_on_the_bus_change_nothing(owner: Owner, stream: StreamService) -> None:
    async with stream.watch(now=True) as reader:
        await reader.next()
        await asyncio.gather(*(owner.put(TIDES, f"b{n}", n=n) for n in range(20)))
        await reader.until(20)
        head = log_service_pb2.Head(namespace_id="tides", epoch=TIDES.epoch, revision=20)
        notice = log_service_pb2.CommitNotice(head=head, after_revision=18, units=[b"not", b"looked at"])
        for payload in (notice.SerializeToString(), b"\xff\xff", b""):
            await owner.bus.publish(commit_subject("tides"), payload)
        await owner.put(TIDES, "last", n=0)
        assert [unit.revision for unit in await reader.until(21)] == list(range(1, 22))


async def test_a_notice_with_a_wrong_number_of_units_is_not_believed(owner: Owner, stream: StreamService) -> None:
    async with stream.watch(now=True) as reader:
        await reader.next()
        owner.announces = False
        await owner.put(TIDES, "a", n=0)
        head = log_service_pb2.Head(namespace_id="tides", epoch=TIDES.epoch, revision=1)
        lie = feed_pb2.Unit(revision=1, actor="nobody").SerializeToString()
        notice = log_service_pb2.CommitNotice(head=head, after_revision=0, units=[lie, lie])
        await owner.bus.publish(commit_subject("tides"), notice.SerializeToString())
        (unit,) = await reader.until(1)
        assert unit.actor == "ann"
        owner.announces = True
        await owner.put(TIDES, "a", n=1)
        assert [unit.revision for unit in await reader.until(2)] == [1, 2]


async def test_two_committers_whose_notices_overtake_each_other_make_one_dense_feed(
    owner: Owner, make_owner: MakeOwner, stream: StreamService
) -> None:
    other = await make_owner()
    async with stream.watch(now=True) as reader:
        await reader.next()
        writes = [o.put(TIDES, f"{name}{n}", n=n) for n in range(150) for name, o in (("a", owner), ("b", other))]
        await asyncio.gather(*writes)
        assert [unit.revision for unit in await reader.until(300)] == list(range(1, 301))


async def test_units_too_large_for_the_bus_are_read_from_the_log(owner: Owner, stream: StreamService) -> None:
    async with stream.watch(now=True) as reader:
        await reader.next()
        big = {("buoy", f"b{n}"): {"text": "x" * 200_000} for n in range(6)}
        await owner.write(TIDES, big)
        await owner.write(TIDES, {key: {"text": "y" * 200_000} for key in big})  # 2.4 MB with the previous data
        first, second = await reader.until(2)
        assert (len(first.changes), len(second.changes)) == (6, 6)


async def test_losing_the_bus_loses_no_change_and_does_not_delay_it_until_the_bus_is_back(
    owner: Owner, stream: StreamService, nats_server: Nats
) -> None:
    async with stream.watch(now=True) as reader:
        await reader.next()
        await owner.put(TIDES, "a", n=0)
        await reader.until(1)
        nats_server.kill()
        try:
            await owner.put(TIDES, "a", n=1)
            await reader.until(2)
        finally:
            nats_server.start()
        for n in range(2, 30):
            await owner.put(TIDES, "a", n=n)
        assert [unit.revision for unit in await reader.until(30)] == list(range(1, 31))


async def test_an_owner_that_is_away_for_a_moment_costs_a_reader_of_the_log_nothing(
    owner: Owner, stream: StreamService
) -> None:
    for n in range(20):
        await owner.put(TIDES, "a", n=n, padding="x" * 200_000)
    async with stream.watch(after_revision=0) as reader:
        await reader.next()
        await owner.stop()
        await asyncio.sleep(1)
        await owner.start()
        assert [unit.revision for unit in await reader.until(20)] == list(range(1, 21))


async def test_progress_comes_while_the_owner_hangs(owner: Owner, stream: StreamService) -> None:
    for tens in range(8):  # more, as a log and as a snapshot, than sockets hold
        keys = [("buoy", f"b{tens}{n}") for n in range(10)]
        await owner.write(TIDES, {key: {"padding": "x" * 100_000} for key in keys})

    async def quiet(reader: Reader) -> None:
        while (message := await reader.next()).units.units or message.snapshot_page.entities:
            pass
        assert message.WhichOneof("body") in ("progress", "snapshot_page")

    async with stream.watch(after_revision=0) as tail, stream.watch(snapshot=True) as snapshot:
        await asyncio.gather(tail.next(), snapshot.next())
        owner.answers.clear()
        await asyncio.gather(quiet(tail), quiet(snapshot))
        owner.answers.set()
        assert [unit.revision for unit in await tail.until(8)] == list(range(1, 9))
        while not (await snapshot.next()).HasField("snapshot_done"):
            pass


async def test_a_new_watch_is_refused_while_the_owner_is_away(owner: Owner, stream: StreamService) -> None:
    await owner.stop()
    async with stream.watch(now=True) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    await owner.start()


async def test_a_new_life_of_the_log_ends_the_feeds_of_the_old_one(owner: Owner, stream: StreamService) -> None:
    await owner.put(TIDES, "a", n=0)
    async with stream.watch(now=True) as reader:
        await reader.next()
        await owner.forget("tides")
        reborn = Namespace("tides", "0badcafe")
        await owner.put(reborn, "a", n=0)
        end = await reader.end()
        assert (end.reason, end.resume_after_revision) == (feed_pb2.End.EPOCH_CHANGED, 1)
        # The log is new before the access rules are: nobody reads it with the permission for the old one.
        async with stream.watch(now=True) as early:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await early.next()
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    data = {"epoch": reborn.epoch, "state": "ACTIVE", "massChangeGuard": "OFF"}
    await owner.write(SYSTEM, {("namespace", "tides"): data})
    await stream.knows(reborn)
    async with stream.watch(after_revision=0) as reader:
        (unit,) = await reader.until(1)
        assert reader.last is not None
        assert (reader.last.epoch, unit.revision) == (reborn.epoch, 1)


async def test_a_watch_that_begins_during_a_burst_of_writes_has_no_seam(owner: Owner, stream: StreamService) -> None:
    async def write() -> None:
        for n in range(200):
            await owner.put(TIDES, f"b{n % 5}", n=n)

    async def follow(delay: float) -> list[int]:
        await asyncio.sleep(delay)
        async with stream.watch(now=True) as reader:
            first = await reader.next()
            units = await reader.until(200)
            assert [unit.revision for unit in units] == list(range(first.revision + 1, 201))
            return [unit.revision for unit in units]

    writing = asyncio.create_task(write())
    await asyncio.gather(*(follow(n * 0.02) for n in range(10)))
    await writing


async def test_system_is_read_by_administrators_only(owner: Owner, stream: StreamService) -> None:
    async with stream.watch("system", access_token(scope="admin"), after_revision=0) as reader:
        (unit,) = await reader.until(1)
        assert [change.entity.type for change in unit.changes] == ["namespace", "membership"]
    async with stream.watch("system", access_token(), after_revision=0) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_hub_that_was_out_of_touch_until_the_log_was_cut_says_so_and_starts_again(
    owner: Owner, make_stream: MakeStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.hubs.POLL_SECONDS", 3600)  # only the bus can tell it
    stream = await make_stream()
    async with stream.watch(now=True) as reader:
        await reader.next()
        owner.announces = False
        for n in range(9):
            await owner.put(TIDES, "a", n=n)
        await owner.execute("UPDATE heads SET horizon = 5 WHERE namespace = %s", "tides")
        owner.announces = True
        await owner.put(TIDES, "a", n=10)
        end = await reader.end()
        assert (end.reason, end.resume_after_revision) == (feed_pb2.End.COMPACTED, 0)
        assert "horizon_revision: " in end.detail
    async with stream.watch(now=True) as reader:
        assert (await reader.next()).revision == 10
        await owner.put(TIDES, "a", n=11)
        assert [unit.revision for unit in await reader.until(11)] == [11]
