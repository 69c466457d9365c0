"""The client: feeds that resume and verify, and writes that are made once however often they are tried."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self, TypeVar, Unpack

import aiohttp
import grpc
from google.protobuf.message import Message
from strandline.entity.v1 import (
    entity_pb2,
    entity_service_pb2,
    entity_service_pb2_grpc,
    history_service_pb2,
    history_service_pb2_grpc,
    import_service_pb2,
    import_service_pb2_grpc,
)
from strandline.stream.v1 import feed_pb2

from strandline_client import http_watching, watching
from strandline_client.batching import BatchingWriter
from strandline_client.cache import Cache, OnChange
from strandline_client.credentials import Credentials, TokenProvider
from strandline_client.errors import ApiError
from strandline_client.following import FeedCounters, follow
from strandline_client.history import Recording, message_of_json, message_of_protobuf
from strandline_client.http_watching import JsonMessage, Transport
from strandline_client.position import Position, Seen, Start
from strandline_client.retry import Backoff, new_request_id
from strandline_client.selection import SelectionArguments, parameters, selects_everything
from strandline_client.units import Watch

T = TypeVar("T")
_NOW = Start(now=True)

# Seconds for one try, and for all tries of a call; a feed is given up after as long a silence.
TRY_SECONDS = 10.0
PATIENCE_SECONDS = 60.0
_OPTIONS = (
    ("grpc.max_receive_message_length", 8 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Client:
    """A connection to one platform, on behalf of one caller. ``async with`` closes it.

    Every method raises ``ApiError`` for what the platform refuses, and retries what may be a passing failure for
    *patience* seconds (None: for ever); a write keeps its request id in every try, so that it is applied once.
    """

    def __init__(
        self, address: str, token: str | TokenProvider, *, rest: str = "", patience: float | None = PATIENCE_SECONDS
    ) -> None:
        """*address* is ``host:port`` of the edge for gRPC, *rest* its URL for feeds over HTTP.

        *token* is an access token, or gives a valid one whenever it is called: before each call and each connection, so
        that a feed whose token has expired goes on with the next one.
        """
        self._credentials = Credentials(token)
        self.counters = FeedCounters()
        self._rest = rest.rstrip("/")
        self._patience = patience
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._entities: entity_service_pb2_grpc.EntityServiceAsyncStub = entity_service_pb2_grpc.EntityServiceStub(
            self._channel
        )
        self._history: history_service_pb2_grpc.HistoryServiceAsyncStub = history_service_pb2_grpc.HistoryServiceStub(
            self._channel
        )
        self._imports: import_service_pb2_grpc.ImportServiceAsyncStub = import_service_pb2_grpc.ImportServiceStub(
            self._channel
        )
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._channel.close()
        if self._session is not None:
            await self._session.close()

    # Feeds

    def watch(
        self, namespace: str, start: Start = _NOW, *, once: bool = False, **selection: Unpack[SelectionArguments]
    ) -> Watch:
        """``async for unit in client.watch(...)``: each unit once, in order, verified, across broken connections.

        *once* stops at the revision that is the newest at the start.

        Raises:
            ValueError: *start* is a snapshot, whose entities are no units: that is for ``cache`` or ``feed``.
            FeedViolation: the feed broke a promise. ``counters`` tells it, too.
            FeedEnded: the server ended it, and resuming cannot help; ``position_is_lost`` if a new snapshot would.
            ApiError: it was refused, or nothing came for longer than the client's patience.
        """
        if start.snapshot or start.resume_token:
            raise ValueError("a snapshot consists of entities, not of units: use cache() or feed()")
        return Watch(self.feed(namespace, start, once=once, **selection), start)

    def cache(
        self, namespace: str, *, on_change: OnChange | None = None, **selection: Unpack[SelectionArguments]
    ) -> Cache:
        """A copy of all entities that match, in this process, that follows the feed: ``async with`` fills it."""
        selection.setdefault("include_previous", False)
        selection.setdefault("progress_seconds", 1)
        return Cache(partial(self.feed, namespace, **selection), on_change)

    def feed(
        self,
        namespace: str,
        start: Start,
        *,
        once: bool = False,
        recording: Recording | None = None,
        **selection: Unpack[SelectionArguments],
    ) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
        """Every message of the feed but ``End``, once, in order, verified; over gRPC. Raises as ``watch`` does.

        *recording* is given all that comes, before it is looked at, for ``validation``.
        """

        async def connect(start: Start) -> AsyncGenerator[feed_pb2.WatchResponse, None]:
            request = watching.request_of(namespace, start, selection, once=once)
            metadata = await self._credentials.metadata(namespace)
            if recording is not None:
                recording.connected(start)
            try:
                async for message in watching.connect(self._channel, request, metadata):
                    if recording is not None:
                        recording.received(message_of_protobuf(message))
                    yield message
            except ApiError as failure:
                if recording is not None:
                    recording.refused(failure.reason)
                raise await self._credentials.judge(failure, metadata) from failure

        return self._follow(connect, watching.look, start, is_everything=selects_everything(selection))

    def feed_http(
        self,
        namespace: str,
        start: Start,
        *,
        transport: Transport,
        once: bool = False,
        recording: Recording | None = None,
        on_lost: Callable[[], None] | None = None,
        **selection: Unpack[SelectionArguments],
    ) -> AsyncGenerator[JsonMessage, None]:
        """The same over HTTP. Messages are JSON objects as the contract describes them.

        *on_lost* is called whenever a connection is lost and another is tried; the next message shows that it is back.

        Raises:
            ValueError: the client was made without ``rest``, or there is no such transport.
        """
        if not self._rest:
            raise ValueError("feeds over HTTP need the address of the REST API: Client(address, token, rest=...)")
        url = f"{self._rest}/v1/namespaces/{namespace}:watch"
        wanted = [*parameters(selection), *([("once", "true")] if once else [])]
        events = http_watching.EventSource()
        connects = {
            "ndjson": http_watching.connect_lines,
            "sse": events.connect,
            "websocket": http_watching.connect_websocket,
        }
        if transport not in connects:
            raise ValueError(f"the transport must be one of {', '.join(connects)}")

        async def connect(at: Start) -> AsyncGenerator[JsonMessage, None]:
            # Server-sent events resume by the id of the last one, so their URL stays as it was.
            query = [*(start if transport == "sse" else at).query(), *wanted]
            metadata = await self._credentials.metadata(namespace)
            if recording is not None:
                recording.connected(at)
            try:
                async for message in connects[transport](self._http(), url, query, dict(metadata)):
                    if recording is not None:
                        recording.received(message_of_json(message))
                    yield message
            except ApiError as failure:
                if recording is not None:
                    recording.refused(failure.reason)
                raise await self._credentials.judge(failure, metadata) from failure

        return self._follow(
            connect, http_watching.look, start, is_everything=selects_everything(selection), on_lost=on_lost
        )

    def _follow(
        self,
        connect: Callable[[Start], AsyncGenerator[T, None]],
        look: Callable[[T], Seen],
        start: Start,
        *,
        is_everything: bool,
        on_lost: Callable[[], None] | None = None,
    ) -> AsyncGenerator[T, None]:
        return follow(connect, look, Position(start, is_everything), self._patience, self.counters, on_lost)

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=5))
        return self._session

    # Entities

    def writer(self, namespace: str) -> BatchingWriter:
        """Carries concurrent single writes to *namespace* together; each keeps its own outcome."""
        return BatchingWriter(partial(self.batch_write, namespace), self._patience)

    async def transact(
        self,
        namespace: str,
        mutations: Iterable[entity_pb2.Mutation],
        *,
        preconditions: Iterable[entity_pb2.Precondition] = (),
        request_id: str = "",
        confirm_operation_id: str = "",
    ) -> entity_service_pb2.TransactResponse:
        """All *mutations* (at most 500) at one revision if all *preconditions* hold, or none.

        *confirm_operation_id* is what MASS_CHANGE_REFUSED named, to say that it is meant.
        """
        request = entity_service_pb2.TransactRequest(
            parent=f"namespaces/{namespace}",
            mutations=mutations,
            preconditions=preconditions,
            request_id=request_id or new_request_id(),
            confirm_operation_id=confirm_operation_id,
        )
        answer: entity_service_pb2.TransactResponse = await self._call(self._entities.Transact, request, namespace)
        return answer

    async def batch_write(
        self,
        namespace: str,
        writes: Iterable[entity_pb2.Mutation],
        *,
        request_id: str = "",
        confirm_operation_id: str = "",
    ) -> entity_service_pb2.BatchWriteResponse:
        """Up to 500 independent *writes*; the i-th result is that of the i-th write."""
        request = entity_service_pb2.BatchWriteRequest(
            parent=f"namespaces/{namespace}",
            writes=writes,
            request_id=request_id or new_request_id(),
            confirm_operation_id=confirm_operation_id,
        )
        answer: entity_service_pb2.BatchWriteResponse = await self._call(self._entities.BatchWrite, request, namespace)
        return answer

    async def get_entity(self, name: str, *, min_revision: int = 0) -> entity_pb2.Entity:
        """The entity *name* (``namespaces/.../entities/...``), not older than *min_revision*."""
        request = entity_service_pb2.GetEntityRequest(name=name, min_revision=min_revision)
        answer: entity_service_pb2.GetEntityResponse = await self._call(
            self._entities.GetEntity, request, _namespace_of(name)
        )
        return answer.entity

    async def list_entities(
        self, parent: str, *, filter: str = "", order_by: str = "", page_size: int = 0, min_revision: int = 0
    ) -> AsyncGenerator[entity_pb2.Entity, None]:
        """All entities of the type *parent* (``namespaces/.../types/...``) that match, page after page."""
        request = entity_service_pb2.ListEntitiesRequest(
            parent=parent, filter=filter, order_by=order_by, page_size=page_size, min_revision=min_revision
        )
        while True:
            answer: entity_service_pb2.ListEntitiesResponse = await self._call(
                self._entities.ListEntities, request, _namespace_of(parent)
            )
            for entity in answer.entities:
                yield entity
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    # Imports

    async def import_entities(
        self, namespace: str, request: import_service_pb2.ImportEntitiesRequest
    ) -> import_service_pb2.ImportEntitiesResponse:
        """One chunk of the import that *request* names; a chunk that is sent again counts once."""
        request.parent = f"namespaces/{namespace}"
        answer: import_service_pb2.ImportEntitiesResponse = await self._call(
            self._imports.ImportEntities, request, namespace
        )
        return answer

    async def get_import(self, namespace: str, import_id: str) -> import_service_pb2.Import:
        """How far an import is."""
        request = import_service_pb2.GetImportRequest(name=f"namespaces/{namespace}/imports/{import_id}")
        answer: import_service_pb2.GetImportResponse = await self._call(self._imports.GetImport, request, namespace)
        return answer.progress

    async def import_rejections(
        self, namespace: str, import_id: str
    ) -> AsyncGenerator[import_service_pb2.ImportRow, None]:
        """The rows that an import has rejected so far, in the order of their lines."""
        parent = f"namespaces/{namespace}/imports/{import_id}"
        request = import_service_pb2.ListImportRejectionsRequest(parent=parent, page_size=1000)
        while True:
            answer: import_service_pb2.ListImportRejectionsResponse = await self._call(
                self._imports.ListImportRejections, request, namespace
            )
            for row in answer.rows:
                yield row
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    # Exports

    async def export_page(
        self, namespace: str, *, types: Sequence[str] = (), revision: int = 0, page_token: str = ""
    ) -> history_service_pb2.ExportEntitiesResponse:
        """A page of everything in *namespace* as it was at *revision* (0: as it is at the first page)."""
        request = history_service_pb2.ExportEntitiesRequest(
            parent=f"namespaces/{namespace}", types=types, revision=revision, page_token=page_token
        )
        answer: history_service_pb2.ExportEntitiesResponse = await self._call(
            self._history.ExportEntities, request, namespace
        )
        return answer

    async def _call(self, method: Callable[..., Any], request: Message, namespace: str) -> Any:
        backoff = Backoff(self._patience)
        while True:
            try:
                return await self._try(method, request, namespace)
            except ApiError as failure:
                await backoff.wait(failure)

    async def _try(self, method: Callable[..., Any], request: Message, namespace: str) -> Any:
        metadata = await self._credentials.metadata(namespace)
        try:
            return await method(request, metadata=tuple(metadata), timeout=TRY_SECONDS)
        except grpc.aio.AioRpcError as failure:
            raise await self._credentials.judge(watching.error_of(failure), metadata) from failure


def _namespace_of(name: str) -> str:
    return name.split("/", 2)[1]
