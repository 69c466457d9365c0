"""What the tests of the stream service's parts share."""

from __future__ import annotations

from pathlib import Path

import pytest
from strandline_gateway.certificates import ensure_authority


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """The file of an authority; ``key.pem`` beside it has its key."""
    ensure_authority(tmp_path / "authority", "strandline.local")
    return tmp_path / "authority" / "cert.pem"
