"""Sealed values open in their place, with their key, unchanged; and not otherwise."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.user.envelope import Keyring, SealError, WrappedKey

ANN, BOB = "6f1e9b52-0000-4000-8000-00000000000a", "6f1e9b52-0000-4000-8000-00000000000b"
KEYRING = Keyring({1: os.urandom(32)})
KEY, WRAPPED = KEYRING.new_key(ANN)


@given(st.text(max_size=300))
def test_what_was_sealed_opens_again(text: str) -> None:
    sealed = KEY.seal("email", text)
    assert KEYRING.unwrap(ANN, WRAPPED).open("email", sealed) == text
    assert len(sealed) == len(text.encode()) + 31


@given(st.text(max_size=50), st.data())
def test_no_changed_bit_goes_unnoticed(text: str, data: st.DataObject) -> None:
    sealed = bytearray(KEY.seal("email", text))
    # The two bytes of the key version are a label for rotation; everything else is authenticated.
    place = data.draw(st.sampled_from([0, *range(3, len(sealed))]))
    sealed[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SealError):
        KEY.open("email", bytes(sealed))


@given(st.binary(max_size=60))
def test_arbitrary_bytes_do_not_open(raw: bytes) -> None:
    with pytest.raises(SealError):
        KEY.open("email", raw)


def test_a_value_moved_to_another_column_or_user_does_not_open() -> None:
    sealed = KEY.seal("given_name", "Ann")
    with pytest.raises(SealError):
        KEY.open("family_name", sealed)
    bobs_key, bobs_wrapped = KEYRING.new_key(BOB)
    with pytest.raises(SealError):
        bobs_key.open("given_name", sealed)
    with pytest.raises(SealError):
        KEYRING.unwrap(ANN, bobs_wrapped)


def test_a_key_of_an_older_version_still_unwraps_and_the_newest_one_wraps() -> None:
    old = os.urandom(32)
    before = Keyring({1: old})
    key, wrapped = before.new_key(ANN)
    after = Keyring({1: old, 2: os.urandom(32)})
    assert after.unwrap(ANN, wrapped).open("email", key.seal("email", "a@example.com")) == "a@example.com"
    assert after.new_key(BOB)[1].kek_version == 2


def test_without_the_key_that_wrapped_it_nothing_opens() -> None:
    with pytest.raises(SealError):
        Keyring({2: os.urandom(32)}).unwrap(ANN, WRAPPED)
    with pytest.raises(SealError):
        Keyring({1: os.urandom(32)}).unwrap(ANN, WrappedKey(1, WRAPPED.sealed))
