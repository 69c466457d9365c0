"""Snapshots as the entity service cuts them: page by page, type by type, while everybody writes."""

from __future__ import annotations

import asyncio
import hashlib
import random
from typing import Any, LiteralString

import grpc
import pytest
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2
from strandline_client.verify import SnapshotVerifier

from services.entity.compaction import compact
from services.runtime.database import Statement

from .conftest import TIDES
from .owner import Owner
from .service import Reader, StreamService, reason

State = dict[str, tuple[int, Any]]


async def snapshot(reader: Reader) -> tuple[list[entity_pb2.Entity], feed_pb2.WatchResponse]:
    """All entities of a snapshot, and the message that closes it; they add up to its sum."""
    entities: list[entity_pb2.Entity] = []
    verifier = SnapshotVerifier()
    while not (message := await reader.next()).HasField("snapshot_done"):
        entities += message.snapshot_page.entities
        verifier.observe((entity.name, entity.revision) for entity in message.snapshot_page.entities)
    verifier.check(message.snapshot_done.count, message.snapshot_done.hash)
    return entities, message


def state_of(units: list[feed_pb2.Unit], state: State | None = None) -> State:
    """Revision and ``n`` by name, from what a feed said."""
    state = dict(state or {})
    for unit in units:
        for change in unit.changes:
            if change.kind in (feed_pb2.Change.DELETED, feed_pb2.Change.LEFT):
                del state[change.entity.name]
            else:
                state[change.entity.name] = (change.entity.revision, change.entity.data["n"])
    return state


@pytest.mark.parametrize(
    "types",
    [(), ("buoy",), ("buoy", "ship"), ("ship", "whale", "buoy"), ("absent", "buoy", "nothing", "whale", "zeta")],
)
async def test_a_snapshot_holds_every_type_that_was_asked_for(
    owner: Owner, stream: StreamService, types: tuple[str, ...]
) -> None:
    keys = [(type_id, f"e{n:02}") for type_id in ("buoy", "ship", "whale") for n in range(23)]  # three pages each
    await owner.write(TIDES, {key: {"n": 1} for key in keys})
    await owner.write(TIDES, dict.fromkeys(keys[::5]))
    async with stream.watch(snapshot=True, types=types) as reader:
        entities, done = await snapshot(reader)
    expected = [key for key in keys if key not in keys[::5] and (not types or key[0] in types)]
    assert [(entity.type, entity.name.rsplit("/", 1)[1]) for entity in entities] == expected
    assert done.snapshot_done.count == len(expected)


async def test_a_snapshot_goes_on_between_two_types(owner: Owner, stream: StreamService) -> None:
    await owner.write(TIDES, {(type_id, f"e{n}"): {"n": n} for type_id in ("buoy", "ship") for n in range(5)})
    selection: dict[str, Any] = {"types": ["buoy", "ship"], "filter": "data.n < 3"}
    async with stream.watch(snapshot=True, **selection) as reader:
        first = (await reader.next()).snapshot_page
    assert [entity.type for entity in first.entities] == ["buoy"] * 3
    async with stream.watch(resume_token=first.resume_token, **selection) as reader:
        rest: list[entity_pb2.Entity] = []
        while not (message := await reader.next()).HasField("snapshot_done"):
            rest += message.snapshot_page.entities
    assert [entity.type for entity in rest] == ["ship"] * 3
    sums = [hashlib.sha256(f"{e.name} {e.revision}".encode()).digest() for e in [*first.entities, *rest]]
    total = sum(map(int.from_bytes, sums)) % 2**256
    assert (message.snapshot_done.count, message.snapshot_done.hash) == (6, f"{total:064x}")


@pytest.mark.parametrize(
    ("types", "filter"), [((), ""), (("buoy", "whale"), ""), ((), "data.n < 0.5"), (("ship", "buoy"), "data.n < 0.5")]
)
async def test_snapshot_and_tail_are_the_log_whoever_writes_and_deletes_meanwhile(
    owner: Owner, stream: StreamService, types: tuple[str, ...], filter: str
) -> None:
    chance = random.Random(11)
    keys = [(type_id, f"e{n:02}") for type_id in ("buoy", "ship", "whale") for n in range(25)]
    await owner.write(TIDES, {key: {"n": chance.random()} for key in keys[::2]})

    async def write() -> None:
        for _ in range(40):
            chosen = chance.sample(keys, 3)
            await owner.write(TIDES, {key: None if chance.random() < 0.4 else {"n": chance.random()} for key in chosen})

    async def read(delay: float) -> tuple[State, int, State]:
        await asyncio.sleep(delay)
        async with stream.watch(snapshot=True, types=types, filter=filter) as reader:
            entities, done = await snapshot(reader)
            began = {entity.name: (entity.revision, entity.data["n"]) for entity in entities}
            await writing
            units = await reader.until(await owner.put(TIDES, "e00", n=2))
            return began, done.revision, state_of(units, began)

    writing = asyncio.gather(*(write() for _ in range(3)))
    outcomes = await asyncio.gather(*(read(n * 0.05) for n in range(6)))
    head = await owner.put(TIDES, "e00", n=3)
    async with stream.watch(after_revision=0) as reader:
        log = await reader.until(head)

    def truth(revision: int) -> State:
        everything = state_of([unit for unit in log if unit.revision <= revision])
        return {
            name: (at, n)
            for name, (at, n) in everything.items()
            if (not types or name.split("/")[3] in types) and (not filter or n < 0.5)
        }

    for began, revision, ended in outcomes:
        assert began == truth(revision)
        # The last writes of the readers themselves, to one buoy, are of no account.
        last = "namespaces/tides/types/buoy/entities/e00"
        assert {k: v for k, v in ended.items() if k != last} == {k: v for k, v in truth(head).items() if k != last}


async def leases(owner: Owner) -> list[tuple[str, int]]:
    """Name and revision of those that live."""
    query: LiteralString = "SELECT name, acknowledged_revision FROM consumer_leases WHERE namespace = %s"
    (rows,) = await owner.database.read("tides", Statement(query, ("tides",)))
    return [(name, revision) for name, revision in rows]


async def grow(owner: Owner) -> None:
    """Four pages."""
    for tens in range(4):
        await owner.write(TIDES, {("buoy", f"b{tens}{n}"): {"n": 1} for n in range(10)})


async def age_and_cut(owner: Owner) -> int:
    """Let a month go by; the horizon after the log was cut as far as it may be."""
    await owner.execute(
        "UPDATE units SET commit_time = commit_time - interval '31 days' WHERE namespace = %s", TIDES.id
    )
    return await compact(owner.database, TIDES)


async def test_the_log_is_not_cut_under_a_snapshot_until_it_is_done(owner: Owner, stream: StreamService) -> None:
    await grow(owner)
    async with stream.step(snapshot=True) as reader:
        page = (await reader.next()).snapshot_page
        assert [revision for _, revision in await leases(owner)] == [4]
        for n in range(5):
            await owner.put(TIDES, "b39", n=n)
        assert await age_and_cut(owner) == 4
    # The reader went away, and goes on elsewhere with what it had.
    async with stream.step(resume_token=page.resume_token) as reader:
        rest, done = await snapshot_after(reader, page)
        assert (len(rest), done.revision) == (40, 4)
        assert rest[-1].data["n"] == 1, "b39 as it was at the snapshot's revision"
        await reader.until(9)
        assert not await leases(owner)
    assert await age_and_cut(owner) == 9


async def test_the_lease_is_let_go_though_the_reader_goes_away_with_the_end_of_the_snapshot(
    owner: Owner, stream: StreamService
) -> None:
    await grow(owner)
    async with stream.step(snapshot=True) as reader:
        await snapshot(reader)
        assert [revision for _, revision in await leases(owner)] == [4]
        owner.answers.clear()
        going_on = asyncio.create_task(reader.next())
        async with asyncio.timeout(30):
            await owner.lease_is_let_go.wait()
        going_on.cancel()
        await asyncio.gather(going_on, return_exceptions=True)
    owner.answers.set()
    async with asyncio.timeout(30):
        while True:
            if not await leases(owner):
                break
            await asyncio.sleep(0.02)


async def snapshot_after(
    reader: Reader, page: feed_pb2.SnapshotPage
) -> tuple[list[entity_pb2.Entity], feed_pb2.WatchResponse]:
    """*page* and what follows it; they add up to the snapshot's sum."""
    entities = list(page.entities)
    while not (message := await reader.next()).HasField("snapshot_done"):
        entities += message.snapshot_page.entities
    verifier = SnapshotVerifier()
    verifier.observe((entity.name, entity.revision) for entity in entities)
    verifier.check(message.snapshot_done.count, message.snapshot_done.hash)
    return entities, message


async def test_a_snapshot_that_lost_its_lease_and_its_revision_is_expired(owner: Owner, stream: StreamService) -> None:
    await grow(owner)
    async with stream.step(snapshot=True) as reader:
        token = (await reader.next()).snapshot_page.resume_token
        await owner.put(TIDES, "b00", n=2)
        await owner.execute("DELETE FROM consumer_leases WHERE namespace = %s", TIDES.id)
        assert await age_and_cut(owner) == 5
        end = await reader.end()
        assert (end.reason, end.resume_after_revision) == (feed_pb2.End.SNAPSHOT_EXPIRED, 0)
    async with stream.watch(resume_token=token) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert reason(raised.value)[0] == "SNAPSHOT_EXPIRED"


async def test_a_snapshot_of_one_page_takes_no_lease(owner: Owner, stream: StreamService) -> None:
    await owner.put(TIDES, "a", n=1)
    async with stream.watch(snapshot=True) as reader:
        await snapshot(reader)
        assert not await leases(owner)


async def test_a_snapshot_goes_on_without_a_lease_when_there_are_too_many(
    owner: Owner, stream: StreamService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.retention_store.MAX_LEASES", 0)
    await owner.write(TIDES, {("buoy", f"b{n:02}"): {"n": n} for n in range(35)})
    async with stream.watch(snapshot=True) as reader:
        entities, _ = await snapshot(reader)
        assert len(entities) == 35
        assert not await leases(owner)
