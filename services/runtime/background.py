"""What a service does by itself, come what may."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.5
_MAX_PAUSE = 30.0


async def keep_running(work: Callable[[], Awaitable[None]]) -> None:
    """Run *work*, which never returns, for ever: begin again after whatever it did not expect.

    Nobody awaits the tasks of the background, so an exception would end one in silence.
    """
    loop = asyncio.get_running_loop()
    pause = _FIRST_PAUSE
    while True:
        began = loop.time()
        try:
            await work()
        except Exception:
            # What ran for long is not what fails again and again.
            pause = _FIRST_PAUSE if loop.time() - began > _MAX_PAUSE else min(pause * 2, _MAX_PAUSE)
            logger.exception("the background failed; it begins again in %.0f s", pause)
        await asyncio.sleep(pause)
