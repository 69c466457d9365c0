"""Whatever a file holds, however it is cut, whatever breaks on the way: the account is that of a plain dictionary."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from dataclasses import dataclass, field
from typing import Any

import grpc
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strandline.entity.v1 import import_service_pb2 as pb

from tests.integration.entity.conftest import Replica, Shore, error_info
from tests.integration.entity.test_imports import SCHEMA, UNIQUE_NAME, contents, counts, finish, look, send

_numbers = itertools.count(1)
IDS = [f"b{n}" for n in range(6)]
TAKEN = "taken"
"""Unique name of an entity that no file is about."""
MODES = [pb.Import.INSERT, pb.Import.UPSERT, pb.Import.REPLACE_SET]

data = st.fixed_dictionaries(
    {},
    optional={"n": st.one_of(st.integers(0, 2), st.just("bad")), "name": st.just(TAKEN)},
)
rows = st.builds(
    lambda entity_id, content: {"type": "buoy", "id": entity_id, "data": content}, st.sampled_from(IDS), data
)
lines = st.one_of(
    rows.map(json.dumps),
    rows.map(json.dumps),
    rows.map(json.dumps),
    st.sampled_from(["", "no json", '{"error": "unreadable"}', '{"type": "buoy", "id": "b1"}']),
)
files = st.lists(st.lists(lines, min_size=1, max_size=12), min_size=1, max_size=6)
"""Chunks of lines."""


@dataclass
class Model:
    """What an import should do, in plain Python."""

    mode: int
    state: dict[str, Any]
    named: set[str] = field(default_factory=set)
    unnamed: int = 0
    account: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    changed: int = 0

    def take(self, line: str) -> None:
        if not line:
            return
        self.account[outcome := self._outcome(line)] += 1
        self.changed += outcome < 2

    def _outcome(self, line: str) -> int:
        """0 inserted, 1 updated, 2 unchanged, 3 rejected."""
        try:
            row = json.loads(line)
            entity_id = row["id"]
        except (ValueError, KeyError):
            self.unnamed += 1
            return 3
        self.named.add(entity_id)
        content = row.get("data")
        if content is None or content.get("n") == "bad" or "name" in content:
            return 3
        before = self.state.get(entity_id)
        if self.mode == pb.Import.INSERT and before is not None:
            return 3
        if before == content:
            return 2
        self.state[entity_id] = content
        return 0 if before is None else 1


async def send_until_taken(sides: list[Shore], rng: random.Random, chunk: list[str], offset: int, mode: int) -> Any:
    """Send a chunk through either replica, sometimes twice at once, sometimes giving up on it, until it is taken."""
    while True:
        timeout = rng.choice([None, None, 0.001, 0.004, 0.01, 0.03])
        raw = "".join(f"{line}\n" for line in chunk).encode()
        calls = [send(rng.choice(sides), raw, offset, mode=mode) for _ in range(rng.choice([1, 1, 2]))]
        if rng.random() < 0.15:
            await sides[0].replica.deployment.rows(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE usename = 'entity_app' AND state <> 'idle'"""
            )
        answers = await asyncio.gather(
            *(asyncio.wait_for(asyncio.shield(call), timeout) for call in calls), return_exceptions=True
        )
        for call in calls:
            call.cancel()
        for answer in answers:
            if isinstance(answer, pb.ImportEntitiesResponse):
                return answer
            if isinstance(answer, grpc.aio.AioRpcError):
                passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
                assert answer.code() in passing or error_info(answer).reason == "IMPORT_OFFSET", answer


@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    chunks=files,
    mode=st.sampled_from(MODES),
    before=st.dictionaries(st.sampled_from(IDS[3:]), st.fixed_dictionaries({"n": st.integers(0, 2)})),
    seed=st.integers(0, 2**32),
)
async def test_read_is_inserted_updated_unchanged_and_rejected_and_the_state_is_that_of_a_dictionary(
    replica: Replica,
    other_replica: Replica,
    chunks: list[list[str]],
    mode: int,
    before: dict[str, Any],
    seed: int,
) -> None:
    # Not one of hypothesis: how often it is asked depends on what breaks when.
    rng = random.Random(seed)
    shore = replica.shore()
    await shore.declare(schema=SCHEMA, indexes=UNIQUE_NAME)
    await shore.create("holder", {"name": TAKEN})
    for entity_id, content in before.items():
        await shore.create(entity_id, content)
    head = await shore.head()
    model = Model(mode, {"holder": {"name": TAKEN}, **before})
    expected = []
    for chunk in chunks:
        earlier = list(model.account)
        for line in chunk:
            model.take(line)
        expected.append(tuple(now - then for now, then in zip(model.account, earlier, strict=True)))
    offsets = list(itertools.accumulate(map(len, chunks), initial=0))

    sides = [shore, shore.through(other_replica)]
    sending = [
        asyncio.create_task(send_until_taken(sides, rng, chunk, offset, mode))
        for chunk, offset in zip(chunks, offsets, strict=False)
    ]
    async with asyncio.timeout(60):
        answers = await asyncio.gather(*sending)
    assert [counts(answer.chunk) for answer in answers] == expected
    state = await look(shore)
    assert counts(state.account) == tuple(model.account)
    assert state.next_offset == offsets[-1]
    # The feed: dense, and one unit for each row that changed something.
    units = await shore.units(head)
    assert [unit.revision for unit in units] == list(range(head + 1, head + 1 + model.changed))
    assert await contents(shore) == model.state

    # Whoever asks again hears the same, and nothing changes.
    place = rng.randrange(len(chunks))
    raw = "".join(f"{line}\n" for line in chunks[place]).encode()
    again = await send(shore, raw, offsets[place], mode=mode)
    assert (again.chunk, again.rows) == (answers[place].chunk, answers[place].rows)
    assert await shore.head() == head + model.changed

    if mode == pb.Import.REPLACE_SET and not model.unnamed:
        missing = model.state.keys() - model.named if model.named else set()
        done = await finish(shore, offsets[-1], mode=mode)
        assert (done.account.deleted, done.missing) == (len(missing), len(missing))
        assert (await contents(shore)).keys() == model.state.keys() - missing
