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
from collections.abc import Sequence

import pytest
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_client import Client
from strandline_client.validation import validate

from .faults import Fault, Scene, any_rounds, strike
from .local_platform import Platform
from .oracle import TYPES, Watcher, World, schema
from .oracle_types import Types

GATE_SEED = 20261122
GATE_ROUNDS = (
    (Fault("kill", "stream"),),
    (Fault("cut"), Fault("kill", "entity")),
    (Fault("slow"), Fault("kill", "postgres")),
    (Fault("lose", "nats"),),
    (Fault("hold", "nats"), Fault("kill", "entity")),
    (Fault("purge"), Fault("pause", "nats")),
    (Fault("drain", "postgres"),),
    (Fault("roll"),),
)
WRITERS = 3
WATCHERS = 8
UNITS = 8
"""Of each writer, in each round, at least."""
TYPE_CHANGES = 3
"""In each round, at least."""
SOAK_ROUNDS = 8
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


async def one_round(scene: Scene, faults: Sequence[Fault]) -> None:
    """Write while *faults* strike; then every reader comes to the state that the query shows."""
    world, chance = scene.world, scene.chance
    enough = asyncio.Event()
    seeds = [random.Random(chance.random()) for _ in range(WRITERS)]
    async with asyncio.TaskGroup() as writing:
        for number, seed in enumerate(seeds):
            writing.create_task(world.write(seed, number, UNITS, enough))
        writing.create_task(Types(world).change(random.Random(chance.random()), TYPE_CHANGES, enough))
        await asyncio.sleep(chance.uniform(0, 0.2))
        await strike(scene, faults)
        enough.set()
    for reader in scene.readers:
        await reader.reach(world.head)
        expected = world.expect(reader.selection)
        assert await world.query(reader.selection, reader.filter) == expected, reader.name
        assert reader.state == expected, reader.name
    if any(fault.kind == "cut" for fault in faults):
        await asyncio.gather(*(reader.warned(world.horizon) for reader in scene.readers))


async def run(platform: Platform, seed: int, rounds: Sequence[Sequence[Fault]]) -> None:
    """One history from beginning to end."""
    print(f"seed {seed}: {', '.join(' + '.join(map(str, faults)) for faults in rounds)}", flush=True)
    chance = random.Random(seed)
    running = Running.in_home(Home(platform.home))
    everybody: list[Watcher] = []
    async with running.client() as client:
        world = await new_world(running, client, chance)
        scene = Scene(running, world, [], chance)
        numbers = itertools.count()
        try:
            for faults in rounds:
                while len(scene.readers) < WATCHERS:
                    scene.readers.append(Watcher(chance, world, next(numbers)))
                    everybody.append(scene.readers[-1])
                await one_round(scene, faults)
                for _ in range(chance.randint(1, WATCHERS // 2)):
                    await scene.readers.pop(chance.randrange(len(scene.readers))).leave()
        finally:
            await asyncio.gather(*(reader.leave() for reader in scene.readers), return_exceptions=True)
            await asyncio.to_thread(platform.wait_until_ready)
        await world.remember()
        assert not client.counters.violations
    recordings = [watcher.recording for watcher in everybody]
    assert validate(world.log, recordings, world.acknowledgements) == []
    # A run in which little happened shows little.
    messages = [message for recording in recordings for message in recording.messages if message.units]
    assert len(world.log) >= WRITERS * UNITS * len(rounds)
    assert len(messages) >= 5 * len(everybody)
    assert sum(len(message.units or ()) for message in messages) >= len(world.log)
    assert sum(running.pid(part) != pid for part, pid in scene.ended) >= sum(
        fault.restarts for faults in rounds for fault in faults
    )
    changes = [change for message in messages for unit in message.units or () for change in unit.changes]
    assert sum(change.kind == "SCHEMA_CHANGED" for change in changes) >= TYPE_CHANGES * len(rounds)
    assert sum(change.kind == "PURGED" for change in changes) >= len(rounds)
    written = [change for unit in world.log for change in unit.changes if change.kind == "CREATED"]
    assert any(change.data is None for change in written), "nothing was blanked"
    assert client.counters.connections > len(everybody), "nothing was cut"


@pytest.mark.timeout(600)
async def test_every_materialized_feed_equals_the_query_whatever_happens(platform: Platform) -> None:
    await run(platform, GATE_SEED, GATE_ROUNDS)


@pytest.mark.skipif(not SOAK_SECONDS, reason="make soak")
@pytest.mark.timeout(0)
async def test_the_same_for_as_long_as_asked(platform: Platform) -> None:
    deadline = time.monotonic() + SOAK_SECONDS
    kept = os.environ.get("STRANDLINE_ORACLE_SEED")
    while time.monotonic() < deadline:
        seed = int(kept) if kept else random.SystemRandom().randrange(2**32)
        await run(platform, seed, any_rounds(random.Random(seed), SOAK_ROUNDS))
