"""A headless Chromium, spoken to over its own protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# No sandbox: it runs as root in containers, and the only page it loads is ours. The rest keeps it off the network.
_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)
_START_SECONDS = 60.0


def path() -> str | None:
    """The program; None: there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._loaded = asyncio.Event()

    async def open(self, url: str, *, bypass_csp: bool = False) -> None:
        """Load *url* in a new tab; *bypass_csp*: scripts may do there what the page's own policy forbids."""
        self._session = None
        target = (await self._command("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self._command("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        await self._command("Page.enable")
        await self._command("Page.setBypassCSP", enabled=bypass_csp)
        self._loaded.clear()
        await self._command("Page.navigate", url=url)
        while not self._loaded.is_set():
            await self._receive()

    async def evaluate(self, expression: str) -> Any:
        """The JSON value of *expression*; a promise is waited for."""
        answer = await self._command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def screenshot(self, file: str) -> None:
        """Save what the page looks like, as PNG."""
        Path(file).write_bytes(base64.b64decode((await self._command("Page.captureScreenshot"))["data"]))

    async def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **session})
        while (message := await self._receive()).get("id") != number:
            pass
        assert "error" not in message, message
        answer: dict[str, Any] = message["result"]
        return answer

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = await self._socket.receive_json()
        if message.get("method") == "Page.loadEventFired":
            self._loaded.set()
        return message


@asynccontextmanager
async def chromium(program: str) -> AsyncIterator[Tab]:
    """A browser with an empty profile, closed at the end."""
    with tempfile.TemporaryDirectory(prefix="sl-chromium-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program, *_OPTIONS, f"--user-data-dir={profile}", stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        errors = process.stderr
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not (line := (await errors.readline()).decode()).startswith("DevTools listening on "):
                    assert line, "the browser ended"
            # Somebody has to read on, or the browser waits for its own log.
            reading = asyncio.create_task(errors.read())
            address = line.removeprefix("DevTools listening on ").strip()
            async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
                yield Tab(socket)
                await socket.send_json({"id": 0, "method": "Browser.close"})
            await asyncio.wait_for(process.wait(), _START_SECONDS)
            await reading
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
