"""PostgreSQL as the hot paths use it: own connections, pipelined round trips, arrays packed by hand.

psycopg's dumping of lists costs more than the insert itself (2.5 times measured over packed arrays), and a pool that
checks connections in and out costs a third of a point read; hence ``packed`` and the free list.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import postgres
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

from services.runtime.pipeline import Connection, Row, Statement, pipeline
from services.runtime.wire import EPOCH

__all__ = [
    "Connection",
    "Database",
    "PackedArray",
    "Row",
    "Statement",
    "packed_bool",
    "packed_bytea",
    "packed_few",
    "packed_int8",
    "packed_jsonb",
    "packed_text",
    "packed_timestamptz",
    "pipeline",
]

# Seconds to wait for a connection before the caller hears UNAVAILABLE.
CONNECT_TIMEOUT = 5
# Every statement here walks key ranges. A planner without statistics, as in the first minute of an import, prefers to
# read a whole namespace once and compare it with every key: 356 units/s at 1,000 waiting writes instead of 21,000.
# These settings leave it only index walks; joins with an array are fenced by LATERAL besides. A bitmap has no
# order: with one, a page of 51 read and sorted its whole type. A key is looked up once: remembering it gains nothing.
INDEX_WALKS_ONLY = (
    "-c enable_seqscan=off -c enable_bitmapscan=off -c enable_hashjoin=off -c enable_mergejoin=off "
    "-c enable_material=off -c enable_memoize=off -c plan_cache_mode=force_generic_plan"
)


class Database:
    """A bounded set of connections to one database, opened when needed.

    Raises ``psycopg.OperationalError`` when the database does not answer; callers see UNAVAILABLE.
    """

    def __init__(self, url: str, *, size: int = 8) -> None:
        self._url = url
        self._free: list[Connection] = []
        self._slots = asyncio.Semaphore(size)
        self._closed = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection in autocommit mode, idle before and after; one that is in any other state is closed."""
        async with self._slots:
            connection = self._free.pop() if self._free else await self._connect()
            try:
                yield connection
            finally:
                idle = connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
                if idle and not self._closed:
                    self._free.append(connection)
                else:
                    await connection.close()

    async def _connect(self) -> Connection:
        # psycopg itself prepares nothing: what it believes to be prepared, ``pipeline`` may have dropped.
        return await Connection.connect(
            self._url,
            autocommit=True,
            prepare_threshold=None,
            connect_timeout=CONNECT_TIMEOUT,
            options=INDEX_WALKS_ONLY,
        )

    async def read(self, namespace: str, *statements: Statement) -> list[list[Row]]:
        """Rows of each statement, all from one snapshot, with row-level security set to *namespace*."""
        begin = Statement("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        choose = Statement("SELECT set_config('app.namespace', %s, true)", (namespace,))
        rows = await self._read(begin, choose, *statements, Statement("COMMIT"))
        return rows[2:-1]

    async def write(self, namespace: str, *statements: Statement) -> list[list[Row]]:
        """Rows of each statement, committed together, with row-level security set to *namespace*."""
        choose = Statement("SELECT set_config('app.namespace', %s, true)", (namespace,))
        rows = await self._trip((Statement("BEGIN"), choose, *statements, Statement("COMMIT")))
        return rows[2:-1]

    async def read_one(self, statement: Statement) -> list[Row]:
        """Rows of a *statement* that sets the namespace by itself, and so needs no transaction around it."""
        (rows,) = await self._read(statement)
        return rows

    async def _read(self, *statements: Statement) -> list[list[Row]]:
        try:
            return await self._trip(statements)
        except psycopg.errors.QueryCanceled:
            raise  # it took too long, and would again
        except psycopg.OperationalError:
            # Idle connections die with the server they were to; a read can simply be repeated on a new one.
            await self.discard_idle()
            return await self._trip(statements)

    async def _trip(self, statements: Sequence[Statement]) -> list[list[Row]]:
        async with self.connection() as connection:
            return await pipeline(connection, *statements)

    async def discard_idle(self) -> None:
        """Close idle connections: their server may be gone."""
        while self._free:
            await self._free.pop().close()

    async def close(self) -> None:
        """Close idle connections, and from now on each one that is given back."""
        self._closed = True
        await self.discard_idle()


class PackedArray:
    """An array parameter, already in PostgreSQL's binary format."""

    __slots__ = ("oid", "payload")

    def __init__(self, oid: int, payload: bytes) -> None:
        self.oid = oid
        self.payload = payload


_OIDS = {
    name: (postgres.types[name].oid, postgres.types[name].array_oid)
    for name in ("bool", "bytea", "int8", "jsonb", "text", "timestamptz")
}
_HEADER = struct.Struct("!IIIII")  # dimensions, has nulls, element oid, length, lower bound
_LENGTH = struct.Struct("!i")
_LENGTH_AND_VERSION = struct.Struct("!iB")
_TRUE = b"\x00\x00\x00\x01\x01"
_FALSE = b"\x00\x00\x00\x01\x00"
_NULL = b"\xff\xff\xff\xff"
_INT8 = struct.Struct("!Iq")
_MANY = 128  # numbers that are packed in one call
_POSTGRES_EPOCH = timedelta(days=10957)  # 2000-01-01


def _packed(type_name: str, parts: Sequence[bytes], length: int | None = None, *, nulls: bool = False) -> PackedArray:
    """An array of *length* elements, each behind its own length; None: each of *parts* is one."""
    oid, array_oid = _OIDS[type_name]
    length = len(parts) if length is None else length
    header = _HEADER.pack(1, int(nulls), oid, length, 1) if length else struct.pack("!III", 0, 0, oid)
    return PackedArray(array_oid, header + b"".join(parts))


@lru_cache(maxsize=_MANY)
def _lengths_and_numbers(count: int) -> struct.Struct:
    return struct.Struct("!" + "Iq" * count)


def packed_text(values: Iterable[str]) -> PackedArray:
    """``text[]``."""
    pack = _LENGTH.pack
    return _packed("text", [pack(len(raw)) + raw for raw in map(str.encode, values)])


def packed_few(values: Iterable[str]) -> PackedArray:
    """``text[]`` of few different values, such as types or principals."""
    texts = list(values)
    pack = _LENGTH.pack
    packed = {text: pack(len(raw := text.encode())) + raw for text in set(texts)}
    return _packed("text", [packed[text] for text in texts])


def packed_bytea(values: Iterable[bytes]) -> PackedArray:
    """``bytea[]``."""
    pack = _LENGTH.pack
    return _packed("bytea", [pack(len(value)) + value for value in values])


def packed_jsonb(values: Iterable[bytes]) -> PackedArray:
    """``jsonb[]`` from UTF-8 JSON (the leading 1 is the version of jsonb's binary format)."""
    pack = _LENGTH_AND_VERSION.pack
    return _packed("jsonb", [pack(len(value) + 1, 1) + value for value in values])


def packed_int8(values: Iterable[int]) -> PackedArray:
    """``int8[]``."""
    numbers = list(values)
    parts = []
    for begin in range(0, len(numbers), _MANY):
        some = numbers[begin : begin + _MANY]
        with_lengths = [8] * (2 * len(some))
        with_lengths[1::2] = some
        parts.append(_lengths_and_numbers(len(some)).pack(*with_lengths))
    return _packed("int8", parts, len(numbers))


def packed_bool(values: Iterable[bool]) -> PackedArray:
    """``bool[]``."""
    return _packed("bool", [_TRUE if value else _FALSE for value in values])


def packed_timestamptz(values: Iterable[datetime | None]) -> PackedArray:
    """``timestamptz[]``, in microseconds."""
    elements = list(values)
    return _packed(
        "timestamptz",
        [_NULL if moment is None else _packed_moment(moment) for moment in elements],
        nulls=None in elements,
    )


@lru_cache(maxsize=2048)  # that of a commit is in the log, and in what was created
def _packed_moment(moment: datetime) -> bytes:
    return _INT8.pack(8, (moment - EPOCH - _POSTGRES_EPOCH) // timedelta(microseconds=1))


class _PackedDumper(Dumper):
    format = Format.BINARY

    def get_key(self, obj: PackedArray, format: Any) -> Any:
        return (self.cls, obj.oid)

    def upgrade(self, obj: PackedArray, format: Any) -> Dumper:
        dumper = _PackedDumper(self.cls)
        dumper.oid = obj.oid
        return dumper

    def dump(self, obj: PackedArray) -> Buffer:
        return obj.payload


psycopg.adapters.register_dumper(PackedArray, _PackedDumper)
