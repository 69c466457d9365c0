"""The platform that runs in a home, as its own clients see it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus

import strandline_client
from strandline_client import Client

from strandline_cli.api import Api, ApiError
from strandline_cli.home import Home
from strandline_cli.tokens import administrator_token


class NothingRuns(Exception):
    """There is no running platform in this home; the message says what to do."""


@dataclass(frozen=True)
class Running:
    """Where a running platform answers, for its administrator."""

    home: Home
    edge: str
    """``host:port``."""

    @classmethod
    def in_home(cls, home: Home) -> Running:
        """Raises ``NothingRuns``."""
        state = home.load_state()
        if state is None or home.holder() is None:
            raise NothingRuns(f"nothing runs in {home.root}. First: strandline up")
        return cls(home, f"127.0.0.1:{state.ports.edge}")

    @property
    def rest(self) -> str:
        return f"http://{self.edge}"

    def api(self) -> Api:
        """REST, as the administrator."""
        return Api(self.rest, administrator_token(self.home, self.rest))

    def client(self, patience: float | None = 60.0) -> Client:
        """The client package, as the administrator; the token is renewed for as long as it lives."""

        async def token() -> str:
            try:
                return await asyncio.to_thread(administrator_token, self.home, self.rest)
            except ApiError as refusal:
                raise strandline_client.ApiError(_code(refusal.status), refusal.reason, str(refusal)) from refusal

        return Client(self.edge, token, rest=self.rest, patience=patience)

    def pid(self, part: str) -> int | None:
        """The process of *part*; None between two lives."""
        state = self.home.load_state()
        return state.pids.get(part) if state else None


def _code(status: int) -> str:
    """The code of a sign-in that failed: while parts of the platform restart it does so for a moment."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "UNAVAILABLE"
    return "RESOURCE_EXHAUSTED" if status == HTTPStatus.TOO_MANY_REQUESTS else "UNAUTHENTICATED"
