"""Which spellings are one address, and which text is none."""

from __future__ import annotations

import pytest

from services.runtime.errors import InvalidArgument
from services.user.addresses import AddressIndex, parse_address

INDEX = AddressIndex(bytes(32))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ann@example.com", "ANN@Example.COM"),
        ("ann@example.com", "  ann@example.com "),
        ("ann@example.com", "ａｎｎ@example.com"),
        ("jürgen@example.com", "ju\u0308rgen@example.com"),
        ("ann@münchen.de", "ann@xn--mnchen-3ya.de"),
    ],
)
def test_two_spellings_of_one_address_have_one_index(one: str, other: str) -> None:
    assert INDEX.of(parse_address(one)) == INDEX.of(parse_address(other)) == INDEX.of_attempt(other)


def test_different_addresses_and_different_keys_have_different_indexes() -> None:
    ann = parse_address("ann@example.com")
    indexes = {INDEX.of(ann), INDEX.of(parse_address("ann@example.org")), AddressIndex(b"k" * 32).of(ann)}
    assert len({*indexes, INDEX.of_attempt("ann")}) == 4


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "ann",
        "@example.com",
        "ann@",
        "ann@@example.com",
        "ann@example.com\r\nBcc: bob@example.com",
        "ann@example.com\n",
        "a\tnn@example.com",
        "ann@[127.0.0.1]",
        "<ann@example.com>",
        "Ann <ann@example.com>",
        "x" * 65 + "@example.com",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_it(raw: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_address(raw)
    assert raised.value.reason == "INVALID_FIELD"
    assert not raw or raw not in raised.value.message
