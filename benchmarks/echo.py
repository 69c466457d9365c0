"""The ceiling of every unary call: ``python -m benchmarks.echo unix:/path ANSWER_BYTES [as-served]``.

grpc.aio on uvloop as it comes, with the services' options, and nothing else: no interceptor, no adapter, no token, no
protobuf. With ``as-served`` its threads stand back as the services' do; what I/O gRPC does is up to GRPC_EXPERIMENTS,
which ``unary`` sets. Every method answers ANSWER_BYTES fixed bytes, whatever it is sent.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop

from services.runtime.server import let_the_loop_finish
from services.runtime.upstream import MESSAGE_OPTIONS


class _Every(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.unary_unary_rpc_method_handler(self._echo)

    async def _echo(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return self._answer


async def serve(address: str, answer_bytes: int, *, as_served: bool) -> None:
    """Answer until the process is ended."""
    server = grpc.aio.server(options=MESSAGE_OPTIONS)
    server.add_generic_rpc_handlers((_Every(bytes(answer_bytes)),))
    server.add_insecure_port(address)
    await server.start()
    if as_served:
        let_the_loop_finish()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), as_served="as-served" in sys.argv))
