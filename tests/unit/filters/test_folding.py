"""Folding is one mapping of single letters that never changes, because index keys are made with it."""

from __future__ import annotations

import hashlib

from hypothesis import given

from services.runtime.filters.folding import fold, letters, mapping_into
from tests.unit.filters.strategies import strings

EVERY_CHARACTER = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]


def test_every_character_folds_to_one_that_folds_to_itself() -> None:
    for character in EVERY_CHARACTER:
        folded = fold(character)
        assert len(folded) == 1
        assert fold(folded) == folded


def test_a_letter_folds_as_python_lowers_it_unless_that_takes_two() -> None:
    differing = [character for character in EVERY_CHARACTER if fold(character) != character.lower()]
    assert differing == ["İ"]
    assert (fold("İ"), fold("ß"), fold("ẞ")) == ("İ", "ß", "ß")


def test_the_mapping_is_the_one_that_stored_keys_were_made_with() -> None:
    pairs = "".join(f"{upper}{lower}" for upper, lower in sorted(letters().items()))
    assert len(letters()) == 1432
    assert (
        hashlib.sha256(pairs.encode()).hexdigest() == "4a4acd81f40721dcb49f21f07f8165e556b8d8f3877cad0a184c220bb2bcac9c"
    )


@given(strings)
def test_a_text_folds_letter_by_letter_whatever_stands_beside_it(text: str) -> None:
    assert fold(text) == "".join(map(fold, text))


def test_only_letters_that_fold_into_a_text_matter_to_it() -> None:
    assert mapping_into("ka") == ("AK\u212a", "akk")
    assert mapping_into("1") == ("", "")
