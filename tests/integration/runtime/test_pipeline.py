"""Several statements in one round trip."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import psutil
import psycopg
import pytest
import uvloop
from psycopg.pq import TransactionStatus

from services.runtime.database import (
    Connection,
    Database,
    Statement,
    packed_bool,
    packed_bytea,
    packed_few,
    packed_int8,
    packed_jsonb,
    packed_text,
    packed_timestamptz,
    pipeline,
)
from services.runtime.pipeline import MAX_REMEMBERED

ONE = Statement("SELECT 1")


@pytest.fixture
async def database(log_url: str) -> AsyncIterator[Database]:
    made = Database(log_url)
    yield made
    await made.close()


@pytest.fixture
async def connection(database: Database) -> AsyncIterator[Connection]:
    async with database.connection() as lent:
        yield lent


async def wait_until(postgres: str, query: str, *, runs: bool) -> None:
    """Return when some connection runs *query*, or none does any more."""
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as admin:
        for _ in range(1000):
            found = await admin.execute(
                "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query = %s", (query,)
            )
            if bool(await found.fetchall()) is runs:
                return
            await asyncio.sleep(0.01)
    raise AssertionError(query)


async def test_each_statement_has_its_rows_in_the_order_of_sending(connection: Connection) -> None:
    moment = datetime(2026, 11, 22, 12, 0, 0, 1, UTC)
    for _ in range(3):  # unprepared, while it is prepared, prepared
        assert await pipeline(
            connection,
            ONE,
            Statement("CREATE TEMPORARY TABLE IF NOT EXISTS t (n int)"),
            Statement(
                "SELECT * FROM unnest(%s::text[], %s::timestamptz[])",
                (packed_text(["ä", ""]), packed_timestamptz([None, moment])),
            ),
            Statement("SELECT %s::timestamptz, %s::bytea, %s::text, NULL::text", (moment, b"\0\xff", "%")),
            Statement("SELECT n FROM t"),
        ) == [[(1,)], [], [("ä", None), ("", moment)], [(moment, b"\0\xff", "%", None)], []]


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 300])
async def test_arrays_of_any_length_arrive_as_they_were(connection: Connection, length: int) -> None:
    numbers = [(-1) ** number * (number << 40) for number in range(length)]
    texts = ["ä" * (number % 3) for number in range(length)]
    raws = [bytes((number % 256,)) * (number % 5) for number in range(length)]
    arrays = (
        packed_int8(numbers),
        packed_text(texts),
        packed_few(texts),
        packed_bytea(raws),
        packed_bool(number > 0 for number in numbers),
        packed_jsonb(json.dumps({"n": number}).encode() for number in numbers),
    )
    select = Statement(
        "SELECT * FROM unnest(%s::int8[], %s::text[], %s::text[], %s::bytea[], %s::bool[], %s::jsonb[])", arrays
    )
    (rows,) = await pipeline(connection, select)
    assert rows == [
        (number, text, text, raw, number > 0, {"n": number})
        for number, text, raw in zip(numbers, texts, raws, strict=True)
    ]


async def test_a_percent_sign_is_doubled_only_beside_parameters(connection: Connection) -> None:
    rows = await pipeline(connection, Statement("SELECT 7 % 4"), Statement("SELECT 7 %% %s::int", (4,)))
    assert rows == [[(3,)], [(3,)]]


async def test_one_statement_takes_parameters_of_different_types(connection: Connection) -> None:
    for value in (1, 2**40, "3", None, 4, 2**40):
        (((text,),),) = await pipeline(connection, Statement("SELECT (%s)::text", (value,)))
        assert text == (None if value is None else str(value))


async def test_the_first_failure_is_raised_and_nothing_after_it_is_run(connection: Connection) -> None:
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await pipeline(
                connection,
                Statement("BEGIN"),
                Statement("SELECT 1/0"),
                Statement("SELECT nonsense"),
                Statement("COMMIT"),
            )
        assert connection.info.transaction_status == TransactionStatus.INERROR
        await connection.rollback()
    assert await pipeline(connection, ONE) == [[(1,)]]


async def test_a_statement_that_cannot_be_prepared_fails_each_time_it_comes(connection: Connection) -> None:
    for _ in range(4):
        with pytest.raises(psycopg.errors.UndefinedTable):
            await pipeline(connection, ONE, Statement("SELECT * FROM nowhere"))
    assert await pipeline(connection, ONE) == [[(1,)]]


async def test_megabytes_go_both_ways_at_once(connection: Connection) -> None:
    big = packed_bytea([bytes(2**20)])
    rows = await pipeline(connection, *[Statement("SELECT * FROM unnest(%s::bytea[])", (big,)) for _ in range(24)])
    assert [len(value) for ((value,),) in rows] == [2**20] * 24


async def test_a_statement_that_comes_many_times_at_once_is_prepared_once(connection: Connection) -> None:
    again = [Statement("SELECT %s::int + 1", (number,)) for number in range(1000)]
    assert await pipeline(connection, *again) == [[(number + 1,)] for number in range(1000)]
    assert await pipeline(connection, *again) == [[(number + 1,)] for number in range(1000)]
    (((count,),),) = await pipeline(connection, Statement("SELECT count(*) FROM pg_prepared_statements"))
    assert count == 1


async def test_a_connection_remembers_a_bounded_number_of_statements(connection: Connection) -> None:
    held = Statement("SELECT count(*) FROM pg_prepared_statements")
    for number in range(3 * MAX_REMEMBERED):
        statement = Statement(f"SELECT {number} + %s::int", (1,))
        for _ in range(2):
            assert await pipeline(connection, statement) == [[(number + 1,)]]
        if number % 50 == 0:
            (((count,),),) = await pipeline(connection, held)
            assert count <= MAX_REMEMBERED


async def test_what_is_cancelled_stops_on_the_server_and_closes_its_connection(
    database: Database, postgres: str
) -> None:
    sleep = Statement("SELECT pg_sleep(60)")
    reading = asyncio.create_task(database.read("tides", ONE, sleep))
    await wait_until(postgres, sleep.sql, runs=True)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await wait_until(postgres, sleep.sql, runs=False)
    assert await database.read("tides", ONE) == [[(1,)]]


async def test_cancelling_at_any_moment_never_mixes_up_answers(database: Database) -> None:
    async def read(number: int) -> None:
        assert await database.read("tides", Statement("SELECT %s::int4", (number,))) == [[(number,)]]

    for turns in range(30):
        cancelled = asyncio.create_task(read(-1))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.gather(*(read(number) for number in range(12)))
        await asyncio.wait([cancelled])


async def test_the_reason_why_the_server_hung_up_is_told(connection: Connection, postgres: str) -> None:
    sleep = Statement("SELECT pg_sleep(61)")
    waiting = asyncio.create_task(pipeline(connection, sleep))
    await wait_until(postgres, sleep.sql, runs=True)
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as admin:
        await admin.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
    with pytest.raises(psycopg.errors.AdminShutdown):
        await waiting
    assert connection.closed


async def test_a_value_that_cannot_be_sent_spoils_no_other_read(database: Database) -> None:
    with pytest.raises(psycopg.ProgrammingError):
        await database.read("tides", ONE, Statement("SELECT %s", (object(),)))
    assert await database.read("tides", ONE) == [[(1,)]]


async def test_trips_and_statements_of_psycopg_itself_take_turns(connection: Connection) -> None:
    for number in range(3):
        assert await pipeline(connection, Statement("SELECT %s::int4", (number,))) == [[(number,)]]
        async with connection.transaction():
            cursor = await connection.execute("SELECT pg_sleep(0.01), %s::int4", (number,))
            assert (await cursor.fetchall())[0][1] == number
        assert await pipeline(connection, ONE, ONE) == [[(1,)], [(1,)]]


async def test_an_idle_connection_that_the_server_closed_is_looked_at_once(
    connection: Connection, postgres: str
) -> None:
    await pipeline(connection, ONE)
    looks = 0
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()
    ours = connection._on_readable

    def on_readable() -> None:
        nonlocal looks
        looks += 1
        looked.set()
        ours()

    assert connection._watched_by is loop
    loop.add_reader(connection._descriptor, on_readable)
    async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as admin:
        await admin.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
    await asyncio.wait_for(looked.wait(), 30)
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert looks == 1
    with pytest.raises(psycopg.OperationalError):
        await pipeline(connection, ONE)


async def test_a_connection_that_is_closed_leaves_nothing_open(database: Database) -> None:
    async with database.connection() as first:
        await pipeline(first, ONE)
    socket = os.fstat(first._descriptor).st_ino
    assert open_inodes().count(socket) == 2
    await database.discard_idle()
    assert first.closed
    assert socket not in open_inodes()
    assert await database.read("tides", ONE) == [[(1,)]]


def open_inodes() -> list[int]:
    """What this process has open, an inode for each descriptor."""
    inodes = []
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # that of the folder itself
            inodes.append(os.fstat(int(name)).st_ino)
    return inodes


def test_a_server_that_dies_before_it_has_read_everything_ends_the_trip(log_url: str) -> None:
    """On the loop of the services: it tells of a socket's first error once, together with the last words before it."""

    async def ask_one_that_dies() -> None:
        connection = await Connection.connect(log_url, autocommit=True)
        try:
            server = psutil.Process(connection.pgconn.backend_pid)
            server.suspend()
            # More than the server takes at once, so that some is left unread when it goes.
            trip = asyncio.create_task(pipeline(connection, Statement("SELECT %s::text", ("x" * 100_000,))))
            await asyncio.sleep(0)
            # From here on the loop does not look: it finds last words and error together.
            server.terminate()
            server.resume()
            server.wait(30)
            with pytest.raises(psycopg.errors.AdminShutdown):
                await asyncio.wait_for(trip, 15)
        finally:
            await connection.close()

    uvloop.run(ask_one_that_dies())
