"""The proof that the platform works: a write through the edge, and its change on the feed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from strandline_cli.api import Api, ApiError
from strandline_cli.home import Home
from strandline_cli.parts import PlatformFailure
from strandline_cli.tokens import administrator_token, forget_token

NAMESPACE = "demo"
TYPE = "note"
_SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "written": {"type": "string", "format": "date-time"}},
    "required": ["text"],
    "additionalProperties": False,
}
# What a part that is a moment late answers; anything else is a failure at once.
_NOT_YET = frozenset({401, 404, 503})
_PATIENCE_SECONDS = 10.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Proof:
    """What was seen: the revision written, and how long after the answer its change was on the feed."""

    revision: int
    milliseconds: float


def check(home: Home, rest: str) -> Proof:
    """Sign in, make the namespace ``demo`` and a type when missing, write one entity and watch its change arrive.

    Raises:
        PlatformFailure: what went wrong, in words.
    """
    forget_token(home)  # so that signing in is part of the proof
    try:
        token = _soon(lambda: administrator_token(home, rest))
        api = Api(rest, token)
        _ensure(api, f"/v1/namespaces?namespace_id={NAMESPACE}", {})
        _ensure(api, f"/v1/namespaces/{NAMESPACE}/types?type_id={TYPE}", {"schema": _SCHEMA})
        note = {
            "name": f"namespaces/{NAMESPACE}/types/{TYPE}/entities/hello",
            "data": {"text": "Strandline is up", "written": datetime.now(UTC).isoformat()},
            "allowMissing": True,
        }
        answer = _soon(
            lambda: api.call("POST", f"/v1/namespaces/{NAMESPACE}:transact", {"mutations": [{"update": note}]})
        )
        return _see(api, int(answer["revision"]))
    except (ApiError, OSError) as failure:
        raise PlatformFailure(f"the smoke check through {rest} failed: {failure}", "edge") from failure


def _ensure(api: Api, path: str, body: object) -> None:
    def create() -> None:
        try:
            api.call("POST", path, body)
        except ApiError as refusal:
            if refusal.status != 409:
                raise

    _soon(create)


def _see(api: Api, revision: int) -> Proof:
    began = time.monotonic()
    for message in api.lines(f"/v1/namespaces/{NAMESPACE}:watch?after_revision={revision - 1}"):
        units = message.get("units", {}).get("units", [])
        if any(int(unit["revision"]) == revision for unit in units):
            return Proof(revision, 1000 * (time.monotonic() - began))
        if "end" in message:
            break
    raise PlatformFailure(f"revision {revision} was acknowledged but did not appear on the feed", "stream")


def _soon(call: Callable[[], _T]) -> _T:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return call()
        except ApiError as refusal:
            if refusal.status not in _NOT_YET or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
