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
    types: Sequence[str] = (),
    filter: str = "",
    as_json: bool = False,
    write: Callable[[str], None],
) -> None:
    """Write what happens in *namespace* until cancelled, line by line.

    Args:
        after: begin after this revision; None: now.
        write: takes one line without its end.

    Raises:
        ApiError, FeedEnded: the platform refused, or ended the feed for good.
    """
    start = Start(now=True) if after is None else Start(after_revision=after)
    feed = client.watch_http(namespace, start, transport="ndjson", types=types, filter=filter)
    async with aclosing(feed) as messages:
        async for message in messages:
            for line in [json.dumps(message)] if as_json else _lines(message):
                write(line)


def _lines(message: dict[str, Any]) -> Iterator[str]:
    """One line per change; nothing for progress."""
    for unit in message.get("units", {}).get("units", []):
        moment = datetime.fromisoformat(unit["commitTime"]).astimezone().strftime("%H:%M:%S.%f")[:-3]
        for change in unit["changes"]:
            subject = change.get("entity") or change.get("previous") or change.get("type") or change["previousType"]
            name = "/".join(subject["name"].split("/")[3::2])
            yield f"{unit['revision']:>8}  {moment}  {change['kind']:<9} {name}  {_content(change)}".rstrip()


def _content(change: dict[str, Any]) -> str:
    """What is new in the entity; of an update only what it changed."""
    data = change.get("entity", {}).get("data", {})
    before = change.get("previous", {}).get("data", {}) if change["kind"] in ("UPDATED", "ENTERED", "LEFT") else {}
    fresh = {key: value for key, value in data.items() if key not in before or before[key] != value}
    if change["kind"] in ("DELETED", "EXPIRED", "PURGED"):
        return ""
    gone = [f"-{key}" for key in sorted(before) if key not in data]
    text = " ".join(
        [*(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sorted(fresh.items())), *gone]
    )
    return text if len(text) <= _CONTENT_WIDTH else text[: _CONTENT_WIDTH - 1] + "…"
