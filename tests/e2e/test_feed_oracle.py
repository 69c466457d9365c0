"""After every round of random writes and faults each materialized feed equals the query, and no promise was broken.

One short run with a kept seed is part of the gate. ``make soak`` goes on with new seeds for an hour, or for
``STRANDLINE_SOAK_SECONDS``; each seed is printed before its run, ``STRANDLINE_ORACLE_SEED`` repeats one.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
import uuid

import pytest
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_client import Client, Start
from strandline_client.history import Unit, unit_of_protobuf
from strandline_client.validation import validate

from .local_platform import Platform
from .oracle import FAULTS, TYPES, Fault, Watcher, World, schema

GATE_SEED = 20261122
WRITERS = 3
WATCHERS = 8
UNITS = 8
"""Of each writer, in each round."""
SOAK_SECONDS = float(os.environ.get("STRANDLINE_SOAK_SECONDS", "0"))


async def new_world(running: Running, client: Client, chance: random.Random) -> World:
    """A namespace of random types, whose filters are all served by an index."""
    namespace = f"oracle-{uuid.uuid4().hex[:8]}"
    schemas = {type_id: schema(chance) for type_id in TYPES}
    api = await asyncio.to_thread(running.api)

    def declare() -> None:
        api.call("POST", f"/v1/namespaces?namespace_id={namespace}", {"massChangeGuard": "OFF"})
        for type_id, declared in schemas.items():
            body = {"schema": declared, "indexes": [{"fields": [f"data.{name}"]} for name in "nsb"]}
            api.call("POST", f"/v1/namespaces/{namespace}/types?type_id={type_id}", body)

    await asyncio.to_thread(declare)
    return World(client, namespace, schemas)


async def one_round(
    running: Running, world: World, watchers: list[Watcher], chance: random.Random, fault: Fault
) -> None:
    """Write while *fault* strikes; then every reader comes to the state that the query shows."""
    seeds = [random.Random(chance.random()) for _ in range(WRITERS)]
    writing = asyncio.gather(*(world.write(seed, number, UNITS) for number, seed in enumerate(seeds)))
    await asyncio.sleep(chance.uniform(0, 0.2))
    await fault.strike(running, chance.uniform(0.2, 1.5))
    await writing
    for watcher in watchers:
        await watcher.reach(world.head)
        expected = world.expect(watcher.type_ids, watcher.filter)
        assert await world.query(watcher.type_ids, watcher.filter) == expected, watcher.name
        assert watcher.state == expected, watcher.name


async def run(platform: Platform, seed: int, faults: list[Fault]) -> None:
    """One history from beginning to end."""
    print(f"seed {seed}: {', '.join(f'{fault.kind} {fault.part}' for fault in faults)}", flush=True)
    chance = random.Random(seed)
    running = Running.in_home(Home(platform.home))
    everybody: list[Watcher] = []
    async with running.client() as client:
        world = await new_world(running, client, chance)
        numbers = itertools.count()
        watchers: list[Watcher] = []
        try:
            for fault in faults:
                while len(watchers) < WATCHERS:
                    watchers.append(Watcher(chance, world, next(numbers)))
                    everybody.append(watchers[-1])
                await one_round(running, world, watchers, chance, fault)
                for _ in range(chance.randint(1, WATCHERS // 2)):
                    await watchers.pop(chance.randrange(len(watchers))).close()
        finally:
            await asyncio.gather(*(watcher.close() for watcher in watchers))
            await asyncio.to_thread(platform.wait_until_ready)
        log: list[Unit] = []
        async for message in client.feed(world.namespace, Start(after_revision=0), once=True):
            log += (unit_of_protobuf(unit) for unit in message.units.units)
        assert not client.counters.violations
    recordings = [recording for watcher in everybody for recording in watcher.recordings]
    assert validate(log, recordings, world.acknowledgements) == []
    # A run in which little happened shows little.
    assert len(log) >= WRITERS * UNITS * len(faults)
    assert sum(1 for recording in recordings for message in recording.messages if message.units) >= 5 * len(everybody)
    assert client.counters.connections > len(everybody), "nothing was cut"


@pytest.mark.timeout(300)
async def test_every_materialized_feed_equals_the_query_whatever_is_killed(platform: Platform) -> None:
    await run(platform, GATE_SEED, list(FAULTS[:4]))


@pytest.mark.skipif(not SOAK_SECONDS, reason="make soak")
@pytest.mark.timeout(0)
async def test_the_same_for_as_long_as_asked(platform: Platform) -> None:
    deadline = time.monotonic() + SOAK_SECONDS
    kept = os.environ.get("STRANDLINE_ORACLE_SEED")
    while time.monotonic() < deadline:
        seed = int(kept) if kept else random.SystemRandom().randrange(2**32)
        await run(platform, seed, random.Random(seed).sample(FAULTS, 8))
