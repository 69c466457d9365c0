"""Concurrent single writes, carried together: a call costs what it costs, whatever is in it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import orjson
from strandline.entity.v1 import entity_pb2, entity_service_pb2

from strandline_client.errors import ApiError
from strandline_client.retry import Backoff, is_final, new_request_id
from strandline_client.watching import error_of_status

# What one call may carry: the platform takes 500 writes and 4 MiB.
MAX_WRITES = 500
MAX_BYTES = 3 * 2**20
MAX_CALLS = 4
MAX_WAITING = 4000


class Send(Protocol):
    """``Client.batch_write`` of one namespace."""

    def __call__(
        self, writes: Sequence[entity_pb2.Mutation], *, request_id: str
    ) -> Awaitable[entity_service_pb2.BatchWriteResponse]: ...


@dataclass(frozen=True, slots=True)
class Written:
    """What became of a write. ``revision`` is the entity's, ``head_revision`` covers it: wait for either on a feed."""

    name: str
    revision: int
    outcome: entity_pb2.Mutation.Outcome.ValueType
    head_revision: int
    epoch: str


@dataclass(eq=False, slots=True)
class _Waiting:
    mutation: entity_pb2.Mutation
    name: str
    size: int
    done: asyncio.Future[Written]


class BatchingWriter:
    """Coalesces concurrent writes into ``batchWrite``. Each has its own outcome; those to one name keep their order.

    A write that finds nothing on its way is sent at once, those that come meanwhile go together with the next call, and
    further calls run beside it only when they are full. One name is in one call at a time, once: what follows it waits
    until its outcome is known, so that no retry can overtake. ``async with`` waits for all of them.
    """

    def __init__(self, send: Send, patience: float | None) -> None:
        self._send = send
        self._patience = patience
        self._waiting: deque[_Waiting] = deque()
        self._busy: set[str] = set()
        self._calls: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._is_scheduled = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.flush()

    async def put(self, name: str, data: Mapping[str, Any]) -> Written:
        """Let the entity *name* (full) have *data*, whether it exists or not."""
        update = entity_pb2.UpdateMutation(
            name=name, data_json=orjson.dumps(data), update_mask=["*"], allow_missing=True
        )
        return await self.write(entity_pb2.Mutation(update=update))

    async def create(self, name: str, data: Mapping[str, Any]) -> Written:
        """Make the entity *name*; ALREADY_EXISTS if there is one."""
        return await self.write(
            entity_pb2.Mutation(create=entity_pb2.CreateMutation(name=name, data_json=orjson.dumps(data)))
        )

    async def delete(self, name: str, *, allow_missing: bool = False) -> Written:
        """Delete the entity *name*."""
        return await self.write(
            entity_pb2.Mutation(delete=entity_pb2.DeleteMutation(name=name, allow_missing=allow_missing))
        )

    async def write(self, mutation: entity_pb2.Mutation) -> Written:
        """What became of *mutation*. Waits while thousands of others do. A cancelled caller's is made, too.

        Raises:
            ApiError: as the single write would have.
        """
        await self._room.acquire()
        name = str(getattr(mutation, mutation.WhichOneof("operation") or "create").name)
        done: asyncio.Future[Written] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(mutation, name, mutation.ByteSize(), done))
        self._schedule()
        return await done

    async def flush(self) -> None:
        """Wait until everything that was asked for so far, and meanwhile, has its outcome."""
        while self._waiting or self._calls:
            await asyncio.wait(self._calls) if self._calls else await asyncio.sleep(0)

    def _schedule(self) -> None:
        # Not at once: others of this turn of the loop may want to come along.
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._start_calls)

    def _start_calls(self) -> None:
        self._is_scheduled = False
        while self._waiting and (not self._calls or (len(self._calls) < MAX_CALLS and self._fills_a_call())):
            batch = self._take()
            if not batch:
                return
            self._busy.update(item.name for item in batch)
            call = asyncio.create_task(self._settle(batch))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    def _fills_a_call(self) -> bool:
        return len(self._waiting) >= MAX_WRITES or sum(item.size for item in self._waiting) >= MAX_BYTES

    def _take(self) -> list[_Waiting]:
        """The next batch: in order of arrival, leaving out names that are on their way or were left out before."""
        batch: list[_Waiting] = []
        rest: deque[_Waiting] = deque()
        held, size = set(self._busy), 0
        for item in self._waiting:
            fits = len(batch) < MAX_WRITES and (not batch or size + item.size <= MAX_BYTES)
            if fits and item.name not in held:
                batch.append(item)
                size += item.size
            else:
                rest.append(item)
            held.add(item.name)
        self._waiting = rest
        return batch

    async def _settle(self, batch: list[_Waiting]) -> None:
        try:
            await self._call(batch)
        except BaseException as failure:
            for item in batch:
                if not item.done.done():
                    item.done.set_exception(failure)
            if not isinstance(failure, Exception):
                raise
        finally:
            self._busy.difference_update(item.name for item in batch)
            for _ in batch:
                self._room.release()
            # After this task counts as done.
            asyncio.get_running_loop().call_soon(self._schedule)

    async def _call(self, batch: Sequence[_Waiting]) -> None:
        try:
            answer = await self._answer([item.mutation for item in batch])
        except ApiError as failure:
            if failure.code != "INVALID_ARGUMENT" or len(batch) == 1:
                raise
            # Malformed writes are refused with all that came along: find them, and let the others through.
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                try:
                    await self._call(half)
                except ApiError as refusal:
                    for item in half:
                        _refuse(item, refusal)
            return
        for item, result in zip(batch, answer.results, strict=True):
            if result.status.code:
                _refuse(item, error_of_status(result.status))
            elif not item.done.done():
                written = Written(result.name, result.revision, result.outcome, answer.revision, answer.epoch)
                item.done.set_result(written)

    async def _answer(self, writes: Sequence[entity_pb2.Mutation]) -> entity_service_pb2.BatchWriteResponse:
        """The answer in which every write has its last word: one whose outcome is unknown is asked for again.

        The whole call is repeated under its request id, so what was made answers as it did then.
        """
        request_id, backoff = new_request_id(), Backoff(self._patience)
        while True:
            answer = await self._send(writes, request_id=request_id)
            failures = [error_of_status(result.status) for result in answer.results if result.status.code]
            passing = next((failure for failure in failures if not is_final(failure)), None)
            if passing is None:
                return answer
            try:
                await backoff.wait(passing)
            except ApiError:
                return answer


def _refuse(item: _Waiting, failure: ApiError) -> None:
    if not item.done.done():
        item.done.set_exception(failure)
