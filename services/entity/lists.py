"""Lists: plan by the type as it is, walk one range, and say where the next page begins."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from services.entity.catalog import Catalog
from services.entity.content import CompiledType
from services.entity.index_keys import parse_order_by
from services.entity.list_queries import Position, Walk, page_statement
from services.entity.model import MAX_ANSWER_BYTES, IndexState
from services.entity.planned_reads import read_planned
from services.entity.planner import Indexes, Plan, index_not_ready, plan_list
from services.entity.searches import full_text_index, parse_search, plan_search, rarest, select_frequencies
from services.runtime import wire
from services.runtime.call import MinRevision, Namespace
from services.runtime.changelog import Head
from services.runtime.database import Database, Row, Statement
from services.runtime.errors import FailedPrecondition, invalid_field
from services.runtime.filters import parse_filter
from services.runtime.filters.ast import Node, data_paths
from services.runtime.page_tokens import list_binding, open_token, page_size, seal


@dataclass(frozen=True, slots=True)
class Query:
    """What a list asks for."""

    type_id: str
    filter: str
    order_by: str
    page_size: int
    page_token: str
    show_deleted: bool
    search: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Serialized entities, and the token of the next page; it is empty at the end, and only there."""

    head: Head
    messages: Sequence[bytes]
    next_page_token: str


class Lister:
    """Lists the entities of a type."""

    def __init__(self, database: Database, types: Catalog, token_key: bytes) -> None:
        self._database = database
        self._types = types
        self._token_key = token_key

    async def page(self, namespace: Namespace, query: Query, minimum: MinRevision) -> Page:
        """One page; rows, head and type are of one snapshot.

        Raises:
            NotFound: there is no such type.
            InvalidArgument: filter, order or token.
            FailedPrecondition: INDEX_REQUIRED; or a minimum that does not exist.
        """
        binding = list_binding(
            namespace=namespace.id,
            type_id=query.type_id,
            filter=query.filter,
            order_by=query.order_by,
            show_deleted=query.show_deleted,
            search=query.search,
        )
        token = query.page_token
        after = decode_position(open_token(self._token_key, binding, token)) if token else None
        limit = page_size(query.page_size) + 1
        planned = Plan()

        async def plan(compiled: CompiledType, max_examined: int) -> list[Statement]:
            nonlocal planned
            if query.search:
                planned = await self._plan_search(namespace, compiled, query, after)
            else:
                planned = plan_query(compiled, query, after)
            if planned.empty:
                return []
            walk = Walk(
                namespace.id, query.type_id, planned, after, query.show_deleted, limit, max_examined, MAX_ANSWER_BYTES
            )
            return [page_statement(walk)]

        head, max_examined, rows = await read_planned(
            self._database, self._types, namespace, query.type_id, minimum, plan
        )
        messages, end = fill_page(rows[0] if rows else [], page_size(query.page_size), max_examined)
        position = encode_position(Position(planned.index_id, end[0], end[1])) if end is not None else b""
        return Page(head, messages, seal(self._token_key, binding, position) if position else "")

    async def _plan_search(
        self, namespace: Namespace, compiled: CompiledType, query: Query, after: Position | None
    ) -> Plan:
        """The walk of one of the words; one that goes on after a position stays in that word."""
        keys = parse_search(query.search, query.order_by)
        index = full_text_index(compiled, after.index_id if after is not None else None)
        walked = keys[0]
        if after is not None:
            walked = after.key
        elif len(keys) > 1:
            (rows,) = await self._database.read(namespace.id, select_frequencies(namespace.id, index.id, keys))
            walked = rarest(rows)
        return plan_search(keys, walked, index.id, checked_filter(query.filter, compiled))


def plan_query(compiled: CompiledType, query: Query, after: Position | None) -> Plan:
    """The walk for *query*; one that goes on after a position stays in the index of that position."""
    ready = ready_indexes(compiled)
    if after is not None:
        ready = [(index_id, spec) for index_id, spec in ready if index_id == after.index_id]
        if after.index_id is not None and not ready:
            raise invalid_field(
                "page_token", "the index that it walked is gone; begin again", reason="PAGE_TOKEN_INVALID"
            )
    return plan_ordered(checked_filter(query.filter, compiled), query.order_by, compiled, ready)


def plan_ordered(
    filter: Node | None, order_by: str, compiled: CompiledType, indexes: Indexes, name: str = "order_by"
) -> Plan:
    """The walk for *filter* in the order *order_by* by one of *indexes*, of the READY ones of the type.

    Raises:
        InvalidArgument: the order.
        FailedPrecondition: ``INDEX_REQUIRED``; if an index that would serve is there, ``state`` says why it does not.
    """
    compiled.check_fields((field.path for field in parse_order_by(order_by, name)), name)
    try:
        return plan_list(filter, order_by, indexes, compiled.field_types, name)
    except FailedPrecondition:
        waiting = []
        for index in compiled.type.indexes:
            if index.state == IndexState.READY or index.spec.full_text:
                continue
            with suppress(FailedPrecondition):
                plan_list(filter, order_by, [(index.id, index.spec)], compiled.field_types)
                waiting.append(index)
        if waiting:
            raise index_not_ready(min(waiting, key=lambda index: index.state)) from None
        raise


def ready_indexes(compiled: CompiledType) -> Indexes:
    """The ordered indexes that a plan may use."""
    return [
        (index.id, index.spec)
        for index in compiled.type.indexes
        if index.state == IndexState.READY and not index.spec.full_text
    ]


@lru_cache(maxsize=1000)
def checked_filter(text: str, compiled: CompiledType) -> Node | None:
    """The filter of a list of what is stored now: besides, it names no field that the type does not have."""
    node = parsed_filter(text, compiled)
    compiled.check_fields(data_paths(node) if node is not None else (), "filter")
    return node


@lru_cache(maxsize=1000)
def parsed_filter(text: str, compiled: CompiledType) -> Node | None:
    """The filter, checked against the type; parsing costs more than a page, hence the cache."""
    return parse_filter(text, compiled.field_types, of_entity=True)


def fill_page(rows: Sequence[Row], size: int, max_examined: int) -> tuple[list[bytes], Row | None]:
    """The messages of a page of *size*, and the last row examined for it if there may be more behind."""
    messages: list[bytes] = []
    last: Row | None = None
    for row in rows:
        _, _, examined, matched, message = row
        if matched and (len(messages) == size or message is None):
            return messages, last
        if matched:
            messages.append(message)
        last = row
        if examined == max_examined:
            return messages, last
    return messages, None


def encode_position(position: Position) -> bytes:
    """*position* as it stands in a token."""
    return wire.varint(position.index_id or 0) + wire.varint(len(position.key)) + position.key + position.id.encode()


def decode_position(raw: bytes) -> Position:
    """The inverse of ``encode_position``; *raw* was sealed, so it is well-formed."""
    index_id, raw = _read_varint(raw)
    length, raw = _read_varint(raw)
    return Position(index_id or None, raw[:length], raw[length:].decode())


def _read_varint(raw: bytes) -> tuple[int, bytes]:
    value, shift = 0, 0
    for place, byte in enumerate(raw):
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, raw[place + 1 :]
    raise AssertionError("a sealed position is whole")
