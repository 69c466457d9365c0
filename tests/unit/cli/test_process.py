"""Programs that the supervisor runs to their end."""

from __future__ import annotations

import subprocess
import sys

import pytest
from strandline_cli.process import run_to_end

# A start that is given up while it asks a part whether it is ready: the loop closes at once after that.
GIVEN_UP = """
import asyncio, os, sys
from strandline_cli.process import run_to_end

async def main():
    asking = asyncio.create_task(run_to_end(sys.executable, "-c", "import time; time.sleep(99)"))
    await asyncio.sleep(float(sys.argv[1]))
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()

asyncio.run(main())
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("nothing is left")
"""


async def test_the_code_and_all_that_was_said_come_back() -> None:
    script = "import sys; print(sys.stdin.read()); print('oops', file=sys.stderr); sys.exit(3)"
    assert await run_to_end(sys.executable, "-c", script, input=b"in") == (3, "in\noops")


@pytest.mark.parametrize("seconds", ["0", "0.01", "0.3"])
def test_one_that_is_given_up_is_killed_and_nothing_is_said_about_a_closed_loop(seconds: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "always", "-c", GIVEN_UP, seconds], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "nothing is left\n", "")
