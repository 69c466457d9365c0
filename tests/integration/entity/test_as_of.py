"""The past, read from what came after it."""

from __future__ import annotations

import random

from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.entity.as_of import select_states, state_of
from services.runtime.changelog import CREATED, DELETED, UNDELETED
from tests.integration.entity.conftest import Shore
from tests.integration.entity.test_snapshots import snapshot


async def live_through(shore: Shore, seed: int) -> list[feed_pb2.Unit]:
    """A history with every kind of change, and values of very different sizes."""
    rng = random.Random(seed)
    await shore.declare()
    for _ in range(40):
        writes = []
        for number in rng.sample(range(12), 4):
            name = f"e{number}"
            chance = rng.random()
            if chance < 0.25:
                writes.append(shore.deleting(name, allow_missing=True))
            elif chance < 0.4:
                writes.append(shore.undeleting(name))
            else:
                size = rng.choice((0, 100, 200, 20_000))
                writes.append(shore.updating(name, {"n": rng.random(), "s": "x" * size}, allow_missing=True))
        await shore.batch(*writes)
    return await shore.units()


async def test_the_past_is_the_same_with_and_without_the_log_before_it(shore: Shore) -> None:
    units = await live_through(shore, 7)
    ids = [f"e{number}" for number in range(13)]
    states: list[dict[str, tuple[int, entity_pb2.Entity]]] = [{}]
    for unit in units:
        state = dict(states[-1])
        for change in unit.changes:
            if change.HasField("entity"):
                state[change.entity.name] = (change.kind, change.entity)
        states.append(state)
    assert {change.kind for unit in units for change in unit.changes} >= {CREATED, DELETED, UNDELETED}
    database = shore.replica.service.database
    for revision in range(0, len(states), 3):
        # The past that is asked for is all that is left.
        for table in ("units", "versions"):
            await shore.replica.deployment.execute(
                f"DELETE FROM {table} WHERE namespace = '{shore.namespace.id}' AND revision <= {revision}"  # noqa: S608
            )
        keys = [("buoy", entity_id) for entity_id in ids]
        states_then = select_states(shore.namespace.id, keys, revision, 2**30, show_deleted=True)
        (rows,) = await database.read(shore.namespace.id, states_then)
        found = dict(map(state_of, rows))
        assert len(found) == len(ids)
        expected = states[revision]
        for (_, entity_id), message in found.items():
            kind, entity = expected.get(shore.name(entity_id), (0, None))
            if message is not None:
                assert entity_pb2.Entity.FromString(message) == entity
            else:
                assert kind in (0, DELETED), "only a deleted entity may be forgotten, when its name was taken again"
        live = {name: entity for name, (kind, entity) in expected.items() if kind != DELETED}
        assert {entity.name: entity for entity in await snapshot(shore, revision)} == live
