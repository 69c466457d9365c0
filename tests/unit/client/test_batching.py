"""Concurrent writes go together, each with its own outcome, and those to one name in their order, whatever fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import orjson
import pytest
from google.rpc import code_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from strandline.entity.v1 import entity_pb2, entity_service_pb2
from strandline_client import ApiError, BatchingWriter
from strandline_client.batching import MAX_BYTES, MAX_CALLS, MAX_WRITES

OK = status_pb2.Status()
LOST = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="nothing is known of it")
TAKEN = status_pb2.Status(code=code_pb2.ALREADY_EXISTS, message="taken")


class Server:
    """Answers calls as the platform does: remembers what a request id made, row by row, and refuses what is malformed.

    *chance* decides how long calls take and which rows fail for a moment, some of them after they were applied.
    """

    def __init__(self, chance: random.Random | None = None) -> None:
        self.applied: list[tuple[str, int]] = []
        self.calls: list[int] = []
        self.called = asyncio.Event()
        self.running = self.most_running = 0
        self.refusal: ApiError | None = None
        self._chance = chance
        self._remembered: dict[tuple[str, int], int] = {}

    async def send(
        self, writes: Sequence[entity_pb2.Mutation], *, request_id: str
    ) -> entity_service_pb2.BatchWriteResponse:
        self.calls.append(len(writes))
        self.called.set()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        for _ in range(self._chance.randrange(1, 6) if self._chance else 1):
            await asyncio.sleep(0)
        self.running -= 1
        if self.refusal is not None:
            raise self.refusal
        if any(write.update.name == "malformed" for write in writes):
            raise ApiError("INVALID_ARGUMENT", "INVALID_FIELD", "malformed")
        results = [self._row(write.update, (request_id, place)) for place, write in enumerate(writes)]
        return entity_service_pb2.BatchWriteResponse(results=results, revision=len(self.applied), epoch="00c0ffee")

    def _row(
        self, update: entity_pb2.UpdateMutation, key: tuple[str, int]
    ) -> entity_service_pb2.BatchWriteResponse.Result:
        Result = entity_service_pb2.BatchWriteResponse.Result
        fate = self._chance.random() if self._chance else 1.0
        if update.name == "taken":
            return Result(status=TAKEN, name=update.name)
        if key not in self._remembered:
            if fate < 0.1:
                return Result(status=LOST, name=update.name)
            self.applied.append((update.name, orjson.loads(update.data_json)["n"]))
            self._remembered[key] = len(self.applied)
            if fate < 0.2:
                return Result(status=LOST, name=update.name)
        return Result(status=OK, name=update.name, revision=self._remembered[key])


async def test_writes_that_come_together_go_together() -> None:
    server = Server()
    async with BatchingWriter(server.send, 5) as writer:
        outcomes = await asyncio.gather(*(writer.put(f"e{n}", {"n": n}) for n in range(1200)))
    assert server.calls == [500, 500, 200]
    assert [outcome.name for outcome in outcomes] == [f"e{n}" for n in range(1200)]
    assert sorted(outcome.revision for outcome in outcomes) == list(range(1, 1201))


async def test_a_lone_write_goes_at_once_and_those_that_come_meanwhile_share_the_next_call() -> None:
    server = Server()
    writer = BatchingWriter(server.send, 5)
    first = asyncio.create_task(writer.put("a", {"n": 1}))
    await server.called.wait()
    others = [asyncio.create_task(writer.put(f"b{n}", {"n": n})) for n in range(50)]
    await asyncio.gather(first, *others)
    assert server.calls == [1, 50]


async def test_no_call_carries_more_bytes_than_the_platform_takes() -> None:
    server = Server()
    padding = "x" * 200_000
    async with BatchingWriter(server.send, 5) as writer:
        await asyncio.gather(*(writer.put(f"e{n}", {"n": n, "padding": padding}) for n in range(40)))
    assert max(server.calls) * 200_000 <= MAX_BYTES
    assert sum(server.calls) == 40


async def test_a_refused_write_is_refused_alone() -> None:
    server = Server()
    async with BatchingWriter(server.send, 5) as writer:
        names = ["a", "taken", "b", "malformed", "c", "d", "e"]
        outcomes = await asyncio.gather(*(writer.put(name, {"n": 1}) for name in names), return_exceptions=True)
    refused = {name: str(o) for name, o in zip(names, outcomes, strict=True) if isinstance(o, ApiError)}
    assert refused == {"taken": "ALREADY_EXISTS: taken", "malformed": "INVALID_FIELD: malformed"}
    assert sorted(server.applied) == [(name, 1) for name in ("a", "b", "c", "d", "e")]


async def test_what_refuses_the_call_refuses_each_of_its_writes_once() -> None:
    server = Server()
    server.refusal = ApiError("PERMISSION_DENIED", "ROLE_INSUFFICIENT", "a viewer does not write")
    async with BatchingWriter(server.send, 5) as writer:
        outcomes = await asyncio.gather(*(writer.put(f"e{n}", {"n": n}) for n in range(9)), return_exceptions=True)
    assert {str(outcome) for outcome in outcomes} == {"ROLE_INSUFFICIENT: a viewer does not write"}
    assert server.calls == [9]


async def test_a_cancelled_caller_does_not_harm_the_others() -> None:
    server = Server()
    async with BatchingWriter(server.send, 5) as writer:
        first, second = (asyncio.create_task(writer.put(name, {"n": 1})) for name in ("a", "b"))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).name == "b"
    assert sorted(server.applied) == [("a", 1), ("b", 1)]


async def test_patience_ends() -> None:
    class Broken(random.Random):
        def random(self) -> float:
            return 0.0

    async with BatchingWriter(Server(Broken(1)).send, 0.2) as writer:
        with pytest.raises(ApiError) as raised:
            await writer.put("a", {"n": 1})
    assert raised.value.code == "UNAVAILABLE"


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_each_write_is_applied_once_in_the_order_of_its_name_and_its_outcome_is_told(
    names: list[int], seed: int
) -> None:
    async def run() -> None:
        chance = random.Random(seed)
        server = Server(chance)
        writer = BatchingWriter(server.send, None)
        writes = []
        for number, name in enumerate(names):
            writes.append(asyncio.create_task(writer.put(f"e{name}", {"n": number})))
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        outcomes = await asyncio.gather(*writes)
        assert len(server.applied) == len(names)
        for name in set(names):
            numbers = [number for applied, number in server.applied if applied == f"e{name}"]
            assert numbers == [number for number, other in enumerate(names) if other == name]
        # Each caller was told the revision that its own write made.
        assert [server.applied[outcome.revision - 1] for outcome in outcomes] == [
            (f"e{name}", number) for number, name in enumerate(names)
        ]
        assert max(server.calls) <= MAX_WRITES
        assert server.most_running <= MAX_CALLS

    asyncio.run(run())
