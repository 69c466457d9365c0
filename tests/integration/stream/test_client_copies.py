"""What programs build on a feed: units one by one, and a copy of entities that is never behind what was asked for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from strandline.stream.v1 import feed_pb2
from strandline_client import ApiError, Cache, FeedEnded, Replaced, Start
from strandline_client.history import Recording
from strandline_client.json_data import json_of

from services.runtime.call import Namespace

from .conftest import TIDES
from .owner import SYSTEM, Owner
from .replica import Replica, replica
from .service import ANN, access_token

__all__ = ["replica"]
SECONDS = 30.0


def data_of(cache: Cache) -> dict[str, Any]:
    """What a copy holds: data by short name."""
    return {"/".join(name.split("/")[3::2]): json_of(entity.data) for name, entity in cache.items()}


async def test_units_come_one_by_one_and_another_watch_goes_on_after_any_of_them(
    owner: Owner, replica: Replica
) -> None:
    for n in range(10):
        await owner.put(TIDES, "a", n=n)
    found: list[int] = []
    start = Start(after_revision=0)
    async with replica.client() as client, asyncio.timeout(SECONDS):
        while len(found) < 10:
            # As a program that ends and begins anew: all that is kept is where it was.
            async with client.watch("tides", start) as watch:
                for _ in range(3 if len(found) < 9 else 1):
                    found.append((await anext(watch)).revision)
                start = watch.start
    assert found == list(range(1, 11))
    assert start == Start(after_revision=10, epoch=TIDES.epoch)


async def test_a_watch_of_units_refuses_a_snapshot(replica: Replica) -> None:
    async with replica.client() as client:
        with pytest.raises(ValueError, match="cache"):
            client.watch("tides", Start(snapshot=True))


async def test_a_watch_survives_the_end_of_its_token(owner: Owner, replica: Replica) -> None:
    given: list[str] = []

    async def token() -> str:
        given.append(access_token(lifetime=2 if not given else 600))
        return given[-1]

    async with replica.client(token=token) as client, asyncio.timeout(SECONDS):
        recording = Recording("short-lived")
        feed = client.feed("tides", Start(now=True), recording=recording)
        await anext(feed)
        async for _ in feed:  # until the first connection has ended
            if len(recording.sessions) > 1:
                break
        await owner.put(TIDES, "a", n=1)
        async for message in feed:
            if message.revision == 1:
                break
        await feed.aclose()
    assert [message.end for message in recording.sessions[0].messages if message.end] == ["TOKEN_EXPIRED"]


async def test_a_token_that_expired_on_the_way_is_asked_for_again(replica: Replica) -> None:
    given: list[str] = []

    async def token() -> str:
        given.append(access_token(lifetime=-60 if not given else 600))
        return given[-1]

    async with replica.client(token=token) as client, asyncio.timeout(SECONDS):
        await anext(client.feed("tides", Start(now=True)))
    stale = access_token(lifetime=-60)

    async def stale_token() -> str:
        return stale

    async with replica.client(token=stale_token) as client, asyncio.timeout(SECONDS):
        with pytest.raises(ApiError) as raised:
            await anext(client.feed("tides", Start(now=True)))
    assert raised.value.reason == "TOKEN_INVALID"


async def test_those_who_need_a_token_at_the_same_time_share_one(replica: Replica) -> None:
    asked = 0

    async def token() -> str:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return access_token()

    async with replica.client(token=token) as client, asyncio.timeout(SECONDS):
        feeds = [client.feed("tides", Start(now=True)) for _ in range(20)]
        await asyncio.gather(*(anext(feed) for feed in feeds))
        assert asked == 1
        await asyncio.gather(*(feed.aclose() for feed in feeds))


async def test_a_provider_that_cannot_reach_what_it_asks_is_asked_again(replica: Replica) -> None:
    failures: list[Exception] = [
        ConnectionRefusedError("nobody there"),
        ApiError("RESOURCE_EXHAUSTED", "RATE_LIMITED", ""),
    ]

    async def token() -> str:
        if failures:
            raise failures.pop()
        return access_token()

    async with replica.client(token=token) as client, asyncio.timeout(SECONDS):
        await anext(client.feed("tides", Start(now=True)))
    assert not failures


async def test_a_copy_is_the_state_and_follows_it_through_restarts(owner: Owner, replica: Replica) -> None:
    rng = random.Random(7)
    truth: dict[str, Any] = {}
    told: list[Replaced | feed_pb2.Unit] = []

    async def write(number: int) -> int:
        name = f"b{rng.randrange(20)}"
        data = None if rng.random() < 0.3 else {"n": number}
        revision = await owner.write(TIDES, {("buoy", name): data})
        truth.pop(f"buoy/{name}", None)
        if data is not None:
            truth[f"buoy/{name}"] = data
        return revision

    for number in range(50):
        await write(number)
    async with (
        replica.client() as client,
        asyncio.timeout(SECONDS),
        client.cache("tides", on_change=told.append) as cache,
    ):
        assert data_of(cache) == truth
        head = cache.revision
        for number in range(50, 150):
            head = max(head, await write(number))
            if number == 100:
                await replica.service.break_off()
                await replica.start()
        assert (await cache.at_least(head, TIDES.epoch)).revision == head
        assert data_of(cache) == truth
    first, *rest = told
    assert isinstance(first, Replaced)
    assert (first.reason, first.changed, first.removed) == ("", frozenset(), frozenset())
    revisions = [unit.revision for unit in rest if isinstance(unit, feed_pb2.Unit)]
    assert revisions == list(range(first.revision + 1, head + 1))


async def test_a_copy_under_a_filter_takes_in_what_enters_and_lets_go_of_what_leaves(
    owner: Owner, replica: Replica
) -> None:
    for name, n in (("low", 1), ("high", 9), ("sinks", 8), ("rises", 2)):
        await owner.put(TIDES, name, n=n)
    await owner.write(TIDES, {("ship", "s"): {"n": 9}})
    async with (
        replica.client() as client,
        asyncio.timeout(SECONDS),
        client.cache("tides", types=["buoy"], filter="data.n > 5") as cache,
    ):
        assert set(data_of(cache)) == {"buoy/high", "buoy/sinks"}
        await owner.put(TIDES, "sinks", n=3)
        await owner.put(TIDES, "rises", n=7)
        # The last one does not concern the reader: the copy hears of it by Progress.
        await cache.at_least(await owner.put(TIDES, "low", n=2))
        assert data_of(cache) == {"buoy/high": {"n": 9}, "buoy/rises": {"n": 7}}


async def lose_history(owner: Owner) -> None:
    """While nobody looked, the log was cut beyond where the reader stood."""
    await owner.put(TIDES, "cut", n=1)
    await owner.execute("UPDATE heads SET horizon = revision WHERE namespace = %s", "tides")


async def lose_life(owner: Owner) -> None:
    """While nobody looked, the namespace was deleted and made anew."""
    await owner.forget("tides")
    reborn = Namespace("tides", "0badcafe")
    data = {"epoch": reborn.epoch, "state": "ACTIVE", "massChangeGuard": "OFF"}
    await owner.write(SYSTEM, {("namespace", "tides"): data})
    await owner.put(reborn, "stays", n=1)
    await owner.put(reborn, "cut", n=1)


@pytest.mark.parametrize(("loss", "reason"), [(lose_history, "COMPACTED"), (lose_life, "EPOCH_CHANGED")])
async def test_a_lost_position_is_a_new_snapshot_whose_differences_are_told(
    owner: Owner, replica: Replica, loss: Callable[[Owner], Awaitable[None]], reason: str
) -> None:
    await owner.put(TIDES, "stays", n=0)
    await owner.put(TIDES, "goes", n=0)
    told: asyncio.Queue[Replaced | feed_pb2.Unit] = asyncio.Queue()
    async with (
        replica.client() as client,
        asyncio.timeout(SECONDS),
        client.cache("tides", on_change=told.put_nowait) as cache,
    ):
        assert isinstance(await told.get(), Replaced)
        assert set(data_of(cache)) == {"buoy/stays", "buoy/goes"}
        await replica.service.stop()
        await owner.write(TIDES, {("buoy", "goes"): None})
        await owner.put(TIDES, "stays", n=1)
        await loss(owner)
        await replica.start()
        replaced = await told.get()
        assert data_of(cache) == {"buoy/stays": {"n": 1}, "buoy/cut": {"n": 1}}
        assert isinstance(replaced, Replaced)
        assert (replaced.reason, replaced.epoch) == (reason, cache.epoch)
        differences = [{name.rsplit("/", 1)[1] for name in names} for names in replaced_names(replaced)]
        assert differences == [{"cut"}, {"stays"}, {"goes"}]
        if reason == "EPOCH_CHANGED":
            with pytest.raises(FeedEnded) as raised:
                await cache.at_least(1, TIDES.epoch)
            assert raised.value.position_is_lost


def replaced_names(replaced: Replaced) -> tuple[frozenset[str], ...]:
    return replaced.added, replaced.changed, replaced.removed


async def test_a_copy_whose_feed_ended_for_good_says_so_and_stays_readable(owner: Owner, replica: Replica) -> None:
    await owner.put(TIDES, "a", n=1)
    async with replica.client() as client, asyncio.timeout(SECONDS), client.cache("tides") as cache:
        await owner.write(SYSTEM, {("membership", f"tides~{ANN}"): None})
        with pytest.raises(FeedEnded) as raised:
            await cache.at_least(1000)
        assert raised.value.reason == "ACCESS_REVOKED"
        assert not raised.value.position_is_lost
        assert data_of(cache) == {"buoy/a": {"n": 1}}
        with pytest.raises(ApiError):
            async with client.cache("tides"):
                pytest.fail("a stranger's cache was filled")
