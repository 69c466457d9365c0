"""REST as a stranger's program would use it: status, headers and JSON, nothing hidden."""

from __future__ import annotations

import io
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

import aiohttp

_addresses = itertools.count(10)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. ``problem`` checks that a failure has the contract's shape before it is looked at."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def problem(self) -> tuple[int, str]:
        """Status and reason."""
        assert self.headers["content-type"].startswith("application/problem+json"), self
        body = self.json
        assert set(body) == {"type", "title", "status", "detail", "instance", "reason", "metadata", "violations"}, body
        assert body["type"] == f"urn:strandline:{body['reason']}", body
        assert body["status"] == self.status, body
        assert body["instance"], body
        leaks = re.search(r"Traceback|psycopg|SELECT |envoy|upstream|grpc|\.py|<class", json.dumps(body))
        assert leaks is None, body
        return self.status, body["reason"]

    @property
    def pointers(self) -> set[str]:
        return {violation["pointer"] for violation in self.json["violations"]}

    @property
    def position(self) -> tuple[str, int]:
        """Epoch and revision of ``Strandline-Revision``."""
        epoch, _, revision = self.headers["strandline-revision"].partition(".")
        return epoch, int(revision)


class Rest:
    """A client with (or without) a token, from a loopback address of its own: sign-in is limited by address."""

    def __init__(self, url: str, token: str | None = None) -> None:
        number = next(_addresses)
        local = (f"127.0.{number // 250}.{number % 250 + 1}", 0)
        self._session = aiohttp.ClientSession(
            url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            connector=aiohttp.TCPConnector(local_addr=local),
            timeout=aiohttp.ClientTimeout(total=30),
        )

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        params: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; *body* is sent as JSON, *raw* as it is with the content type of JSON."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        typed = {"content-type": "application/json"} if data is not None else {}
        stream = None if data is None else io.BytesIO(data)  # aiohttp warns of large bodies given as bytes
        async with self._session.request(
            method, path, data=stream, params=params, headers=typed | (headers or {}), allow_redirects=False
        ) as response:
            text = (await response.read()).decode()
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, text)

    async def ok(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The JSON of an answer that must be 2xx."""
        answer = await self(method, path, body, **options)
        assert 200 <= answer.status < 300, (method, path, answer.status, answer.text[:500])
        return answer.json

    def stream(self, path: str, *, params: Any = None) -> Any:
        """One GET whose answer is read as it comes, inside ``async with``."""
        return self._session.get(path, params=params)

    async def close(self) -> None:
        await self._session.close()
