"""What a client on the wire sees of requests that are none, and what becomes of a stream whose client goes."""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import string
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast
from urllib.parse import quote

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from strandline.stream.v1 import feed_pb2, log_service_pb2, stream_service_pb2

from services.runtime import errors, rpc
from services.runtime.call import Call
from tests.unread import unread

FIND = "/strandline.stream.v1.LogService/FindRevision"
HEADS = "/strandline.stream.v1.LogService/GetHeads"
READ = "/strandline.stream.v1.LogService/ReadUnits"
SERVICE = stream_service_pb2.DESCRIPTOR.services_by_name["StreamService"].full_name


class Handlers:
    """Answers of the right type and no meaning."""

    async def get_heads(self, request: Message, call: Call) -> Message:
        return log_service_pb2.GetHeadsResponse()

    async def read_units(self, request: Message, call: Call) -> Message:
        raise RuntimeError("secret of the house")

    async def find_revision(self, request: Message, call: Call) -> Message:
        name = cast(log_service_pb2.FindRevisionRequest, request).namespace_id
        violations = [errors.Violation("entity.data", f"{name} is unknown", f"/{name}")] * 100
        raise errors.InvalidArgument(
            "SCHEMA_VIOLATION",
            f"{name} is unknown",
            violations=violations,
            type=name,
            field=name,
            id=name,
            count=name,
            mutation=name,
        )

    async def read_snapshot(self, request: Message, call: Call) -> Message:
        return log_service_pb2.ReadSnapshotResponse()

    async def put_consumer_lease(self, request: Message, call: Call) -> Message:
        return log_service_pb2.PutConsumerLeaseResponse()

    async def delete_consumer_lease(self, request: Message, call: Call) -> Message:
        return log_service_pb2.DeleteConsumerLeaseResponse()


async def admit(method: rpc.Method, request: Message, call: Call) -> None:
    """Everybody."""


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((rpc.generic_handler("strandline.stream.v1.LogService", Handlers(), admit),))
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as made:
        yield made
    await server.stop(None)


def read(channel: grpc.aio.Channel) -> Callable[[bytes], Awaitable[bytes]]:
    """The RPC, without a message class in between."""
    return cast(Callable[[bytes], Awaitable[bytes]], channel.unary_unary(READ))


@pytest.mark.parametrize(
    "raw", [b"\xff\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"], ids=["garbage", "UTF-8", "cut"]
)
async def test_bytes_that_are_no_request_are_the_callers_mistake(channel: grpc.aio.Channel, raw: bytes) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(channel)(raw)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "class" not in (refused.value.details() or "")
    details = dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    assert isinstance(details, bytes)
    assert status_pb2.Status.FromString(details).details[0].Unpack(info)
    assert info.reason == "INVALID_FIELD"


async def test_what_grpc_leaves_behind_each_call_is_collected_before_it_is_much(channel: grpc.aio.Channel) -> None:
    def left() -> int:
        return sum(type(each).__name__ == "_HandlerCallDetails" for each in gc.get_objects())

    heads = cast(Callable[[bytes], Awaitable[bytes]], channel.unary_unary(HEADS))
    gc.collect()
    gc.disable()  # nothing else may collect it
    try:
        most = 0
        for _ in range(30):
            await asyncio.gather(*(heads(b"") for _ in range(100)))
            most = max(most, left())
    finally:
        gc.enable()
    assert 0 < most <= rpc.COLLECT_EVERY + 100


async def test_what_calls_that_fail_leave_behind_is_collected_too(channel: grpc.aio.Channel) -> None:
    """They live over an await, so that they are promoted; the automatic collector never has its turn."""

    async def fail() -> None:
        with pytest.raises(grpc.aio.AioRpcError):
            await read(channel)(b"\xff")

    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(10**9, 1, 1)
    try:
        older = [each["collections"] for each in gc.get_stats()[1:]]
        for _ in range(rpc.COLLECT_EVERY * 10 // 100):
            await asyncio.gather(*(fail() for _ in range(100)))
        assert all(now["collections"] > then for now, then in zip(gc.get_stats()[1:], older, strict=True))
    finally:
        gc.set_threshold(*before)


async def test_an_exception_shows_nothing_of_itself(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(channel)(b"")
    assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")


@pytest.mark.parametrize("name", ["z" * 20_000, "%" * 20_000, "ß" * 20_000, "🌊" * 20_000, "short"])
async def test_an_error_about_names_of_any_length_arrives_within_what_every_client_takes(
    channel: grpc.aio.Channel, name: str
) -> None:
    request = log_service_pb2.FindRevisionRequest(namespace_id=name).SerializeToString()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await cast(Callable[[bytes], Awaitable[bytes]], channel.unary_unary(FIND))(request)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    message = refused.value.details() or ""
    details = dict(refused.value.trailing_metadata() or ())["grpc-status-details-bin"]
    assert isinstance(details, bytes)
    assert len(base64.b64encode(details)) + len(quote(message, safe=string.printable.replace("%", ""))) < 8000
    info, request_ = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = status_pb2.Status.FromString(details)
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request_)
    assert (info.reason, status.message) == ("SCHEMA_VIOLATION", message)
    assert message.rstrip("…").startswith(name[:100])
    first = request_.field_violations[0]
    assert first.field.removeprefix("/")[:50] == name[:50]
    assert len(request_.field_violations) > (40 if name == "short" else 0)


class Streams:
    """A stream without end, which is not collected: this keeps it."""

    def __init__(self) -> None:
        self.streams: list[AsyncGenerator[Message, None]] = []
        self.closed = asyncio.Event()
        self.break_off: list[Callable[[errors.Error], object]] = []

    def watch(self, request: Message, call: Call) -> AsyncGenerator[Message, None]:
        async def messages() -> AsyncGenerator[Message, None]:
            self.break_off.append(rpc.breaking_off())
            try:
                while True:
                    yield feed_pb2.WatchResponse(epoch="x" * 100_000)  # soon the client is sent no more unasked
            finally:
                self.closed.set()

        self.streams.append(messages())
        return self.streams[-1]

    def __getattr__(self, name: str) -> object:
        return None  # the other RPCs of the service


async def test_a_stream_whose_client_goes_is_closed_at_once_and_not_when_somebody_collects_it(tmp_path: Path) -> None:
    streams = Streams()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((rpc.generic_handler(SERVICE, streams, admit),))
    address = f"unix:{tmp_path}/s"
    server.add_insecure_port(address)
    await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        watch = cast(grpc.aio.UnaryStreamMultiCallable[bytes, bytes], channel.unary_stream(f"/{SERVICE}/Watch"))
        watching = watch(b"")
        await watching.read()
        watching.cancel()
        async with asyncio.timeout(30):
            await streams.closed.wait()
    await server.stop(None)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, Streams]]:
    """Streams and where they are served, for half a minute at most; those that are open then are waited for."""
    server = grpc.aio.server()
    streams = Streams()
    server.add_generic_rpc_handlers((rpc.generic_handler(SERVICE, streams, admit),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asyncio.timeout(30):
        yield f"127.0.0.1:{port}", streams
    await server.stop(30)


async def test_clients_that_go_while_they_are_written_to_are_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (address, streams):
        async with unread(address, "", [(f"/{SERVICE}/Watch", b"")] * 20):
            await asyncio.sleep(0.1)  # so that nearly all are blocked; the test holds without it
        await streams.closed.wait()
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_stream_that_is_broken_off_closes_at_once_and_the_client_that_goes_unread_is_no_error_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (address, streams), unread(address, "", [(f"/{SERVICE}/Watch", b"")]):
        await asyncio.sleep(0.1)  # so that it is blocked; the test holds without it
        streams.break_off[0](errors.NotFound("NOT_FOUND", "no more"))
        await streams.closed.wait()
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_client_that_is_broken_off_in_the_first_message_hears_why() -> None:
    window = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535))  # less than one message
    async with serving() as (address, streams), grpc.aio.insecure_channel(address, window) as channel:
        watch = cast(grpc.aio.UnaryStreamMultiCallable[bytes, bytes], channel.unary_stream(f"/{SERVICE}/Watch"))
        watching = watch(b"")
        await watching.initial_metadata()
        await asyncio.sleep(0.5)  # so that it is blocked in the message; a stream that has just begun is not broken off
        streams.break_off[0](errors.NotFound("NOT_FOUND", "no more"))
        await streams.closed.wait()
        assert isinstance(await watching.read(), bytes)
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await watching.read()
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND
