"""Responses of a stream that are pushed while its handler waits: their order, and what becomes of them at its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from strandline.stream.v1 import feed_pb2, stream_service_pb2, stream_service_pb2_grpc

from services.runtime import errors, rpc
from services.runtime.call import Call

SERVICE = stream_service_pb2.DESCRIPTOR.services_by_name["StreamService"].full_name
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535))


class Stream:
    """One stream, whose handler yields what it is given and else waits."""

    call: Call
    break_off: Callable[[errors.Error], object]

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._given: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def watch(self, request: Message, call: Call) -> AsyncIterator[bytes]:
        self.call, self.break_off = call, rpc.breaking_off()
        try:
            while (response := await self._given.get()) is not None:
                yield response
                self._given.task_done()
        finally:
            self.closed.set()

    def give(self, response: bytes | None) -> None:
        """Have *response* yielded, or the stream end."""
        self._given.put_nowait(response)

    async def waiting(self) -> None:
        """Return when all that was given is written, so that the handler waits."""
        await self._given.join()

    def __getattr__(self, name: str) -> object:
        return None  # the other RPCs of the service


async def admit(method: rpc.Method, request: Message, call: Call) -> None:
    return None


@asynccontextmanager
async def streaming(*, first: bytes) -> AsyncIterator[tuple[Stream, Any]]:
    """A stream that was given *first* to yield, and its client, who takes little unasked."""
    server, stream = grpc.aio.server(), Stream()
    server.add_generic_rpc_handlers((rpc.generic_handler(SERVICE, stream, admit),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(30), grpc.aio.insecure_channel(f"127.0.0.1:{port}", SMALL_WINDOW) as channel:
        stub: stream_service_pb2_grpc.StreamServiceAsyncStub = stream_service_pb2_grpc.StreamServiceStub(channel)
        call = stub.Watch(stream_service_pb2.WatchRequest())
        stream.give(first)
        await call.initial_metadata()
        yield stream, call
        call.cancel()
    await server.stop(None)


def response(revision: int, size: int = 50_000) -> bytes:
    return feed_pb2.WatchResponse(revision=revision, epoch="x" * size).SerializeToString()


async def push_until_refused(stream: Stream) -> int:
    """How many responses were pushed, with the revisions 1, 2 and so on, until the client was sent no more unasked."""
    for revision in range(1, 1000):
        for _ in range(100):  # once more, if the one before was only slow
            if stream.call.push(response(revision)):
                break
            await asyncio.sleep(0.005)
        else:
            return revision - 1
    raise AssertionError("a client that reads nothing takes whatever comes")


@asynccontextmanager
async def waiting() -> AsyncIterator[tuple[Stream, Any]]:
    """A stream whose handler waits, after a first response that its client has read."""
    async with streaming(first=response(0)) as (stream, call):
        assert (await call.read()).revision == 0
        await stream.waiting()
        yield stream, call


@pytest.mark.parametrize("seed", range(5))
async def test_what_is_pushed_and_what_is_yielded_come_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    async with waiting() as (stream, call):

        async def write() -> int:
            pushed = 0
            for revision in range(1, 301):
                one = response(revision, rng.choice((1, 1_000, 60_000)))
                if rng.random() < 0.7 and stream.call.push(one):
                    pushed += 1
                else:
                    stream.give(one)
                    await stream.waiting()
                if rng.random() < 0.2:
                    await asyncio.sleep(0)
            stream.give(None)
            return pushed

        writing = asyncio.create_task(write())
        assert [(await call.read()).revision for _ in range(300)] == list(range(1, 301))
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        assert 0 < await writing < 300


async def test_nothing_is_pushed_while_a_response_is_on_its_way() -> None:
    async with streaming(first=response(0, 300_000)) as (stream, _):
        assert not stream.call.push(response(1))


async def test_a_client_that_is_broken_off_in_the_first_response_hears_why() -> None:
    async with streaming(first=response(0, 300_000)) as (stream, call):
        await asyncio.sleep(0.5)  # so that it is blocked in the message; a stream that has just begun is not broken off
        stream.break_off(errors.NotFound("NOT_FOUND", "no more"))
        await stream.closed.wait()
        assert (await call.read()).revision == 0
        assert await status(call) is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_reads_on_after_it_was_broken_off_gets_what_was_pushed_and_then_why() -> None:
    async with waiting() as (stream, call):
        pushed = await push_until_refused(stream)
        stream.give(response(pushed + 1))
        await asyncio.sleep(0.1)  # so that it waits for the one before; the test holds without it
        stream.break_off(errors.NotFound("NOT_FOUND", "no more"))
        await stream.closed.wait()
        assert [(await call.read()).revision for _ in range(pushed)] == list(range(1, pushed + 1))
        assert await status(call) is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_goes_while_something_is_pushed_is_no_error_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with waiting() as (stream, call):
        await push_until_refused(stream)
        call.cancel()
        await stream.closed.wait()
    del stream, call  # which would keep the task of the push
    gc.collect()  # of a task whose failure nobody heard asyncio complains then
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_push_that_fails_is_the_last_and_ends_the_stream() -> None:
    async with waiting() as (stream, call):
        assert stream.call.push(None)  # type: ignore[arg-type]  # what fails when it is written
        for _ in range(100):
            assert not stream.call.push(response(1))
            await asyncio.sleep(0.001)
        stream.give(response(1))
        assert await status(call) is grpc.StatusCode.INTERNAL
        await stream.closed.wait()
        assert not stream.call.push(response(1))


async def status(call: Any) -> grpc.StatusCode:
    """What the stream ended with; it has nothing more."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call.read()
    return failure.value.code()
