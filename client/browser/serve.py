"""Serves the example page, and the feed beside it, from one origin: ``python client/browser/serve.py``.

A page cannot give an ``EventSource`` or a ``WebSocket`` an access token. Here the server that the page comes from holds
it and adds it to what it passes on, so that it never reaches the browser. Only feeds are passed on, only on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
from aiohttp import WSMsgType, web

FILES = Path(__file__).parent
_PASSED_ON = ("accept", "last-event-id")
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class Page:
    """The page at ``/`` and, for it alone, the feeds of the platform at *rest* on behalf of whose *token* it is."""

    def __init__(self, rest: str, token: Callable[[], Awaitable[str]]) -> None:
        self._rest = rest
        self._token = token
        self.app = web.Application()
        self.app.router.add_get("/v1/namespaces/{namespace:[a-z0-9-]+}:watch", self._feed)
        self.app.router.add_get("/{name:|feed\\.js|page\\.js|page\\.css}", self._file)
        self.app.cleanup_ctx.append(self._with_session)

    async def _with_session(self, app: web.Application):  # type: ignore[no-untyped-def]  # an asynchronous generator
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**24
        ) as self._session:
            yield

    async def _file(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(FILES / (request.match_info["name"] or "index.html"), headers=_PAGE_HEADERS)

    async def _feed(self, request: web.Request) -> web.StreamResponse:
        if not _is_from_this_page(request):
            raise web.HTTPForbidden
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        headers["authorization"] = f"Bearer {await self._token()}"
        url = f"{self._rest}{request.rel_url}"
        try:
            if request.headers.get("upgrade", "").lower() == "websocket":
                return await self._websocket(request, url, headers)
            return await self._events(request, url, headers)
        except (aiohttp.ClientError, OSError):
            # In the middle of an answer this cuts the connection, which is what a reader must be told.
            raise web.HTTPServiceUnavailable from None

    async def _events(self, request: web.Request, url: str, headers: dict[str, str]) -> web.StreamResponse:
        async with self._session.get(url, headers=headers) as answer:
            response = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response

    async def _websocket(self, request: web.Request, url: str, headers: dict[str, str]) -> web.StreamResponse:
        async with self._session.ws_connect(url, headers=headers, max_msg_size=0) as upstream:
            page = web.WebSocketResponse()
            await page.prepare(request)
            hangs_up = asyncio.create_task(page.receive())
            hangs_up.add_done_callback(lambda _: asyncio.ensure_future(upstream.close()))
            async for frame in upstream:
                if frame.type == WSMsgType.TEXT:
                    await page.send_str(frame.data)
            hangs_up.cancel()
            await page.close()
            return page


def _is_from_this_page(request: web.Request) -> bool:
    """Pages of other sites may send requests here, but they cannot hide where they come from.

    Nor what they call this host: a name of theirs that resolves to loopback would make them the same origin.
    """
    origin = request.headers.get("origin", f"{request.scheme}://{request.host}")
    site = request.headers.get("sec-fetch-site", "same-origin")
    is_loopback = request.url.host in ("127.0.0.1", "localhost")
    return is_loopback and site == "same-origin" and origin == f"{request.scheme}://{request.host}"


async def _command_line_token() -> str:
    """Of the platform that runs here; it is kept until shortly before its end, so asking often costs little."""
    process = await asyncio.create_subprocess_exec("strandline", "token", stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode().strip()


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rest", default="http://127.0.0.1:8080", help="the platform's REST address")
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    page = Page(arguments.rest, _command_line_token)
    web.run_app(page.app, host="127.0.0.1", port=arguments.port)


if __name__ == "__main__":
    main()
