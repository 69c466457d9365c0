"""A PostgreSQL for the tests of a session: ``from tests.postgres import postgres`` makes the fixture known."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.postgres import throwaway_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """Conninfo of the superuser of a server that starts empty, encodes UTF-8, and ends with the session."""
    with throwaway_postgres({"fsync": "off"}) as conninfo:
        yield conninfo
