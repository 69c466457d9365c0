"""`docs/first-steps.md`, pasted into a shell from its first step to its last."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.local_platform import Platform

ROOT = Path(__file__).parents[2]
STEPS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "first-steps.md").read_text(), re.DOTALL)
NEXT = "=== next ==="
pytestmark = pytest.mark.timeout(180)


def test_every_step_does_what_the_page_says(platform: Platform, tmp_path: Path) -> None:
    preparation, *said = paste(platform, tmp_path)
    assert preparation == ""
    namespace, of_type, evolution, entities, fitting, feeds, people, files = said
    assert '"name":"namespaces/harbour"' in namespace
    assert of_type.count('"state":"READY"') == 2
    with_and_without_a_server = ('"compatible":false', '"compatible": false')
    assert all(verdict in evolution for verdict in with_and_without_a_server)
    assert evolution.count("PROPERTY_REMOVED_FROM_CLOSED") == evolution.count("REQUIRED_ADDED") == 2
    assert '"outcome":"DELETED"' in entities
    assert '"invalid":"1"' in fitting
    assert "/entities/vega" in fitting
    assert re.search(r"^ +5 .* UNDELETED ship/vega", feeds, re.MULTILINE)
    assert feeds.count('"reason":"COMPLETED"') == 2
    assert '"role":"VIEWER"' in people
    assert all(f"/entities/{ship}" in people.splitlines()[-1] for ship in ("lyra", "vega"))
    assert "2 rows read = 1 inserted" in files
    assert '"reason": "SCHEMA_VIOLATION"' in files


def paste(platform: Platform, folder: Path) -> list[str]:
    """What each step prints."""
    platform.wait_until_ready()
    # A part that just came back, or is short of time, may answer 503 for a moment: it says that one may ask again.
    (folder / ".curlrc").write_text("retry = 20\nretry-max-time = 60\nfail\nshow-error\n")
    environment = {**platform.environment, "no_proxy": "127.0.0.1", "TMPDIR": str(folder), "CURL_HOME": str(folder)}
    # `call` would ask for one each time, which takes longer than the call.
    environment["TOKEN"] = platform.token()
    finished = subprocess.run(
        ["bash", "-c", f"echo '{NEXT}'\n".join(STEPS)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    for error in ("No such file", "not found", "Traceback"):
        assert error not in finished.stdout, finished.stdout
    return finished.stdout.split(f"{NEXT}\n")
