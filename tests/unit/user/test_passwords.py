"""What a password must be, and that hashing neither loses nor leaks anything of it."""

from __future__ import annotations

import pytest

from services.runtime.errors import InvalidArgument, Unavailable
from services.user.addresses import parse_address
from services.user.passwords import Passwords, check_password

ANN = parse_address("ann.of.cleves@example.com")


@pytest.mark.parametrize(
    "password",
    [
        "eleven char",
        "x" * 129,
        "aaaaaaaaaaaa",
        "abababababab",
        "123456789012",
        "210987654321",
        "abcdefghijklm",
        "password1234!",
        "PASSWORDpassword",
        "qwertyuiop12",
        "Strandline2026!",
        "ann.of.cleves",
        "Ann.Of.Cleves@example.com",
    ],
)
def test_what_anybody_would_try_is_refused(password: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_password(password, ANN)
    assert password not in raised.value.message


@pytest.mark.parametrize(
    "password", ["correct horse battery staple", "twelve chars", "ünïcödé ðñ", "4829-1039-5521-x", "x7$" * 4 + "abc"]
)
def test_anything_else_of_12_to_128_characters_is_accepted(password: str) -> None:
    check_password(password.ljust(12, "~"), ANN)


async def test_a_password_verifies_in_every_unicode_form_and_no_other_does() -> None:
    passwords = Passwords(b"p" * 32)
    stored = await passwords.hash("grüße an alle")
    assert "grüße" not in stored
    assert await passwords.verify("gru\u0308ße an alle", stored)
    assert not await passwords.verify("grüsse an alle", stored)
    assert not await Passwords(b"q" * 32).verify("grüße an alle", stored)


async def test_nobodys_password_is_never_right() -> None:
    assert not await Passwords(b"p" * 32).verify("grüße an alle", None)


async def test_who_comes_when_too_many_wait_is_refused_and_may_come_again() -> None:
    passwords = Passwords(b"p" * 32)
    turns = [passwords.turn() for _ in range(33)]
    for turn in turns[:32]:
        await turn.__aenter__()
    with pytest.raises(Unavailable):
        await turns[32].__aenter__()
    await turns[0].__aexit__(None, None, None)
    async with passwords.turn():
        pass
