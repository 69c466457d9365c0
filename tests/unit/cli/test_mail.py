"""The mail sink, spoken to over SMTP."""

from __future__ import annotations

import asyncio
import smtplib
from email.message import EmailMessage
from pathlib import Path

from strandline_cli import mail, ports
from strandline_cli.home import Home
from strandline_cli.parts import Layout


async def test_what_is_sent_is_kept_and_read_newest_first(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.prepare()
    layout = Layout(home, home.run, ports.choose(0)[0])
    async with mail.sink(layout):
        assert await mail.part(layout).ready()
        for subject in ("first", "second – with a dash"):
            await asyncio.to_thread(send, layout.ports.mail, subject)
    assert [(message["to"], message["subject"], message["text"]) for message in mail.read(home.mail)] == [
        ("b@example.com", "second – with a dash", "a token"),
        ("b@example.com", "first", "a token"),
    ]
    assert {path.stat().st_mode & 0o777 for path in home.mail.iterdir()} == {0o600}


def test_a_mail_cannot_steer_the_terminal_that_shows_it(tmp_path: Path) -> None:
    (tmp_path / "1-0000.eml").write_bytes(b"Subject: \x1b[31mred\r\n\r\n\x1b[2Jgone\r\nnext line")
    (message,) = mail.read(tmp_path)
    assert "\x1b" not in "".join(message.values())
    assert message["text"].endswith("gone\nnext line")


def send(port: int, subject: str) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "a@example.com", "b@example.com", subject
    message.set_content("a token")
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.send_message(message)
