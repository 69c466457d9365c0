"""A small client of the public REST API, for the command line itself. The standard library alone: it loads in 40 ms."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit


class ApiError(Exception):
    """The API refused: HTTP status, the reason of the problem document (may be empty) and its text."""

    def __init__(self, status: int, reason: str, detail: str) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.status = status
        self.reason = reason


class Api:
    """One caller of the platform at *rest*, for example ``http://127.0.0.1:8080``; *token* empty: nobody in particular.

    Every method blocks, for at most *timeout* seconds without a byte, and raises ``ApiError`` or ``OSError``.
    """

    def __init__(self, rest: str, token: str = "", timeout: float = 10.0) -> None:
        self._host = urlsplit(rest).netloc
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout

    def call(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """One request; the JSON of its answer."""
        response, connection = self._send(method, path, body)
        try:
            answer: dict[str, Any] = json.loads(response.read())
            return answer
        finally:
            connection.close()

    def lines(self, path: str) -> Iterator[dict[str, Any]]:
        """Follow an NDJSON stream."""
        response, connection = self._send("GET", path, None)
        try:
            while line := response.readline():
                yield json.loads(line)
        finally:
            connection.close()

    def _send(
        self, method: str, path: str, body: object
    ) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        connection = http.client.HTTPConnection(self._host, timeout=self._timeout)
        headers = self._headers | ({} if body is None else {"Content-Type": "application/json"})
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise _error(response)
        except BaseException:
            connection.close()
            raise
        return response, connection


def _error(response: http.client.HTTPResponse) -> ApiError:
    content = response.read()
    try:
        problem = json.loads(content)
        return ApiError(response.status, str(problem.get("reason", "")), str(problem.get("detail", "")))
    except (ValueError, AttributeError):
        return ApiError(response.status, "", content.decode(errors="replace")[:200])
