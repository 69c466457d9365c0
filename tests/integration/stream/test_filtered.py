"""Filtered feeds side by side: what each adds up to is what a query would find."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import grpc
import pytest
from strandline.stream.v1 import feed_pb2

from services.runtime.errors import Aborted, Unavailable

from .conftest import TIDES, MakeStream
from .owner import Owner
from .service import Reader, StreamService

Change = feed_pb2.Change
Data = dict[str, float]
Matches = Callable[[str, Data], bool]
State = dict[str, Data]

# Each with what it means, said once more: of an entity's ``{type}/{id}`` and data.
SELECTIONS: list[tuple[dict[str, Any], Matches]] = [
    *(({"filter": f"data.n = {n}"}, lambda key, data, n=n: data["n"] == n) for n in range(4)),
    ({"filter": "data.n = 1 OR data.m = 1"}, lambda key, data: data["n"] == 1 or data["m"] == 1),
    ({"filter": "data.n = 1 AND data.m = 1"}, lambda key, data: data["n"] == 1 == data["m"]),
    ({"filter": "NOT data.n = 1"}, lambda key, data: data["n"] != 1),
    ({"filter": "data.n > 1", "read_mask": ["data.n", "data.m"]}, lambda key, data: data["n"] > 1),
    ({"types": ["ship"]}, lambda key, data: key.startswith("ship/")),
    ({"types": ["ship"], "filter": "data.n = 2"}, lambda key, data: key.startswith("ship/") and data["n"] == 2),
    ({"ids": ["buoy/e1", "ship/e2"]}, lambda key, data: key in ("buoy/e1", "ship/e2")),
    ({"ids": ["buoy/e1"], "filter": "data.n < 2"}, lambda key, data: key == "buoy/e1" and data["n"] < 2),
    ({"include_previous": False}, lambda key, data: True),
]
NEW = {Change.CREATED, Change.ENTERED, Change.UNDELETED}
GONE = {Change.DELETED, Change.LEFT}
SECONDS = 60.0


def key_of(name: str) -> str:
    _, _, _, type_id, _, entity_id = name.split("/")
    return f"{type_id}/{entity_id}"


def apply(state: State, units: list[feed_pb2.Unit]) -> None:
    """What the units make of *state*; a change that does not fit to it is an error."""
    for unit in units:
        for change in unit.changes:
            key = key_of(change.entity.name)
            assert (key in state) == (change.kind not in NEW), f"{key} at {unit.revision}"
            state[key] = {name: value for name, value in change.entity.data.items() if isinstance(value, float)}
            if change.kind in GONE:
                del state[key]


async def materialized(reader: Reader, written: asyncio.Future[int], *, snapshot: bool) -> State:
    """What a feed adds up to when everything was written. Raises ``Unavailable`` when it ends before that."""

    async def following() -> feed_pb2.WatchResponse:
        message = await reader.next(SECONDS)
        if message.HasField("end"):
            raise Unavailable("OVERLOADED", message.end.detail)
        return message

    state: State = {}
    while snapshot and not (message := await following()).HasField("snapshot_done"):
        for entity in message.snapshot_page.entities:
            state[key_of(entity.name)] = {n: v for n, v in entity.data.items() if isinstance(v, float)}
    while not written.done() or reader.last is None or reader.last.revision < written.result():
        await following()
    apply(state, reader.units)
    return state


@pytest.mark.parametrize("ring_bytes", [8_000_000, 3_000])
async def test_every_filtered_feed_adds_up_to_what_a_query_finds(
    owner: Owner, make_stream: MakeStream, ring_bytes: int
) -> None:
    stream = await make_stream(ring_bytes=ring_bytes)
    chance = random.Random(ring_bytes)
    keys = [(type_id, f"e{n}") for type_id in ("buoy", "ship") for n in range(4)]
    written: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def write() -> None:
        for _ in range(25):
            some = chance.sample(keys, chance.randint(1, 3))
            contents = {key: {"n": chance.randint(0, 3), "m": chance.randint(0, 1)} for key in some}
            with suppress(Aborted, Unavailable):  # the log says what was written
                await owner.write(TIDES, {key: None if chance.random() < 0.2 else contents[key] for key in some})

    async def follow(number: int, request: dict[str, Any]) -> State:
        await asyncio.sleep(number % 7 * 0.02)
        start: dict[str, Any] = {"snapshot": True} if number % 2 else {"after_revision": 0}
        while True:
            try:
                async with stream.watch(**start, **request) as reader:
                    return await materialized(reader, written, snapshot=number % 2 == 1)
            except Unavailable:
                pass  # the owner was too busy to be read from for too long: again, as every client does
            except grpc.aio.AioRpcError as failure:
                # It was too busy to say where the log is.
                if failure.code() != grpc.StatusCode.UNAVAILABLE:
                    raise

    following = [
        asyncio.create_task(follow(number, request)) for number, (request, _) in enumerate(SELECTIONS + SELECTIONS[1:])
    ]
    await asyncio.gather(write(), write())
    written.set_result(await owner.put(TIDES, "last", n=9, m=9))
    async with stream.watch(after_revision=0) as reader:
        truth: State = {}
        apply(truth, await reader.until(written.result(), SECONDS))
    for (request, matches), state in zip(SELECTIONS + SELECTIONS[1:], await asyncio.gather(*following), strict=True):
        assert state == {key: data for key, data in truth.items() if matches(key, data)}, request


async def test_a_filter_that_nothing_matches_moves_on_with_every_progress(owner: Owner, stream: StreamService) -> None:
    async with stream.watch(now=True, filter='data.country = "CH"') as reader:
        await reader.next()
        for n in range(50):
            await owner.put(TIDES, "a", n=n)
        while (message := await reader.next()).revision < 50:
            assert message.HasField("progress")
        assert (message.HasField("progress"), message.progress.head_revision) == (True, 50)
        await owner.put(TIDES, "a", country="CH")
        (unit,) = await reader.until(51)
        assert unit.changes[0].kind == Change.ENTERED


async def test_changes_of_types_stand_in_the_same_order_whatever_the_filter_says(
    owner: Owner, stream: StreamService
) -> None:
    wishes: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [1, 2, 3, 4]),
        ({"filter": "data.n = 1"}, [1, 2, 3, 4]),
        ({"filter": "data.n = 5"}, [2, 4]),
        ({"types": ["reef"]}, [2]),
        ({"types": ["reef"], "filter": "data.n = 1"}, [2]),
        ({"types": ["buoy"]}, [1, 3]),
        ({"ids": ["wreck/w", "buoy/a"]}, [1, 3, 4]),
        ({"ids": ["whale/w"]}, []),
    ]
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(stream.watch(now=True, **request)) for request, _ in wishes]
        for reader in readers:
            await reader.next()
        await owner.put(TIDES, "a", n=1)
        await owner.declare(TIDES, "reef")
        await owner.put(TIDES, "a", n=1, m=2)
        assert await owner.declare(TIDES, "wreck") == 4
        for reader, (request, revisions) in zip(readers, wishes, strict=True):
            assert [unit.revision for unit in await reader.until(4)] == revisions, request
            for unit in reader.units:
                (change,) = unit.changes
                is_schema = unit.revision in (2, 4)
                assert (change.kind == Change.SCHEMA_CHANGED, change.HasField("type")) == (is_schema, is_schema)
