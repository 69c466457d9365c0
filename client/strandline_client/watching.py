"""A feed over gRPC."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from strandline.stream.v1 import feed_pb2, stream_service_pb2, stream_service_pb2_grpc

from strandline_client.errors import ApiError
from strandline_client.position import Ending, Seen, Start
from strandline_client.selection import SelectionArguments, fill


def request_of(
    namespace: str, start: Start, selection: SelectionArguments, *, once: bool
) -> stream_service_pb2.WatchRequest:
    """The request that begins at *start*."""
    request = stream_service_pb2.WatchRequest(parent=f"namespaces/{namespace}", once=once)
    fill(request, selection)
    if start.resume_token:
        request.resume_token = start.resume_token
    elif start.after_revision is not None:
        request.after_revision, request.epoch = start.after_revision, start.epoch
    elif start.after_time is not None:
        request.after_time.FromDatetime(start.after_time)
    elif start.snapshot:
        request.snapshot = True
    else:
        request.now = True
    return request


async def connect(
    channel: grpc.aio.Channel, request: stream_service_pb2.WatchRequest, metadata: Sequence[tuple[str, str]]
) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
    """The messages of one call; raises ``ApiError`` when it fails."""
    stub: stream_service_pb2_grpc.StreamServiceAsyncStub = stream_service_pb2_grpc.StreamServiceStub(channel)
    call = stub.Watch(request, metadata=tuple(metadata))
    try:
        async for message in call:
            yield message
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure
    finally:
        call.cancel()


def look(message: feed_pb2.WatchResponse) -> Seen:
    """What *message* says about itself."""
    after, revision, epoch = message.after_revision, message.revision, message.epoch
    body = message.WhichOneof("body")
    if body == "units":
        return Seen(after, revision, epoch, units=[(unit.revision, unit) for unit in message.units.units])
    if body == "snapshot_page":
        page = [(entity.name, entity.revision) for entity in message.snapshot_page.entities]
        return Seen(after, revision, epoch, page=page, resume_token=message.snapshot_page.resume_token)
    if body == "snapshot_done":
        done = message.snapshot_done
        return Seen(after, revision, epoch, summary=(done.count, done.hash))
    if body == "end":
        reason = feed_pb2.End.Reason.Name(message.end.reason)
        return Seen(after, revision, epoch, end=Ending(reason, message.end.detail))
    return Seen(after, revision, epoch)


def error_of(failure: grpc.aio.AioRpcError) -> ApiError:
    """*failure* with the reason that the platform gave, if it was the platform."""
    status = status_pb2.Status()
    for key, value in failure.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            with suppress(DecodeError):
                status.ParseFromString(value)
    return _error(failure.code().name, failure.details() or "", status)


def error_of_status(status: status_pb2.Status) -> ApiError:
    """The same of a status inside an answer."""
    return _error(code_pb2.Code.Name(status.code), status.message, status)


def _error(code: str, message: str, status: status_pb2.Status) -> ApiError:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(info)
    return ApiError(code, info.reason, message, dict(info.metadata))
