"""Ids that the services give out."""

from __future__ import annotations

import uuid

from services.runtime.ids import uuid7


def test_ids_are_uuidv7_and_sorted_by_time() -> None:
    made = [uuid7() for _ in range(2000)]
    assert len(set(made)) == 2000
    assert all(uuid.UUID(text).version == 7 and uuid.UUID(text).variant == uuid.RFC_4122 for text in made)
    assert [text[:13] for text in made] == sorted(text[:13] for text in made)
    assert len({text[-12:] for text in made}) == 2000
