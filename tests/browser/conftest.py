"""One platform and one browser for every page; without a browser, a printed skip."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.local_platform import Platform, new_home, started

from . import chromium


@pytest.fixture(scope="session")
def program() -> str:
    found = chromium.path()
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(chromium.NAMES)} is on the path")
    return found


@pytest.fixture(scope="session")
def platform(program: str) -> Iterator[Platform]:
    """The platform that pages share. Who kills a part of it waits until it is ready again."""
    with new_home() as home, started(home) as running:
        yield running


@pytest.fixture
async def tab(program: str) -> AsyncIterator[chromium.Tab]:
    async with chromium.chromium(program) as opened:
        yield opened
