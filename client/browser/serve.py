"""Serves the example page and the platform from one origin: ``python client/browser/serve.py``.

It knows no secret and decides nothing: whatever is below ``/v1/`` goes to the platform's edge as the browser sent it.
In production the same is a rule of whatever already stands before page and platform.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path

import aiohttp
from aiohttp import WSMsgType, web

FILES = Path(__file__).parent
# Between two neighbours, and no further.
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "sec-websocket-key"}
    | {"sec-websocket-version", "sec-websocket-extensions", "sec-websocket-accept"}
)
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class Page:
    """The page at ``/``, the platform at *rest* below ``/v1/``."""

    def __init__(self, rest: str) -> None:
        self._rest = rest
        self.app = web.Application()
        self.app.router.add_get("/{name:|(feed|page|session)\\.js|page\\.css}", self._file)
        self.app.router.add_route("*", "/v1/{rest:.*}", self._pass_on)
        self.app.cleanup_ctx.append(self._with_session)

    async def _with_session(self, app: web.Application):  # type: ignore[no-untyped-def]  # an asynchronous generator
        endless, cookies = aiohttp.ClientTimeout(total=None), aiohttp.DummyCookieJar()
        self._session = aiohttp.ClientSession(timeout=endless, cookie_jar=cookies, auto_decompress=False)
        yield
        await self._session.close()

    async def _file(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(FILES / (request.match_info["name"] or "index.html"), headers=_PAGE_HEADERS)

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        url, headers = f"{self._rest}{request.rel_url}", _end_to_end(request.headers)
        try:
            if request.headers.get("upgrade", "").lower() == "websocket":
                return await self._websocket(request, url, headers)
            return await self._answer(request, url, headers)
        except aiohttp.WSServerHandshakeError as refusal:
            return web.Response(status=refusal.status)
        except (aiohttp.ClientError, OSError):
            # In the middle of an answer this cuts the connection, which is what a reader must be told.
            raise web.HTTPServiceUnavailable from None

    async def _answer(self, request: web.Request, url: str, headers: list[tuple[str, str]]) -> web.StreamResponse:
        body = await request.read() if request.body_exists else None
        async with self._session.request(
            request.method, url, headers=headers, data=body, allow_redirects=False
        ) as answer:
            response = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response

    async def _websocket(self, request: web.Request, url: str, headers: list[tuple[str, str]]) -> web.StreamResponse:
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


def _end_to_end(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers.items() if name.lower() not in _HOP_BY_HOP]


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rest", default="http://127.0.0.1:8080", help="the platform's REST address")
    parser.add_argument("--port", type=int, default=8090)
    arguments = parser.parse_args()
    web.run_app(Page(arguments.rest).app, host="127.0.0.1", port=arguments.port)


if __name__ == "__main__":
    main()
