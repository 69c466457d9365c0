"""A feed from its start to its end, over gRPC."""

from __future__ import annotations

import asyncio
import hashlib

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from strandline.stream.v1 import feed_pb2

from services.stream.feed import PROGRESS_SECONDS
from services.stream.hubs import POLL_SECONDS

from .conftest import TIDES
from .owner import Owner
from .service import Reader, StreamService, entities_of, fields, reason

Change = feed_pb2.Change


async def test_now_begins_with_progress_at_the_head_and_then_brings_what_is_written(
    owner: Owner, stream: StreamService
) -> None:
    await owner.put(TIDES, "a", height=1)
    async with stream.watch(now=True) as reader:
        first = await reader.next()
        assert (first.after_revision, first.revision, first.epoch) == (1, 1, TIDES.epoch)
        assert first.progress.head_revision == 1
        await owner.put(TIDES, "a", height=2)
        (unit,) = await reader.until(2)
        assert unit.changes[0].kind == Change.UPDATED
        assert unit.changes[0].entity.data["height"] == 2
        assert unit.changes[0].previous.data["height"] == 1


async def test_after_revision_brings_everything_since_then_once(owner: Owner, stream: StreamService) -> None:
    for n in range(10):
        await owner.put(TIDES, "a", height=n)
    async with stream.watch(after_revision=3) as reader:
        assert [unit.revision for unit in await reader.until(10)] == list(range(4, 11))
        await owner.put(TIDES, "a", height=100)
        assert [unit.revision for unit in await reader.until(11)] == list(range(4, 12))


async def test_an_empty_namespace_can_be_watched_from_its_first_revision(owner: Owner, stream: StreamService) -> None:
    async with (
        stream.watch(now=True) as now,
        stream.watch(after_revision=0) as zero,
        stream.watch(snapshot=True) as all_,
    ):
        assert ((await now.next()).revision, (await zero.next()).revision) == (0, 0)
        done = await all_.next()
        assert (done.snapshot_done.count, done.snapshot_done.hash) == (0, "0" * 64)
        await owner.put(TIDES, "a", height=1)
        for reader in (now, zero, all_):
            assert [unit.revision for unit in await reader.until(1)] == [1]


async def test_after_a_time_begins_with_the_first_unit_committed_later(owner: Owner, stream: StreamService) -> None:
    for n in range(5):
        await owner.put(TIDES, "a", height=n)
    async with stream.watch(after_revision=0) as reader:
        units = await reader.until(5)
    async with stream.watch(after_time=units[2].commit_time) as reader:
        assert [unit.revision for unit in await reader.until(5)] == [4, 5]
    async with stream.watch(after_time=Timestamp(seconds=1)) as reader:
        assert [unit.revision for unit in await reader.until(5)] == [1, 2, 3, 4, 5]
    for none in (Timestamp(seconds=10**12), Timestamp(nanos=-5), Timestamp(nanos=2 * 10**9)):
        async with stream.watch(after_time=none) as reader:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await reader.next()
            assert reason(raised.value)[0] == "INVALID_FIELD"


async def test_a_watch_without_a_start_is_refused(stream: StreamService) -> None:
    async with stream.watch() as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason(raised.value) == ("START_REQUIRED", {})
    assert fields(raised.value) == ["start"]


async def test_a_revision_of_the_future_is_refused_with_the_head(owner: Owner, stream: StreamService) -> None:
    await owner.put(TIDES, "a", height=1)
    async with stream.watch(after_revision=2) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert raised.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert reason(raised.value) == ("FUTURE_REVISION", {"head_revision": "1"})


async def test_a_position_of_another_life_is_refused_with_the_epoch(owner: Owner, stream: StreamService) -> None:
    await owner.put(TIDES, "a", height=1)
    async with stream.watch(after_revision=0, epoch="deadbeef") as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert reason(raised.value) == ("EPOCH_CHANGED", {"epoch": TIDES.epoch})


async def test_a_position_below_the_horizon_is_refused_with_the_horizon(owner: Owner, stream: StreamService) -> None:
    for n in range(5):
        await owner.put(TIDES, "a", height=n)
    await owner.execute("UPDATE heads SET horizon = 3 WHERE namespace = %s", "tides")
    async with stream.watch(after_revision=2) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert raised.value.code() == grpc.StatusCode.OUT_OF_RANGE
    assert reason(raised.value) == ("COMPACTED", {"horizon_revision": "3"})
    async with stream.watch(after_revision=3) as reader:
        assert [unit.revision for unit in await reader.until(5)] == [4, 5]


async def test_an_idle_feed_sends_progress_by_itself(owner: Owner, stream: StreamService) -> None:
    assert PROGRESS_SECONDS + POLL_SECONDS < 5, "what is promised; the clock is looked at that often"
    await owner.put(TIDES, "a", height=1)
    async with stream.watch(now=True) as plain, stream.watch(now=True, types=["ship"]) as filtered:
        await asyncio.gather(plain.next(), filtered.next())
        await owner.put(TIDES, "a", height=2)
        await plain.until(2)
        told = await plain.next()
        assert (told.after_revision, told.revision, told.progress.head_revision) == (2, 2, 2)
        while (told := await filtered.next()).revision < 2:
            assert told.HasField("progress")
        assert told.progress.head_revision == 2


async def test_a_filtered_feed_brings_what_enters_and_leaves(owner: Owner, stream: StreamService) -> None:
    async with stream.watch(now=True, filter="data.height > 10") as reader:
        await reader.next()
        for height in (5, 15, 20, 3, 4):
            await owner.put(TIDES, "a", height=height)
        await owner.write(TIDES, {("buoy", "b"): {"height": 1}, ("buoy", "c"): {"height": 50}})
        await owner.write(TIDES, {("buoy", "b"): None, ("buoy", "c"): None})
        units = await reader.until(7)
    seen = [(unit.revision, c.kind, c.entity.name[-1]) for unit in units for c in unit.changes]
    assert seen == [
        (2, Change.ENTERED, "a"),
        (3, Change.UPDATED, "a"),
        (4, Change.LEFT, "a"),
        (6, Change.CREATED, "c"),
        (7, Change.DELETED, "c"),
    ]


async def test_a_feed_of_one_type_brings_only_that_type(owner: Owner, stream: StreamService) -> None:
    async with stream.watch(now=True, types=["ship"]) as reader:
        await reader.next()
        await owner.put(TIDES, "a", height=1)
        await owner.write(TIDES, {("buoy", "b"): {"n": 1}, ("ship", "s"): {"n": 1}})
        (unit,) = await reader.until(2)
        assert [change.entity.type for change in unit.changes] == ["ship"]


def expected_summary(units: list[feed_pb2.Unit]) -> tuple[int, str]:
    newest = {c.entity.name: c.entity.revision for unit in units for c in unit.changes}
    total = sum(int.from_bytes(hashlib.sha256(f"{n} {r}".encode()).digest()) for n, r in newest.items())
    return len(newest), f"{total % 2**256:064x}"


async def test_a_snapshot_is_complete_in_the_order_of_names_and_counted(owner: Owner, stream: StreamService) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:03}"): {"n": n} for n in range(35)} | {("ship", "s"): {"n": 0}})
    await owner.put(TIDES, "b007", n=700)
    async with stream.watch(after_revision=0) as reader:
        expected = expected_summary(await reader.until(2))
    async with stream.watch(snapshot=True) as reader:
        names = []
        while not (message := await reader.next()).HasField("snapshot_done"):
            assert (message.after_revision, message.revision) == (2, 2)
            names += [entity.name for entity in message.snapshot_page.entities]
        assert (message.snapshot_done.count, message.snapshot_done.hash) == expected
        assert names == sorted(names)
        assert len(names) == 36
        await owner.put(TIDES, "b007", n=701)
        assert [unit.revision for unit in await reader.until(3)] == [3]


async def test_a_snapshot_goes_on_after_the_page_whose_token_is_sent(owner: Owner, stream: StreamService) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:03}"): {"n": n} for n in range(35)})
    async with stream.watch(snapshot=True, filter="data.n >= 5") as reader:
        first = (await reader.next()).snapshot_page
    await owner.put(TIDES, "b000", n=99)  # not part of the snapshot any more, but of the tail
    async with stream.watch(resume_token=first.resume_token, filter="data.n >= 5") as reader:
        rest = []
        while not (message := await reader.next()).HasField("snapshot_done"):
            rest += [entity.data["n"] for entity in message.snapshot_page.entities]
        assert [entity.data["n"] for entity in first.entities] + rest == list(range(5, 35))
        assert message.snapshot_done.count == 30
        (unit,) = await reader.until(2)
        assert unit.changes[0].kind == Change.ENTERED


async def test_a_resume_token_of_another_filter_is_refused(owner: Owner, stream: StreamService) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:03}"): {"n": n} for n in range(35)})
    async with stream.watch(snapshot=True) as reader:
        token = (await reader.next()).snapshot_page.resume_token
    changed = ("A" if token[0] != "A" else "B") + token[1:]
    for request in ({"resume_token": token, "filter": "data.n = 1"}, {"resume_token": changed}):
        async with stream.watch(**request) as reader:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await reader.next()
        assert reason(raised.value)[0] == "INVALID_FIELD"


async def test_the_tail_of_a_snapshot_taken_while_others_write_misses_nothing(
    owner: Owner, stream: StreamService
) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:03}"): {"n": 0} for n in range(100)})

    async def write(worker: int) -> None:
        for n in range(60):
            await owner.put(TIDES, f"b{(n * 7 + worker) % 100:03}", n=n, worker=worker)

    async def read() -> Reader:
        async with stream.watch(snapshot=True) as reader:
            state = {}
            while not (message := await reader.next()).HasField("snapshot_done"):
                state.update({e.name.rsplit("/", 1)[1]: dict(e.data) for e in message.snapshot_page.entities})
            await writing
            head = await owner.put(TIDES, "last", n=0)
            units = await reader.until(head)
            assert [unit.revision for unit in units] == list(range(message.revision + 1, head + 1))
            states.append(state | entities_of(units))
            return reader

    states: list[dict[str, dict[str, object]]] = []
    writing = asyncio.gather(*(write(worker) for worker in range(4)))
    await asyncio.gather(*(read() for _ in range(5)))
    async with stream.watch(after_revision=0) as reader:
        everything = entities_of(await reader.until(await owner.put(TIDES, "very last", n=0)))
    del everything["very last"]
    for state in states:
        state["last"] = everything["last"]  # written once by each reader, and equal
        assert state == everything


async def test_draining_ends_every_feed_with_where_to_go_on(owner: Owner, stream: StreamService) -> None:
    await owner.put(TIDES, "a", height=1)
    async with stream.watch(now=True) as one, stream.watch(after_revision=0) as two:
        await asyncio.gather(one.next(), two.next())
        draining = asyncio.create_task(stream.drain())
        for reader in (one, two):
            end = await reader.end()
            assert (end.reason, end.resume_after_revision) == (feed_pb2.End.DRAINING, 1)
        await draining


async def test_a_snapshot_that_was_left_for_too_long_is_expired(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch
) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:03}"): {"n": n} for n in range(35)})
    async with stream.watch(snapshot=True) as reader:
        token = (await reader.next()).snapshot_page.resume_token
    monkeypatch.setattr("services.stream.snapshots.LIFETIME_SECONDS", -2)
    async with stream.watch(resume_token=token) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert raised.value.code() == grpc.StatusCode.OUT_OF_RANGE
    assert reason(raised.value)[0] == "SNAPSHOT_EXPIRED"


async def test_a_client_that_goes_takes_its_feed_along_even_when_it_reads_nothing(
    owner: Owner, stream: StreamService
) -> None:
    for number in range(10):
        await owner.put(TIDES, f"b{number}", text="x" * 100_000)  # more than a client is sent unasked
    async with stream.watch(after_revision=0) as reader, stream.watch(after_revision=0) as other:
        await reader.until(10)
        await other.next()
        assert stream.open_feeds == 2
    await stream.emptied()
