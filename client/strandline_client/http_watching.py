"""A feed over HTTP: NDJSON, server-sent events or WebSocket. A message is the JSON object that the server sent."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

import aiohttp
import orjson

from strandline_client.errors import ApiError
from strandline_client.position import Ending, Seen

Transport: TypeAlias = Literal["ndjson", "sse", "websocket"]
JsonMessage: TypeAlias = dict[str, Any]

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    410: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
}
# One unit of 3 MiB may take several times that as JSON.
_MAX_FRAME = 64 * 2**20


async def connect_lines(
    session: aiohttp.ClientSession, url: str, query: list[tuple[str, str]], headers: Mapping[str, str]
) -> AsyncGenerator[JsonMessage, None]:
    """NDJSON: one message a line."""
    async with _response(session, url, query, {**headers, "accept": "application/x-ndjson"}) as response:
        async for line in split(response.content.iter_any(), b"\n"):
            yield orjson.loads(line)


class EventSource:
    """Server-sent events, resumed as a browser does it: the same URL again, with the last id that came."""

    def __init__(self) -> None:
        self._last_id = ""

    async def connect(
        self, session: aiohttp.ClientSession, url: str, query: list[tuple[str, str]], headers: Mapping[str, str]
    ) -> AsyncGenerator[JsonMessage, None]:
        """One connection."""
        headers = {**headers, "accept": "text/event-stream"}
        if self._last_id:
            headers["last-event-id"] = self._last_id
        async with _response(session, url, query, headers) as response:
            async for event in split(response.content.iter_any(), b"\n\n"):
                fields = dict(line.split(b": ", 1) for line in event.split(b"\n"))
                # Before the message is given away: who takes an `End` does not come back for more.
                self._last_id = fields[b"id"].decode() if b"id" in fields else self._last_id
                yield orjson.loads(fields[b"data"])


async def connect_websocket(
    session: aiohttp.ClientSession, url: str, query: list[tuple[str, str]], headers: Mapping[str, str]
) -> AsyncGenerator[JsonMessage, None]:
    """WebSocket: one message a text frame."""
    try:
        async with session.ws_connect(url, params=query, headers=headers, max_msg_size=_MAX_FRAME) as socket:
            async for frame in socket:
                if frame.type == aiohttp.WSMsgType.TEXT:
                    yield orjson.loads(frame.data)
    except aiohttp.WSServerHandshakeError as failure:
        raise await _why_refused(session, url, query, headers) from failure
    except (aiohttp.ClientError, OSError) as failure:
        raise ApiError("UNAVAILABLE", "", str(failure)) from failure


async def _why_refused(
    session: aiohttp.ClientSession, url: str, query: list[tuple[str, str]], headers: Mapping[str, str]
) -> ApiError:
    """What a WebSocket was refused for: the library keeps the status alone, so the same is asked for as NDJSON."""
    try:
        async with _response(session, url, query, headers):
            return ApiError("UNAVAILABLE", "", "the WebSocket was refused, the feed is not")
    except ApiError as refusal:
        return refusal


@asynccontextmanager
async def _response(
    session: aiohttp.ClientSession, url: str, query: list[tuple[str, str]], headers: Mapping[str, str]
) -> AsyncGenerator[aiohttp.ClientResponse, None]:
    try:
        async with session.get(url, params=query, headers=headers) as response:
            if response.status != HTTPStatus.OK:
                raise _problem(response.status, await response.read())
            yield response
    except (aiohttp.ClientError, OSError) as failure:
        raise ApiError("UNAVAILABLE", "", str(failure)) from failure


def _problem(status: int, body: bytes) -> ApiError:
    code = _CODES.get(status, "UNAVAILABLE" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "INVALID_ARGUMENT")
    try:
        problem = json.loads(body)
        return ApiError(code, str(problem["reason"]), str(problem["detail"]), dict(problem.get("metadata", {})))
    except (ValueError, KeyError, TypeError):
        return ApiError(code, "", f"HTTP {status}")


async def split(chunks: AsyncIterable[bytes], separator: bytes) -> AsyncGenerator[bytes, None]:
    """The pieces between separators, of any length. What follows the last separator was cut off and is dropped."""
    rest = b""
    async for chunk in chunks:
        # Looked for only where it can be new: a piece of megabytes arrives in many chunks.
        if separator[-1:] not in chunk:
            rest += chunk
            continue
        *pieces, rest = (rest + chunk).split(separator)
        for piece in pieces:
            yield piece


def look(message: JsonMessage) -> Seen:
    """What *message* says about itself."""
    after, revision, epoch = int(message["afterRevision"]), int(message["revision"]), str(message["epoch"])
    if "units" in message:
        return Seen(after, revision, epoch, units=[(int(unit["revision"]), unit) for unit in message["units"]["units"]])
    if "snapshotPage" in message:
        page = message["snapshotPage"]
        entities = [(entity["name"], int(entity["revision"])) for entity in page["entities"]]
        return Seen(after, revision, epoch, page=entities, resume_token=page["resumeToken"])
    if "snapshotDone" in message:
        done = message["snapshotDone"]
        return Seen(after, revision, epoch, summary=(int(done["count"]), done["hash"]))
    if "end" in message:
        return Seen(after, revision, epoch, end=Ending(message["end"]["reason"], message["end"]["detail"]))
    return Seen(after, revision, epoch)
