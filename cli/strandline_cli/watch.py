"""`strandline watch`: a live feed, one line per change for people, or the feed's own JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import Any

from strandline_client import Client, Start

_CONTENT_WIDTH = 100


async def run_watch(
    client: Client,
    namespace: str,
    *,
    after: int | None = None,
    snapshot: bool = False,
    once: bool = False,
    types: Sequence[str] = (),
    filter: str = "",
    as_json: bool = False,
    write: Callable[[str], None],
    tell: Callable[[str], None],
) -> None:
    """Write what happens in *namespace* until cancelled, line by line.

    Args:
        after: begin after this revision; None: now.
        snapshot: begin with all that there is, instead.
        once: stop where the log was at the beginning.
        write: takes one line without its end.
        tell: takes a line about the connection: once when it is lost, once when it is back.

    Raises:
        ApiError, FeedEnded: the platform refused, or ended the feed for good.
    """
    start = Start(snapshot=True) if snapshot else Start(now=True) if after is None else Start(after_revision=after)
    is_lost = False

    def lost() -> None:
        nonlocal is_lost
        if not is_lost:
            tell("connection lost, trying again")
        is_lost = True

    feed = client.feed_http(namespace, start, transport="ndjson", once=once, types=types, filter=filter, on_lost=lost)
    async with aclosing(feed) as messages:
        async for message in messages:
            if is_lost:
                tell("connected again")
                is_lost = False
            for line in [json.dumps(message)] if as_json else _lines(message):
                write(line)


def _lines(message: dict[str, Any]) -> Iterator[str]:
    """One line per change, and per entity of a snapshot; nothing for progress."""
    for entity in message.get("snapshotPage", {}).get("entities", []):
        yield _line(entity["revision"], entity["updateTime"], "-", entity["name"], _content({"entity": entity}))
    for unit in message.get("units", {}).get("units", []):
        for change in unit["changes"]:
            subject = change.get("entity") or change.get("previous") or change.get("type") or change["previousType"]
            yield _line(unit["revision"], unit["commitTime"], change["kind"], subject["name"], _content(change))


def _line(revision: str, time: str, kind: str, name: str, content: str) -> str:
    moment = datetime.fromisoformat(time).astimezone().strftime("%H:%M:%S.%f")[:-3]
    return f"{revision:>8}  {moment}  {kind:<9} {'/'.join(name.split('/')[3::2])}  {content}".rstrip()


def _content(change: dict[str, Any]) -> str:
    """What is new in the entity; of an update only what it changed."""
    kind = change.get("kind")
    data = change.get("entity", {}).get("data", {})
    before = change.get("previous", {}).get("data", {}) if kind in ("UPDATED", "ENTERED", "LEFT") else {}
    fresh = {key: value for key, value in data.items() if key not in before or before[key] != value}
    if kind in ("DELETED", "EXPIRED", "PURGED"):
        return ""
    gone = [f"-{key}" for key in sorted(before) if key not in data]
    text = " ".join(
        [*(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sorted(fresh.items())), *gone]
    )
    return text if len(text) <= _CONTENT_WIDTH else text[: _CONTENT_WIDTH - 1] + "…"
