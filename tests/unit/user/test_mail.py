"""Mails are tried again whatever went wrong, and the log does not say for whom they are."""

from __future__ import annotations

import asyncio
import logging

import pytest

from services.user.mail import Mailer, verification_mail


async def test_a_failure_that_nobody_expected_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    mailer = Mailer(f"smtp://{'a' * 70}:25", "harbour@example.com")  # no label of a host name may be that long
    with caplog.at_level(logging.WARNING):
        mailer.send(verification_mail("ann@example.com", "slv_token"))
        (task,) = mailer._waiting
        async with asyncio.timeout(30):
            while True:
                if "a mail was not taken: Unicode" in caplog.text:
                    break
                await asyncio.sleep(0.01)
    assert not task.done()
    assert "ann@" not in caplog.text
    await mailer.close(seconds=0)
