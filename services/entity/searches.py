"""``search``: entities that hold all the words, by one full-text index.

The page walks the range of one word, the rarest as far as a look at 1,000 entries of each tells, in the order of ids;
the other words are probed for each entity, and the filter is residual. So it costs no more than a page of a list.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from services.entity.content import CompiledType
from services.entity.index_keys import MAX_FIELDS, encode, prefix_range
from services.entity.model import Index, IndexState
from services.entity.planner import Plan, index_not_ready
from services.entity.words import words
from services.runtime.database import Row, Statement, packed_bytea
from services.runtime.errors import FailedPrecondition, invalid_field
from services.runtime.filters.ast import Node
from services.runtime.filters.paths import render_path
from services.runtime.filters.types import ITEMS

MAX_WORDS: Final = 16
"""Words of a search."""
_LOOK: Final = 1000


def parse_search(text: str, order_by: str) -> tuple[bytes, ...]:
    """The keys of the distinct words of *text*.

    Raises:
        InvalidArgument: ``INVALID_FIELD``: it has no words or too many, or an order is asked for.
    """
    if order_by.strip():
        raise invalid_field("order_by", "search answers in the order of ids; leave order_by out")
    keys = tuple(dict.fromkeys(encode(word) for word in words(text)))
    if not 1 <= len(keys) <= MAX_WORDS:
        raise invalid_field("search", f"must hold 1 to {MAX_WORDS} words, found {len(keys)}")
    return keys


def full_text_index(compiled: CompiledType, index_id: int | None) -> Index:
    """The READY full-text index of the type that was declared first; *index_id* says which one it must be.

    Raises:
        FailedPrecondition: ``INDEX_REQUIRED``.
    """
    for index in compiled.type.indexes:
        if index.spec.full_text and index.state == IndexState.READY and index_id in (None, index.id):
            return index
    waiting = [index for index in compiled.type.indexes if index.spec.full_text and index.state != IndexState.READY]
    if waiting and index_id is None:
        raise index_not_ready(min(waiting, key=lambda index: index.state))
    texts = sorted(
        render_path(path[:-1] if path[-1] == ITEMS else path)
        for path, kinds in compiled.field_types.items()
        if "string" in kinds
    )
    suggestion = json.dumps({"fields": texts[:MAX_FIELDS], "kind": "FULL_TEXT"}, ensure_ascii=False)
    raise FailedPrecondition(
        "INDEX_REQUIRED", f"search needs a READY full-text index; declare the index {suggestion}", index=suggestion
    )


def select_frequencies(namespace: str, index_id: int, keys: Sequence[bytes]) -> Statement:
    """Rows (key, live entities that hold the word, counted up to 1,000)."""
    return Statement(
        """SELECT k.key, c.there FROM unnest(%s::bytea[]) AS k (key)
        CROSS JOIN LATERAL (SELECT count(*) AS there FROM (SELECT FROM index_entries
            WHERE namespace = %s AND index_id = %s AND NOT deleted AND key = k.key LIMIT %s) looked OFFSET 0) c""",
        (packed_bytea(keys), namespace, index_id, _LOOK),
    )


def rarest(rows: Sequence[Row]) -> bytes:
    """The key of the rarest word in the rows of ``select_frequencies``; of equals the first by bytes."""
    return bytes(min((there, key) for key, there in rows)[1])


def plan_search(keys: Sequence[bytes], walked: bytes, index_id: int, residual: Node | None) -> Plan:
    """Walk the word *walked* of *keys*, and probe the others."""
    lower, upper = prefix_range(walked)
    return Plan(index_id, lower, upper, residual=residual, words=tuple(key for key in keys if key != walked))
