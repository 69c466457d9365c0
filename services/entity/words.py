"""Words of a text, for full-text indexes and for what is searched in them: one function for both.

A word is a run of letters, digits and marks, in compatibility form (NFKD) without combining marks, folded as filters
fold. So ``Zürich`` is found by ``zurich``, ``ﬁn`` by ``fin``. There is no stemming and there are no stop words: what
the index holds must not change with a dictionary. Made in Python and not by ``to_tsvector`` because the keys of an
entity are worked out before it is stored, and must come out the same in every process for as long as the index lives.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

from services.runtime.filters.folding import fold

MAX_WORDS: Final = 256
"""Distinct words of an entity in one index; those that come later in it are not found."""
MAX_LENGTH: Final = 64
"""Characters of a word; the rest of a longer one does not count."""
_WORD: Final = re.compile(r"[^\W_]+")


def words(text: str) -> Iterator[str]:
    """The words of *text* in their order, with repetitions."""
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(char for char in decomposed if not unicodedata.combining(char))
    for match in _WORD.finditer(fold(text)):
        yield match[0][:MAX_LENGTH]


def words_of(value: Any) -> Iterator[str]:
    """The words of a text, and of each text in an array; nothing else has any."""
    if isinstance(value, str):
        yield from words(value)
    elif isinstance(value, list):
        for element in value:
            if isinstance(element, str):
                yield from words(element)
