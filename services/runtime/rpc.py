"""gRPC on one side, handlers of ``(request, call)`` on the other. Only this file and ``server.py`` know its server.

A handler is an ``async`` method named after the RPC in snake_case. It returns the response, as a message or already
serialized; of a streaming RPC it is an async generator of either. Where the client streams, too, it takes an async
iterator of requests instead of one, and sees to each by itself. It raises ``errors.Error``; what that means on the
wire stands in ``STATUS`` and nowhere else.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from operator import attrgetter
from typing import Any, NoReturn, cast

import grpc
import psycopg
from google.protobuf import any_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from strandline.rpc.v1 import access_pb2

from services.runtime import errors, telemetry
from services.runtime.call import Call

logger = logging.getLogger(__name__)

DOMAIN = "strandline"
# Set by the edge on what it made of a REST request: there the position is a header. A gRPC caller has it in the answer,
# and sending headers of their own takes a sixth of a call.
REST = "x-strandline-rest"
STATUS: dict[type[errors.Error], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.OutOfRange: grpc.StatusCode.OUT_OF_RANGE,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}

# A status travels in trailers, of which a client takes 8 KB for certain, and the details are base64 there. Names are of
# any length, so everything is clipped: an error that is too large to arrive would look like a service that is away.
MAX_DETAILS = 4500
"""Bytes of a status; violations beyond are left out."""
MAX_MESSAGE = 1500
"""Bytes of a message as the header has it: all that is no printable ASCII takes three for each byte of UTF-8."""
MAX_METADATA = 400
"""Bytes of one value; there are up to five."""
MAX_VIOLATION = 300
"""Bytes of a violation's field, and of its description."""

COLLECT_EVERY = 1000
"""Unary calls between two collections of young garbage.

grpcio leaves a cycle of seven objects behind each call, and a call that fails leaves its frames. At the threshold that
``server`` sets, for the sake of batches, collecting them stops the loop for 60 to 110 ms every 14,000 calls; after a
thousand calls it takes 3 ms.
"""
_calls = itertools.count(1)

Admission = Callable[["Method", Message, Call], Awaitable[None]]


class Method:
    """One RPC: its descriptor, its ``access`` option and its request class."""

    def __init__(self, descriptor: MethodDescriptor) -> None:
        self.descriptor = descriptor
        self.name = descriptor.name
        self.path = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        access = descriptor.GetOptions().Extensions[access_pb2.access]
        if not access.callers or not access.identity:
            raise RuntimeError(f"{descriptor.full_name} does not declare who may call it")
        self.needs_token = access.identity == access_pb2.Access.TOKEN
        self.role: int = access.role
        """That the caller must have in the namespace of ``resource``; 0: none."""
        self.resource = access.resource
        """Path of the field that names what is called on."""
        self.resource_name: Callable[[Message], str] = attrgetter(access.resource) if access.resource else _no_resource
        self.takes_cookie = access.watch_cookie
        self.streams = descriptor.server_streaming
        self.takes_stream = descriptor.client_streaming
        self.request_class = message_factory.GetMessageClass(descriptor.input_type)
        self.handler_name = re.sub(r"(?<!^)(?=[A-Z])", "_", descriptor.name).lower()

    def parse(self, raw: bytes) -> Message:
        """The request in *raw*; ``INVALID_FIELD`` when it is none."""
        try:
            return self.request_class.FromString(raw)
        except DecodeError:
            raise errors.InvalidArgument(
                "INVALID_FIELD", f"the request is no valid {self.descriptor.input_type.name}, or nested too deep"
            ) from None


def _no_resource(request: Message) -> str:
    raise AssertionError(f"an RPC that declares a role must say on what, and that of {type(request).__name__} does not")


def generic_handler(service: str, handlers: object, admit: Admission) -> grpc.GenericRpcHandler:
    """Bind the methods of *handlers* to the RPCs of *service* (its full proto name), each behind *admit*."""
    descriptor = descriptor_pool.Default().FindServiceByName(service)
    table: dict[str, grpc.RpcMethodHandler[bytes, Message | bytes]] = {}
    for method_descriptor in descriptor.methods:
        method = Method(method_descriptor)
        handler = getattr(handlers, method.handler_name)
        make, adapt = _shape(method)
        # Requests come as bytes: what grpcio says of one that it cannot parse shows the inside of this process.
        table[method.name] = make(adapt(method, handler, admit), None, serialize)
    return grpc.method_handlers_generic_handler(service, table)


def _shape(method: Method) -> tuple[Callable[..., grpc.RpcMethodHandler[bytes, Any]], Callable[..., Any]]:
    """What grpcio calls handlers of this shape, and what makes one of ours into it."""
    if method.takes_stream:
        return grpc.stream_stream_rpc_method_handler, adapt_both_ways
    if method.streams:
        return grpc.unary_stream_rpc_method_handler, adapt_stream
    return grpc.unary_unary_rpc_method_handler, adapt_unary


def serialize(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def adapt_unary(method: Method, handler: Any, admit: Admission) -> Any:
    observe = telemetry.observer(method.path)

    async def unary(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> Message | bytes:
        started = time.perf_counter()
        code = "OK"
        try:
            request = method.parse(raw)
            call = call_of(context)
            await admit(method, request, call)
            response: Message | bytes = await handler(request, call)
            if call.response_headers and REST in call.metadata:
                await context.send_initial_metadata(tuple(call.response_headers.items()))
            return response
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except Exception as failure:
            status = status_of(failure, method.path)
            code = grpc_code(status).name
            return await abort(context, failure, status)
        finally:
            observe(code, time.perf_counter() - started)
            if next(_calls) % COLLECT_EVERY == 0:
                _collect_garbage()

    return unary


def _collect_garbage() -> None:
    """The youngest generation, and an older one when it is due: asking for the youngest alone would put that off."""
    counts, thresholds = gc.get_count(), gc.get_threshold()
    gc.collect(next((older for older in (2, 1) if counts[older] > thresholds[older]), 0))


def breaking_off() -> Callable[[errors.Error], object]:
    """What ends, with an error, the streaming RPC whose handler asks for it; to be called while a write waits.

    The handler is closed at once. The client is told when it has read what was written before.
    """
    task = asyncio.current_task()
    assert task is not None
    return task.cancel


@asynccontextmanager
async def _answering(method: Method, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Tell the client how its stream ended, unless it ended well."""
    try:
        try:
            yield
        except asyncio.CancelledError as cancelled:
            # By gRPC, because the client has gone; or by one of us, who says why.
            failure = cancelled.args[0] if cancelled.args else None
            if not isinstance(failure, errors.Error):
                raise
            await abort(context, failure, status_of(failure, method.path))
        except grpc.aio.InternalError:
            raise
        except Exception as failure:
            await abort(context, failure, status_of(failure, method.path))
    except grpc.aio.InternalError as failure:
        # It could not be written to: nearly always because the client has gone, so nobody can be told.
        logger.info("a stream of %s ended while it was written to: %s", method.path, failure)
        raise asyncio.CancelledError from None


def adapt_stream(method: Method, handler: Any, admit: Admission) -> Any:
    # No generator: one that is suspended in its `yield` when the client goes is closed when somebody collects it.
    async def stream(raw: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with _answering(method, context):
            request = method.parse(raw)
            call = call_of(context)
            await admit(method, request, call)
            has_begun = False
            async with aclosing(handler(request, call)) as responses:
                async for response in responses:
                    if not has_begun:
                        # By themselves: with a first message that is broken off they would count as not sent, and be
                        # sent again with the status, which then never arrives.
                        await context.send_initial_metadata(())
                        has_begun = True
                    await context.write(response)

    return stream


def adapt_both_ways(method: Method, handler: Any, admit: Admission) -> Any:
    # No generator, as above.
    async def converse(raw_requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        async with _answering(method, context):
            call = call_of(context)
            # There is no request yet: what is admitted is the caller.
            await admit(method, method.request_class(), call)
            # Until something is answered, a proxy takes the requests for one that is slow to arrive.
            await context.send_initial_metadata(())
            async with aclosing(handler(_parsed(method, raw_requests), call)) as responses:
                async for response in responses:
                    await context.write(response)

    return converse


async def _parsed(method: Method, raw_requests: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    # No generator expression: that would begin to iterate for a handler that refuses the call before it reads, and
    # grpcio complains of what was begun and never gone on with.
    async for raw in raw_requests:
        yield method.parse(raw)


def call_of(context: grpc.aio.ServicerContext[Any, Any]) -> Call:
    # Values are bytes only under keys that end with "-bin", which nothing here reads.
    return Call(dict(cast("Iterable[tuple[str, str]]", context.invocation_metadata() or ())))


def translate(failure: Exception) -> errors.Error | None:
    """The error that *failure* is to the caller; None for what must not be shown."""
    if isinstance(failure, errors.Error):
        return failure
    if isinstance(failure, (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)):
        return errors.Unavailable("OVERLOADED", "a concurrent change won; retry")
    if isinstance(failure, (psycopg.OperationalError, ConnectionError)):
        return errors.Unavailable("OVERLOADED", "the store does not answer; retry")
    return None


def status_of(failure: Exception, where: str) -> status_pb2.Status:
    """*failure* as it goes over the wire; what is not an ``Error`` is logged here and hidden."""
    error = translate(failure)
    if error is None:
        logger.error("internal error in %s", where, exc_info=failure)
        return status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message="internal error")
    return status_of_error(error)


def status_of_error(error: errors.Error) -> status_pb2.Status:
    """*error* with everything in it clipped to what a trailer holds."""
    status = status_pb2.Status(code=STATUS[type(error)].value[0], message=_clip_message(error.message))
    metadata = {key: _clip(value, MAX_METADATA) for key, value in error.metadata.items()}
    _pack(status, error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    if error.violations:
        room = MAX_DETAILS - status.ByteSize() - _ANY_BYTES
        _pack(status, error_details_pb2.BadRequest(field_violations=_violations(error, room)))
    return status


_ANY_BYTES = 100
"""What an ``Any`` takes around its message, at most: the name of its type, and lengths."""


def _pack(status: status_pb2.Status, detail: Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _violations(error: errors.Error, room: int) -> Iterator[error_details_pb2.BadRequest.FieldViolation]:
    """The first violations of *error*, as many as fit into *room* bytes."""
    for one in error.violations:
        violation = error_details_pb2.BadRequest.FieldViolation(
            # A pointer begins with "/", a field path never does: the edge tells them apart by that.
            field=_clip(one.pointer or one.field, MAX_VIOLATION),
            description=_clip(one.message, MAX_VIOLATION),
            reason=error.reason,
        )
        room -= violation.ByteSize() + 3  # a tag and a length
        if room < 0:
            return
        yield violation


def _clip(text: str, limit: int) -> str:
    """*text*, or its beginning: at most *limit* bytes of UTF-8."""
    raw = text.encode(errors="replace")  # what a caller sent may hold half a surrogate pair
    return raw.decode() if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "…"


def _clip_message(text: str) -> str:
    text = _clip(text, MAX_MESSAGE)
    sizes = [1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode()) for character in text]
    if sum(sizes) <= MAX_MESSAGE:
        return text
    room = MAX_MESSAGE - 9  # what the dots take
    return text[: sum(total <= room for total in itertools.accumulate(sizes))] + "…"


def grpc_code(status: status_pb2.Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)


async def abort(context: grpc.aio.ServicerContext[Any, Any], failure: Exception, status: status_pb2.Status) -> NoReturn:
    """End the RPC. The only caller of ``context.abort``, which raises."""
    trailers: list[tuple[str, str | bytes]] = [("grpc-status-details-bin", status.SerializeToString())]
    if isinstance(failure, errors.Error) and failure.http_status is not None:
        trailers.append(("strandline-http-status", str(failure.http_status)))
    if isinstance(failure, (errors.Unavailable, errors.ResourceExhausted)):
        trailers.append(("retry-after", failure.metadata.get("retry_after", "1")))
    await context.abort(grpc_code(status), status.message, tuple(trailers))
