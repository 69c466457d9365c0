"""The database goes away in the middle: answers stay right."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

import grpc
import psycopg

from tests.integration.entity.conftest import Deployment, Replica, Shore, error_info, eventually

CUT = b"SELECT pg_terminate_backend(pid)::int FROM pg_stat_activity WHERE usename = 'entity_app'"
Superuser: TypeAlias = psycopg.AsyncConnection[tuple[int]]
T = TypeVar("T")


@asynccontextmanager
async def commits_that_do_not_answer(deployment: Deployment) -> AsyncIterator[Superuser]:
    """While the block runs, a COMMIT is on disk and waits for a standby that there is not."""
    async with await psycopg.AsyncConnection.connect(deployment.superuser_url, autocommit=True) as connection:
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await connection.execute("SELECT pg_reload_conf()")
        try:
            await wait_until_commits_hang(deployment, connection)
            yield connection
        finally:
            await connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await connection.execute("SELECT pg_reload_conf()")


async def wait_until_commits_hang(deployment: Deployment, connection: Superuser) -> None:
    """The new setting takes hold some time after it was loaded: try commits until one hangs, and let that go on."""
    release = "SELECT pg_cancel_backend(pid)::int FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'"
    async with await psycopg.AsyncConnection.connect(deployment.superuser_url, autocommit=True) as trial:
        async with asyncio.timeout(60):
            while True:
                commit = asyncio.create_task(trial.execute("SELECT pg_logical_emit_message(true, 'trial', '')"))
                while not commit.done():
                    if await (await connection.execute(release, (trial.info.backend_pid,))).fetchall():
                        await commit
                        return
                    await asyncio.sleep(0.005)


async def cut_commits(connection: Superuser, answer: asyncio.Task[T]) -> T:
    """What *answer* is while every COMMIT of the service that hangs is cut off, its own and whatever else there is."""

    async def answered() -> bool:
        await connection.execute(CUT + b" AND wait_event = 'SyncRep'")
        return answer.done()

    await eventually(answered)
    return await answer


async def test_a_write_whose_connection_dies_inside_commit_is_answered_as_committed(
    shore: Shore, replica: Replica
) -> None:
    await shore.declare()
    await shore.create("b0", {"n": 0})
    async with commits_that_do_not_answer(replica.deployment) as connection:
        writes: tuple[Callable[[], Coroutine[Any, Any, Any]], ...] = (
            lambda: shore.create("b1", {"n": 1}),
            lambda: shore.update("b0", {"n": 1}),
            lambda: shore.transact(shore.creating("b2", {}), shore.deleting("b0")),
            lambda: shore.batch(shore.creating("b3", {}), shore.creating("b2", {}), shore.undeleting("b0")),
        )
        answers = []
        for write in writes:
            answers.append(await cut_commits(connection, asyncio.create_task(write())))
    created, updated, transacted, batched = answers
    assert created.entity == await shore.get("b1")
    assert (created.revision, created.entity.revision, created.entity.data["n"]) == (3, 3, 1)
    assert (updated.revision, updated.entity.data["n"]) == (4, 1)
    assert [result.etag for result in transacted.results] == ['"5"', '"5"']
    assert [result.revision for result in batched.results] == [6, 0, 7]
    assert [unit.revision for unit in await shore.units()] == [1, 2, 3, 4, 5, 6, 7]


async def kill_connections(deployment: Deployment, wanted: int) -> None:
    """Cut the service's connections again and again, until *wanted* were cut."""
    cut = 0
    rng = random.Random(1)
    async with await psycopg.AsyncConnection.connect(deployment.superuser_url, autocommit=True) as connection:
        while cut < wanted:
            cut += len(await (await connection.execute(CUT)).fetchall())
            await asyncio.sleep(rng.uniform(0.002, 0.05))


async def test_reads_and_writes_go_on_when_every_connection_dies(shore: Shore, replica: Replica) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    killing = asyncio.create_task(kill_connections(replica.deployment, 20))
    refused = set()
    written = 0
    while not killing.done():
        entity = (await shore.create(f"b{written}", {"n": written}, request_id=f"r{written}")).entity
        written += 1
        try:
            read = await shore.get(entity.name.rsplit("/", 1)[1])
        except grpc.aio.AioRpcError as failure:
            refused.add(error_info(failure).reason)
        else:
            assert read == entity
    await killing
    assert refused <= {"OVERLOADED"}
    assert await shore.head() == written + 1
    assert len(await shore.list_ids(order_by="data.n")) == written
