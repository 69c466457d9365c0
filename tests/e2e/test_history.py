"""The real history, written once, seen four times, while everything under it is killed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_cli.replay import KINDS, Change, State, Watcher, apply, mutation

from .local_platform import Platform
from .real_data import needs_data, read_units
from .rest import Rest

TYPES = ("country", "region", "navaid", "runway", "airport_frequency")
ALL_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
UNITS = 2117
FINAL_ENTITIES = 93_768
# Which part dies before which unit.
KILLS = {300: "entity", 1000: "stream", 1300: "nats", 1700: "postgres"}


@pytest.fixture
async def namespace(platform: Platform) -> AsyncIterator[str]:
    """A new namespace without the mass-change guard, with the types of the history."""
    rest = Rest(platform.rest, platform.token())
    made = f"history-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {"massChangeGuard": "OFF"}, params={"namespace_id": made})
    for name in TYPES:
        await rest.ok("POST", f"/v1/namespaces/{made}/types", {"schema": ALL_STRINGS}, params={"type_id": name})
    yield made
    await rest.close()


@needs_data
@pytest.mark.timeout(900)
async def test_every_watcher_rebuilds_the_real_history_through_four_kills(platform: Platform, namespace: str) -> None:
    units = [
        [Change(event.key, event.row, creates=event.operation == "create") for event in unit] for unit in read_units()
    ]
    assert len(units) == UNITS
    expected: State = {}
    revisions: list[int] = []
    async with Running.in_home(Home(platform.home)).client(patience=120) as client:
        watchers = [Watcher(client, namespace, kind) for kind in KINDS]
        following = [asyncio.create_task(watcher.follow()) for watcher in watchers]
        try:
            for number, unit in enumerate(units):
                if part := KILLS.get(number):
                    await asyncio.to_thread(platform.kill, part)
                mutations = [mutation(namespace, change, orjson.dumps) for change in unit]
                answer = await client.transact(namespace, mutations, request_id=f"unit-{number}")
                revisions.append(answer.revision)
                apply(expected, unit)
                failed = [task for task in following if task.done()]
                assert not failed, [task.exception() for task in failed]
            await reached(watchers, following, revisions[-1])
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        await asyncio.to_thread(platform.wait_until_ready)

    # No acknowledged write is missing and none is doubled: the log holds the types and then each unit once.
    first = len(TYPES) + 1
    assert revisions == list(range(first, first + UNITS))
    assert len(expected) == FINAL_ENTITIES
    for watcher in watchers:
        # The client has verified that ranges join up and that each unit of a range came once.
        assert (watcher.kind, watcher.revision, watcher.units) == (watcher.kind, revisions[-1], revisions[-1])
        assert watcher.state == expected, watcher.kind


async def reached(watchers: list[Watcher], following: list[asyncio.Task[None]], revision: int) -> None:
    """Wait until all *watchers* have come to *revision*; a watcher that fails fails the test."""
    arrivals: asyncio.Future[Any] = asyncio.gather(*(watcher.reach(revision) for watcher in watchers))
    done, _ = await asyncio.wait({arrivals, *following}, timeout=180, return_when=asyncio.FIRST_COMPLETED)
    for task in done - {arrivals}:
        await task
    assert arrivals in done, {watcher.kind: watcher.revision for watcher in watchers}
