"""Seeing that an import's chunk was prepared while it waited for its turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.entity import imports
from services.entity.writes import Draft, Writer


def watch_drafts(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a chunk has been drafted; chunks wait for a minute meanwhile."""
    drafted = asyncio.Event()
    draft = Writer.draft

    async def seen(self: Writer, *arguments: Any, first: int) -> Draft:
        made = await draft(self, *arguments, first=first)
        drafted.set()
        return made

    monkeypatch.setattr(Writer, "draft", seen)
    monkeypatch.setattr(imports, "WAIT_SECONDS", 60.0)
    return drafted
