"""One real platform for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.local_platform import Platform, new_home, started


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    """The platform that tests share. Who kills a part of it waits until it is ready again."""
    with new_home() as home, started(home) as running:
        yield running
