"""Several statements in one round trip, directly over libpq.

psycopg's own pipeline takes 140 to 200 us of CPU for the five statements of a read: generators, a timer for each wait,
an adapter cache for each cursor. psycopg still connects, adapts values and names the errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import select
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, LiteralString, TypeAlias

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult

Row: TypeAlias = tuple[Any, ...]

MAX_REMEMBERED: Final = 200
"""Statements that a connection remembers: lists with filters make new ones without end."""
CANCEL_SECONDS: Final = 1.0
_PARAMETER = re.compile(r"%([s%])")
_GOOD = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK, ExecStatus.EMPTY_QUERY)
_Key: TypeAlias = tuple[str, tuple[int, ...]]  # SQL, and the types of its parameters


@dataclass(frozen=True, slots=True)
class Statement:
    """One SQL statement with its parameters (``%s``)."""

    sql: LiteralString
    params: tuple[Any, ...] = ()


class Connection(psycopg.AsyncConnection[Row]):
    """psycopg's connection, and what ``pipeline`` keeps with it."""

    def __init__(self, pgconn: PGconn) -> None:
        super().__init__(pgconn)
        self.transformer = Transformer(self)
        self.prepared: dict[_Key, bytes] = {}
        """Names of the statements that the server has prepared."""
        self.seen: set[_Key] = set()
        """Those that came once: preparing a statement pays when it comes again."""
        self.names = (b"s%d" % number for number in itertools.count())
        self._trip: _RoundTrip | None = None
        # A descriptor of our own for the socket: psycopg may wait at the other one, and libpq close it.
        self._descriptor = -1
        self._poll = select.poll()
        self._watched_by: asyncio.AbstractEventLoop | None = None

    def watch(self, trip: _RoundTrip) -> None:
        """Tell *trip* when there is something to read.

        The loop goes on watching between trips: to begin and to end that took a tenth of a read's CPU.
        """
        self._trip = trip
        loop = asyncio.get_running_loop()
        if self._watched_by is not loop:
            if self._descriptor < 0:
                self._descriptor = os.dup(self.pgconn.socket)
                self._poll.register(self._descriptor, select.POLLIN)
            loop.add_reader(self._descriptor, self._on_readable)
            self._watched_by = loop

    def rest(self) -> None:
        """No trip is under way."""
        self._trip = None

    def _on_readable(self) -> None:
        if self._trip is None:
            self._unwatch()  # psycopg reads by itself, or the server has hung up
            return
        self._trip.on_readable()
        # An answer usually comes in one piece. If not, all there is has to be taken now: uvloop tells of an error on
        # the socket once, and the server's last words may come with it.
        while self._trip is not None and self._poll.poll(0):
            self._trip.on_readable()

    def _unwatch(self) -> None:
        if self._watched_by is not None and not self._watched_by.is_closed():
            self._watched_by.remove_reader(self._descriptor)
        self._watched_by = None

    async def close(self) -> None:
        """Close the connection; once more is no error."""
        self._unwatch()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        await super().close()


async def pipeline(connection: Connection, *statements: Statement) -> list[list[Row]]:
    """Send all *statements* in one round trip; the rows of each, empty for those without.

    Raises:
        psycopg.Error: of the first statement that failed; those after it were not run.
    """
    if len(connection.prepared) + len(connection.seen) >= MAX_REMEMBERED:
        connection.prepared.clear()
        connection.seen.clear()
        await pipeline(connection, Statement("DEALLOCATE ALL"))
    trip = _RoundTrip(connection)
    try:
        trip.send(statements)
        await trip.receive()
    except BaseException:
        await _abandon(connection)
        raise
    return trip.rows()


async def _abandon(connection: Connection) -> None:
    """Close *connection*: what is under way shall neither run on for nobody nor answer whoever comes next."""
    try:
        if connection.pgconn.status == ConnStatus.OK:
            with contextlib.suppress(psycopg.Error):
                await connection.cancel_safe(timeout=CANCEL_SECONDS)
    finally:
        await connection.close()


class _RoundTrip:
    """What was sent, and what has come back so far."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._writing_to = -1
        # What each result that is to come will say to be prepared; None: it is the answer of a statement.
        self._expected: deque[tuple[_Key, bytes] | None] = deque()
        # Names given on this trip: a statement that comes a thousand times in it is still prepared once.
        self._named: dict[_Key, bytes] = {}
        self._answers: list[PGresult] = []
        self._failure: psycopg.Error | None = None

    def send(self, statements: Sequence[Statement]) -> None:
        """Hand *statements* to libpq, which writes as much as the socket takes."""
        self._pgconn.enter_pipeline_mode()
        for statement in statements:
            self._send(statement)
        self._pgconn.pipeline_sync()

    def _send(self, statement: Statement) -> None:
        connection, pgconn, params = self._connection, self._pgconn, statement.params
        values: Sequence[Buffer | None] = ()
        types: tuple[int, ...] = ()
        formats: Sequence[int] = ()
        if params:
            transformer = connection.transformer
            values = transformer.dump_sequence(params, [PyFormat.AUTO] * len(params))
            types, formats = transformer.types or (), transformer.formats or ()
        key = (statement.sql, types)
        name = connection.prepared.get(key) or self._named.get(key)
        if name is None and key in connection.seen:
            name = self._named[key] = next(connection.names)
            pgconn.send_prepare(name, _as_libpq(statement), types)
            self._expected.append((key, name))
        if name is None:
            connection.seen.add(key)
            pgconn.send_query_params(_as_libpq(statement), values, types, formats, Format.BINARY)
        else:
            pgconn.send_query_prepared(name, values, formats, Format.BINARY)
        self._expected.append(None)

    async def receive(self) -> None:
        """Wait until everything is answered.

        Raises:
            psycopg.OperationalError: the connection is lost.
        """
        self._connection.watch(self)
        if self._pgconn.flush():
            self._writing_to = self._pgconn.socket
            self._loop.add_writer(self._writing_to, self._on_writable)
        try:
            await self._ended
        finally:
            self._end(None)

    def _end(self, failure: psycopg.Error | None) -> None:
        self._connection.rest()
        # At once, and once: a socket that libpq has closed may have become another's.
        if self._writing_to >= 0:
            self._loop.remove_writer(self._writing_to)
            self._writing_to = -1
        if not self._ended.done():
            if failure is None:
                self._ended.set_result(None)
            else:
                self._ended.set_exception(failure)

    def _on_writable(self) -> None:
        try:
            if not self._pgconn.flush():
                self._loop.remove_writer(self._writing_to)
                self._writing_to = -1
        except psycopg.OperationalError as failure:
            self._end(self._failure or failure)

    def on_readable(self) -> None:
        """Take what has come."""
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
            between = False
            while not pgconn.is_busy():
                result = pgconn.get_result()
                if result is None:
                    # The first None ends an answer; after the second there is nothing to be had.
                    if between:
                        return
                    between = True
                elif result.status == ExecStatus.PIPELINE_SYNC:
                    pgconn.exit_pipeline_mode()
                    self._end(None)
                    return
                else:
                    between = False
                    self._take(result)
        except psycopg.OperationalError as failure:
            # If the server said why it hung up, that tells more than that it did.
            self._end(self._failure or failure)

    def _take(self, result: PGresult) -> None:
        if result.status not in _GOOD:
            # All that comes after a failure says only that it was not run.
            self._failure = self._failure or error_from_result(result)
            return
        prepared = self._expected.popleft()
        if prepared is None:
            self._answers.append(result)
        else:
            key, name = prepared
            self._connection.prepared[key] = name

    def rows(self) -> list[list[Row]]:
        """The rows of each statement.

        Raises:
            psycopg.Error: a statement failed.
        """
        if self._failure is not None:
            raise self._failure
        return [self._decoded(answer) for answer in self._answers]

    def _decoded(self, answer: PGresult) -> list[Row]:
        if answer.status != ExecStatus.TUPLES_OK:
            return []
        transformer = self._connection.transformer
        transformer.set_pgresult(answer, format=Format.BINARY)
        return transformer.load_rows(0, answer.ntuples, tuple)


def _as_libpq(statement: Statement) -> bytes:
    return _numbered(statement.sql) if statement.params else statement.sql.encode()


@lru_cache(maxsize=1000)
def _numbered(sql: str) -> bytes:
    """*sql* with ``$1``, ``$2``... for each ``%s``."""
    numbers = itertools.count(1)
    return _PARAMETER.sub(lambda match: "%" if match[1] == "%" else f"${next(numbers)}", sql).encode()
