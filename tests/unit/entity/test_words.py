"""Words are the same for what is indexed and for what is searched."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.entity.index_keys import encode, entry_keys, parse_index
from services.entity.words import MAX_LENGTH, MAX_WORDS, words
from services.runtime.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zürich Flughafen", ["zurich", "flughafen"]),
        ("São Paulo/Guarulhos–Governador", ["sao", "paulo", "guarulhos", "governador"]),
        ("ABC_def 12-34", ["abc", "def", "12", "34"]),
        ("東京 国際", ["東京", "国際"]),
        ("ﬁn ² ①", ["fin", "2", "1"]),
        ("Ὀδυσσεύς", ["οδυσσευς"]),
        ("... _ -", []),
        ("", []),
    ],
)
def test_a_word_is_a_run_of_letters_and_digits_without_case_and_accents(text: str, expected: list[str]) -> None:
    assert list(words(text)) == expected


@given(st.text())
def test_the_words_of_a_text_are_their_own_words(text: str) -> None:
    for word in words(text):
        assert 0 < len(word) <= MAX_LENGTH
        assert list(words(word)) == [word]


@given(st.text(), st.text())
def test_a_space_parts_words(left: str, right: str) -> None:
    assert list(words(f"{left} {right}")) == [*words(left), *words(right)]


def test_a_full_text_index_has_an_entry_per_distinct_word_of_its_fields() -> None:
    spec = parse_index(["data.name", "data.tags"], full_text=True)
    data = {"name": "Red buoy, red light", "tags": ["Light", 7, "north west"], "other": "gone"}
    assert entry_keys(spec, data) == [encode(word) for word in ("red", "buoy", "light", "north", "west")]
    assert entry_keys(spec, {"name": 5}) == []
    many = {"name": " ".join(f"w{n}" for n in range(300))}
    assert len(entry_keys(spec, many)) == MAX_WORDS


@pytest.mark.parametrize(
    "declared",
    [
        {"fields": ["data.name"], "unique": True},
        {"fields": ["data.name desc"]},
        {"fields": ["lower(data.name)"]},
        {"fields": ["data.n"]},
        {"fields": []},
        {"fields": ["data.name", "data.name"]},
    ],
)
def test_a_full_text_index_is_of_texts_and_nothing_else(declared: dict[str, object]) -> None:
    types = {("n",): frozenset({"integer"}), ("name",): frozenset({"string"})}
    with pytest.raises(InvalidArgument, match="index"):
        parse_index(**declared, full_text=True, field_types=types)  # type: ignore[arg-type]
