"""The ceiling of deliveries: ``python -m benchmarks.blast unix:/grpc /feed MESSAGES BYTES REVISIONS``.

The least that could do the job: messages of the size and number that the services were seen to send, made before
anybody asks, written to every watcher as fast as it takes them. No log, no order kept between a writer and a reader, no
access check. Over gRPC by the library that the services use, over the socket ``feed`` as chunks of HTTP/1.1. It begins
when the file ``feed.go`` is there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import uvloop
from strandline.stream.v1 import feed_pb2


def messages(count: int, size: int, revisions: int) -> list[feed_pb2.WatchResponse]:
    """A first one, and *count* of about *size* bytes that cover *revisions*."""
    made = [feed_pb2.WatchResponse(epoch="00000000", progress=feed_pb2.Progress(head_revision=1, horizon_revision=1))]
    for number in range(count):
        after, revision = revisions * number // count, revisions * (number + 1) // count
        end = feed_pb2.End(detail="." * max(0, size - 40))
        made.append(feed_pb2.WatchResponse(after_revision=after, revision=revision, epoch="00000000", end=end))
    return made


class _Blast(grpc.GenericRpcHandler):
    def __init__(self, encoded: Sequence[bytes], go: Path) -> None:
        self._encoded = encoded
        self._go = go

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.unary_stream_rpc_method_handler(self._send)

    async def _send(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        yield self._encoded[0]
        await _wait_for(self._go)
        for message in self._encoded[1:]:
            yield message
        await asyncio.Event().wait()


async def _wait_for(path: Path) -> None:
    while not path.exists():  # noqa: ASYNC110  # another process makes it
        await asyncio.sleep(0.01)


async def serve(address: str, feed: str, count: int, size: int, revisions: int) -> None:
    """Run until the process is ended."""
    go = Path(f"{feed}.go")
    made = messages(count, size, revisions)
    lines = [
        b'{"afterRevision":"%d","revision":"%d","epoch":"00000000","end":{"detail":"%b"}}\n'
        % (each.after_revision, each.revision, each.end.detail.encode().ljust(40, b"."))
        for each in made
    ]
    chunks = [b"%x\r\n%b\r\n" % (len(line), line) for line in lines]

    async def subscribe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks[0])
        await _wait_for(go)
        with suppress(ConnectionError):  # it has all that it counts
            for chunk in chunks[1:]:
                writer.write(chunk)
                await writer.drain()
            await reader.read()
        writer.close()

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Blast([each.SerializeToString() for each in made], go),))
    server.add_insecure_port(address)
    await server.start()
    await asyncio.start_unix_server(subscribe, feed, backlog=2000)
    await asyncio.Event().wait()


if __name__ == "__main__":
    _address, _feed, *_numbers = sys.argv[1:]
    _count, _size, _revisions = map(int, _numbers)
    uvloop.run(serve(_address, _feed, _count, _size, _revisions))
