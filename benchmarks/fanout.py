"""The peer of delivery: ``python -m benchmarks.fanout unix:/grpc /feed CONNINFO``, the least that could do the job.

One process takes a gRPC call, inserts its body as one durable row, and after the commit writes it to every subscriber's
socket. There is no log to resume from, no order between processes, no bus, no second service, no access check and no
JSON made: what remains is a commit and a hundred writes. The call is answered with PostgreSQL's clock as it was before
the commit, which is when the services take their commit time too, and the number of the row.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from typing import Any

import grpc
import psycopg
import uvloop

READY = "feed-is-open"
ANSWER = struct.Struct(">qq")
"""Time in ns, number of the row."""


class _Fanout(grpc.GenericRpcHandler):
    def __init__(self, connection: psycopg.AsyncConnection[tuple[int, int]]) -> None:
        self._connection = connection
        self._one_at_a_time = asyncio.Lock()
        self._subscribers: set[asyncio.StreamWriter] = set()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.unary_unary_rpc_method_handler(self._write)

    async def subscribe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a subscriber in, whatever it asks for, until it leaves."""
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\n\r\n{READY}\n".encode())
        self._subscribers.add(writer)
        await reader.read()
        self._subscribers.discard(writer)
        writer.close()

    async def _write(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        async with self._one_at_a_time:
            cursor = await self._connection.execute(
                "INSERT INTO ceiling.lines (line) VALUES (%s)"
                " RETURNING (extract(epoch FROM clock_timestamp()) * 1e9)::bigint, id",
                (request,),
            )
            row = await cursor.fetchone()
            for subscriber in self._subscribers:
                subscriber.write(request)
        assert row is not None
        return ANSWER.pack(*row)


async def serve(address: str, feed: str, conninfo: str) -> None:
    """Run until the process is ended."""
    connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    await connection.execute("CREATE SCHEMA IF NOT EXISTS ceiling")
    await connection.execute("CREATE TABLE IF NOT EXISTS ceiling.lines (id bigserial PRIMARY KEY, line bytea)")
    fanout = _Fanout(connection)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((fanout,))
    server.add_insecure_port(address)
    await server.start()
    await asyncio.start_unix_server(fanout.subscribe, feed)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(*sys.argv[1:4]))
