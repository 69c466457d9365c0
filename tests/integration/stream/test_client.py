"""The client over every transport, while the service that it reads from comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from strandline.stream.v1 import feed_pb2
from strandline_cli.watch import run_watch
from strandline_client import ApiError, Client, FeedEnded, Start, http_watching, watching
from strandline_client.history import Recording, Selection, Unit, unit_of_protobuf
from strandline_client.validation import validate

from .conftest import TIDES
from .owner import SYSTEM, Owner
from .replica import Replica, replica
from .service import ANN

__all__ = ["replica"]
TRANSPORTS = ("grpc", "ndjson", "sse", "websocket")


def feed(client: Client, transport: Any, start: Start, **selection: Any) -> AsyncGenerator[Any, None]:
    if transport == "grpc":
        return client.feed("tides", start, **selection)
    return client.feed_http("tides", start, transport=transport, **selection)


async def exhaust(messages: AsyncGenerator[Any, None]) -> None:
    """Read to the end; a Progress may still come."""
    async for _ in messages:
        pass


async def revisions(client: Client, transport: str, start: Start, last: int, **selection: Any) -> list[int]:
    """Units up to *last*, through whatever happens in between; the client itself verifies them."""
    look: Callable[[Any], Any] = watching.look if transport == "grpc" else http_watching.look
    found: list[int] = []
    async with asyncio.timeout(40):
        async for message in feed(client, transport, start, **selection):
            seen = look(message)
            found += [revision for revision, _ in seen.units or ()]
            if seen.revision >= last and seen.page is None:
                return found
    raise AssertionError("the feed ended")


@pytest.mark.parametrize("farewell", ["a goodbye", "no word"])
async def test_four_watchers_see_every_revision_once_across_restarts(
    owner: Owner, replica: Replica, farewell: str
) -> None:
    recordings = [Recording(transport) for transport in TRANSPORTS]
    async with replica.client() as client:
        start = Start(after_revision=0)
        watchers = asyncio.gather(*(revisions(client, r.reader, start, 300, recording=r) for r in recordings))
        for n in range(300):
            await owner.put(TIDES, f"b{n % 7}", n=n)
            if n in (50, 150):
                await (replica.service.stop() if farewell == "a goodbye" else replica.service.break_off())
            if n in (100, 200):
                await replica.start()
        assert await watchers == [list(range(1, 301))] * 4
        log: list[Unit] = []
        async for message in client.feed("tides", start):
            log += (unit_of_protobuf(unit) for unit in message.units.units)
            if message.revision == 300:
                break
    assert validate(log, recordings) == []
    assert min(len(recording.sessions) for recording in recordings) > 1


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_snapshot_that_breaks_off_goes_on_where_it_was(owner: Owner, replica: Replica, transport: str) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:03}"): {"text": "x" * 50_000, "n": n} for n in range(40)})
    async with replica.client() as client:
        messages = feed(client, transport, Start(snapshot=True))
        await anext(messages)
        await replica.service.stop()
        await replica.start()
        await owner.put(TIDES, "b000", n=1)
        look: Callable[[Any], Any] = watching.look if transport == "grpc" else http_watching.look
        async with asyncio.timeout(30):
            # The client checks that pages do not repeat and that they add up to the server's sum.
            while (seen := look(await anext(messages))).summary is None:
                assert seen.page is not None
            assert seen.summary[0] == 40
            assert [revision for revision, _ in look(await anext(messages)).units or ()] == [2]
        await messages.aclose()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_slow_reader_is_held_back_and_reads_the_log_later(
    owner: Owner, replica: Replica, transport: str
) -> None:
    async with replica.client() as client:
        messages = feed(client, transport, Start(now=True))
        await anext(messages)
        for n in range(60):  # 24 MB with the previous data: more than all sockets on the way hold
            await owner.put(TIDES, "a", n=n, padding="x" * 200_000)
        before = owner.reads_of_units
        look: Callable[[Any], Any] = watching.look if transport == "grpc" else http_watching.look
        found: list[int] = []
        async with asyncio.timeout(30):
            while len(found) < 60:
                found += [revision for revision, _ in look(await anext(messages)).units or ()]
        assert found == list(range(1, 61))
        assert owner.reads_of_units > before, "the reader never left the ring: nothing held it back"
        await messages.aclose()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_filtered_feed_is_verified_too(owner: Owner, replica: Replica, transport: str) -> None:
    for n in range(20):
        await owner.put(TIDES, "a", n=n)
    async with replica.client() as client:
        found = await revisions(client, transport, Start(after_revision=0), 20, types=["buoy"], filter="data.n > 17")
        assert found == [19, 20]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_refusal_reaches_the_caller_at_once(replica: Replica, transport: str) -> None:
    async with replica.client() as client:
        with pytest.raises(ApiError) as raised:
            await revisions(client, transport, Start(after_revision=1000), 1000)
    assert raised.value.code in ("FAILED_PRECONDITION", "INVALID_ARGUMENT")
    assert raised.value.reason == "FUTURE_REVISION"
    assert "head_revision 0" in str(raised.value)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_position_that_was_cut_while_the_reader_was_away_ends_its_feed(
    owner: Owner, replica: Replica, transport: str
) -> None:
    await owner.put(TIDES, "a", n=1)
    async with replica.client() as client, asyncio.timeout(30):
        messages = feed(client, transport, Start(now=True))
        await anext(messages)
        await replica.service.stop()
        await owner.put(TIDES, "a", n=2)
        await owner.execute("UPDATE heads SET horizon = revision WHERE namespace = %s", "tides")
        await replica.start()
        with pytest.raises(FeedEnded) as raised:
            await exhaust(messages)
    assert (raised.value.reason, raised.value.revision) == ("COMPACTED", 1)
    assert raised.value.position_is_lost


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_an_end_for_good_reaches_the_caller_with_the_last_position(
    owner: Owner, replica: Replica, transport: str
) -> None:
    await owner.put(TIDES, "a", n=1)
    async with replica.client() as client:
        messages = feed(client, transport, Start(now=True))
        await anext(messages)
        await owner.write(SYSTEM, {("membership", f"tides~{ANN}"): None})
        with pytest.raises(FeedEnded) as raised:
            await asyncio.wait_for(exhaust(messages), 30)
    assert (raised.value.reason, raised.value.epoch, raised.value.revision) == ("ACCESS_REVOKED", TIDES.epoch, 1)


async def test_patience_ends(replica: Replica) -> None:
    await replica.service.stop()
    async with replica.client(patience=0.5) as client:
        for transport in TRANSPORTS:
            with pytest.raises(ApiError) as raised:
                await asyncio.wait_for(revisions(client, transport, Start(now=True), 1), 30)
            assert raised.value.code == "UNAVAILABLE"
    await replica.start()


async def test_the_watch_command_prints_a_line_per_change(owner: Owner, replica: Replica) -> None:
    for data in ({"n": 1, "text": "ebb"}, {"n": 1, "text": "flood"}, None):
        await owner.write(TIDES, {("buoy", "a"): data})
    printed: asyncio.Queue[str] = asyncio.Queue()
    async with replica.client() as client:
        command = asyncio.create_task(run_watch(client, "tides", after=0, write=printed.put_nowait, tell=print))
        lines = [(await asyncio.wait_for(printed.get(), 30)).split(maxsplit=4) for _ in range(3)]
        command.cancel()
        await asyncio.gather(command, return_exceptions=True)
    assert [(line[0], *line[2:]) for line in lines] == [
        ("1", "CREATED", "buoy/a", 'n=1 text="ebb"'),
        ("2", "UPDATED", "buoy/a", 'text="flood"'),
        ("3", "DELETED", "buoy/a"),
    ]


async def test_the_watch_command_tells_once_when_its_connection_is_lost_and_when_it_is_back(
    owner: Owner, replica: Replica
) -> None:
    await owner.put(TIDES, "a", n=1)
    printed: asyncio.Queue[str] = asyncio.Queue()
    told: asyncio.Queue[str] = asyncio.Queue()
    async with replica.client() as client:
        command = asyncio.create_task(
            run_watch(client, "tides", after=0, write=printed.put_nowait, tell=told.put_nowait)
        )
        await asyncio.wait_for(printed.get(), 30)
        await replica.service.break_off()
        assert await asyncio.wait_for(told.get(), 30) == "connection lost, trying again"
        await owner.put(TIDES, "a", n=2)
        await replica.start()
        assert (await asyncio.wait_for(printed.get(), 30)).endswith("n=2")
        command.cancel()
        await asyncio.gather(command, return_exceptions=True)
    assert (told.get_nowait(), told.empty()) == ("connected again", True)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_feed_of_one_entity_with_one_field_lists_and_stops(
    owner: Owner, replica: Replica, transport: str
) -> None:
    for n in range(3):
        await owner.write(TIDES, {("buoy", name): {"n": n, "text": "ebb"} for name in ("a", "b")})
    recording = Recording("one", ids_of("a"))
    options = {"ids": ["buoy/a"], "read_mask": ["data.n"], "include_previous": False, "progress_seconds": 1}
    async with replica.client() as client, asyncio.timeout(30):
        start = Start(after_revision=0)
        async for _ in feed(client, transport, start, once=True, recording=recording, **options):
            pass
    units = [unit for message in recording.messages for unit in message.units or ()]
    assert [(u.revision, [(c.name[-1], c.data, c.previous) for c in u.changes]) for u in units] == [
        (n + 1, [("a", {"n": n}, None)]) for n in range(3)
    ]
    assert [message.end for message in recording.messages][-1] == "COMPLETED"


def ids_of(*ids: str) -> Selection:
    return Selection(ids=frozenset(f"namespaces/tides/types/buoy/entities/{entity_id}" for entity_id in ids))


async def test_the_watch_command_begins_with_what_there_is(owner: Owner, replica: Replica) -> None:
    await owner.put(TIDES, "a", n=1)
    printed: asyncio.Queue[str] = asyncio.Queue()
    async with replica.client() as client:
        command = asyncio.create_task(run_watch(client, "tides", snapshot=True, write=printed.put_nowait, tell=print))
        lines = [(await asyncio.wait_for(printed.get(), 30)).split(maxsplit=4)]
        await owner.put(TIDES, "a", n=2)
        lines.append((await asyncio.wait_for(printed.get(), 30)).split(maxsplit=4))
        command.cancel()
        await asyncio.gather(command, return_exceptions=True)
    assert [(line[0], *line[2:]) for line in lines] == [("1", "-", "buoy/a", "n=1"), ("2", "UPDATED", "buoy/a", "n=2")]


def test_every_end_is_either_resumed_or_told() -> None:
    from strandline_client.position import RESUMABLE

    assert set(feed_pb2.End.Reason.keys()) > RESUMABLE
