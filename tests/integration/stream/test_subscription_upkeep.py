"""What happens to subscriptions while nobody asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString

import psycopg
import pytest
from prometheus_client import REGISTRY
from strandline.stream.v1 import subscription_pb2

from services.stream.request_store import RequestId
from services.stream.subscription_upkeep import SubscriptionUpkeep

from .conftest import TIDES, MakeStream
from .owner import Owner
from .service import StreamService


@dataclass
class Lives:
    """The copy of access rules, as a test wants it."""

    epoch: str | None = TIDES.epoch
    fresh: bool = True

    def epoch_of(self, namespace_id: str) -> str | None:
        return self.epoch


@dataclass
class Kept:
    """A stream service with one subscription, and its upkeep by hand."""

    service: StreamService
    owner: Owner
    upkeep: SubscriptionUpkeep
    lives: Lives

    async def create(self, id: str = "orders") -> None:
        asked = subscription_pb2.Subscription(start=subscription_pb2.Start(after_revision=0))
        await self.service.subscriptions.create(TIDES, id, asked)

    async def execute(self, sql: LiteralString) -> list[tuple[Any, ...]]:
        """Run *sql* on the rows of the namespace; its rows."""
        assert self.service.database is not None
        async with self.service.database.connection() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
            cursor = await connection.execute(sql)
            return await cursor.fetchall() if cursor.description else []

    async def step(self) -> int:
        """Let it be due, and look after it."""
        await self.execute("UPDATE subscription_upkeep SET due_time = now() - interval '1 s'")
        return await self.upkeep.step()

    async def seek(self, revision: int) -> None:
        await self.service.subscriptions.seek(TIDES, "orders", subscription_pb2.Start(after_revision=revision))

    async def acknowledged(self) -> int:
        """What the lease says that the subscription has."""
        return int((await self.lease())[0])

    async def lease(self) -> tuple[Any, ...]:
        """What the lease says: the acknowledged revision, types, fields."""
        async with self.owner.database.connection() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.namespace', 'tides', true)")
            cursor = await connection.execute(
                "SELECT acknowledged_revision, types, fields FROM consumer_leases WHERE name LIKE 'subscriptions/%'"
            )
            (row,) = await cursor.fetchall()
            return row

    async def take(self, count: int) -> list[str]:
        """The ack ids of *count* deliveries."""
        taken: list[str] = []
        async with self.service.deliveries.worker(TIDES, "orders") as worker:
            while len(taken) < count:
                taken += [one.ack_id for one in await worker.take(count)]
                await worker.wait(1)
        return taken

    async def rows(self) -> list[tuple[Any, ...]]:
        """How many there are in each table."""
        return await self.execute(
            """SELECT (SELECT count(*) FROM subscriptions), (SELECT count(*) FROM subscription_progress),
                (SELECT count(*) FROM subscription_parked), (SELECT count(*) FROM subscription_upkeep)"""
        )


@pytest.fixture
async def kept(owner: Owner, make_stream: MakeStream, own_url: str) -> Kept:
    service = await make_stream(own_url=own_url)
    assert service.database is not None
    lives = Lives()
    upkeep = SubscriptionUpkeep(service.database, service.subscriptions, service.logs, lives)
    kept = Kept(service, owner, upkeep, lives)
    await kept.create()
    return kept


async def test_the_lease_follows_the_checkpoint_and_keeps_what_is_parked(kept: Kept, owner: Owner) -> None:
    for name in ("a", "b", "c"):
        await owner.put(TIDES, name)
    a, b, c = await kept.take(3)
    await kept.service.deliveries.ack(TIDES, "orders", [a])
    assert await kept.acknowledged() == 0
    await kept.step()
    assert await kept.acknowledged() == 1
    await kept.service.deliveries.park(TIDES, "orders", [b], "NACK")
    await kept.service.deliveries.ack(TIDES, "orders", [c])
    await kept.step()
    assert (await kept.service.subscriptions.get(TIDES, "orders")).progress.group.checkpoint == 3
    assert await kept.acknowledged() == 1, "its content is in the log"
    await kept.service.parked.replay(TIDES, "orders", ())
    await kept.service.deliveries.ack(TIDES, "orders", await kept.take(1))
    await kept.step()
    assert await kept.acknowledged() == 3


async def test_the_lease_keeps_what_is_parked_also_after_a_seek_beyond_it(kept: Kept, owner: Owner) -> None:
    for name in ("a", "b", "c"):
        await owner.put(TIDES, name)
    a, b, _ = await kept.take(3)
    await kept.service.deliveries.ack(TIDES, "orders", [a])
    await kept.service.deliveries.park(TIDES, "orders", [b], "NACK")
    await kept.step()
    assert await kept.acknowledged() == 1
    await kept.seek(3)
    assert await kept.acknowledged() == 1
    await kept.step()
    assert await kept.acknowledged() == 1


async def test_a_seek_that_is_not_committed_leaves_what_is_needed_without_it(
    kept: Kept, owner: Owner, own_url: str
) -> None:
    for name in ("a", "b", "c"):
        await owner.put(TIDES, name)
    await kept.step()
    superuser = psycopg.conninfo.make_conninfo(own_url, user="postgres")
    async with await psycopg.AsyncConnection.connect(superuser) as connection:
        await connection.execute("ALTER TABLE subscription_progress ADD CHECK (cursor_revision < 3)")
    with pytest.raises(psycopg.errors.CheckViolation):
        await kept.seek(3)
    await kept.step()
    assert await kept.acknowledged() == 0
    await kept.seek(2)
    await kept.step()
    assert await kept.acknowledged() == 2, "it moves on once the seek is committed"


async def test_a_seek_leads_out_of_what_was_cut(kept: Kept, owner: Owner) -> None:
    for name in ("a", "b"):
        await owner.put(TIDES, name)
    await owner.execute("UPDATE heads SET horizon = 1 WHERE namespace = %s", TIDES.id)
    await kept.seek(2)
    assert await kept.acknowledged() == 1, "more than is left cannot be kept"
    await kept.step()
    assert await kept.acknowledged() == 2


async def test_the_lease_names_the_fields_of_a_new_filter(kept: Kept) -> None:
    await kept.step()
    asked = subscription_pb2.Subscription(types=["buoy"], filter="data.n > 1")
    await kept.service.subscriptions.update(TIDES, "orders", asked, {"types", "filter"}, "")
    await kept.step()
    assert await kept.lease() == (0, ["buoy"], ["data.n"])


async def test_one_replica_looks_after_a_subscription_and_not_again_at_once(kept: Kept) -> None:
    assert await kept.step() == 1
    assert await kept.upkeep.step() == 0


async def test_lag_is_among_the_metrics(kept: Kept, owner: Owner) -> None:
    def lag(unit: str) -> float | None:
        labels = {"namespace": "tides", "subscription": "orders"}
        return REGISTRY.get_sample_value(f"strandline_stream_subscription_lag_{unit}", labels)

    await owner.put(TIDES, "a")
    await kept.step()
    assert lag("revisions") == 1
    assert (lag("seconds") or 0) > 0
    await kept.service.deliveries.ack(TIDES, "orders", await kept.take(1))
    await kept.step()
    assert (lag("revisions"), lag("seconds")) == (0, 0)


async def test_a_subscription_that_was_left_behind_by_the_log_says_so_without_a_worker(
    kept: Kept, owner: Owner
) -> None:
    for name in ("a", "b"):
        await owner.put(TIDES, name)
    await owner.execute("UPDATE heads SET horizon = 1 WHERE namespace = %s", TIDES.id)
    await kept.step()
    assert (await kept.service.subscriptions.get(TIDES, "orders")).progress.state == 2


async def test_the_lease_gives_way_when_only_what_is_parked_was_cut(kept: Kept, owner: Owner) -> None:
    for name in ("a", "b"):
        await owner.put(TIDES, name)
    a, b = await kept.take(2)
    await kept.service.deliveries.park(TIDES, "orders", [a], "NACK")
    await kept.service.deliveries.ack(TIDES, "orders", [b])
    await owner.execute("UPDATE heads SET horizon = 1 WHERE namespace = %s", TIDES.id)
    await kept.step()
    assert (await kept.service.subscriptions.get(TIDES, "orders")).progress.state == 1
    assert await kept.acknowledged() == 1


async def test_a_page_of_what_is_left_of_an_earlier_life_does_not_end_the_list(kept: Kept) -> None:
    await kept.create(id="cargo")
    await kept.execute("UPDATE subscriptions SET epoch = '0000beef' WHERE id = 'cargo'")
    assert await kept.service.subscriptions.list(TIDES, "", 1) == ([], "cargo")
    (left,), end = await kept.service.subscriptions.list(TIDES, "cargo", 1)
    assert (left.definition.id, end) == ("orders", "")


async def test_everything_goes_with_the_namespace(kept: Kept, owner: Owner) -> None:
    await owner.put(TIDES, "a")
    await kept.service.deliveries.park(TIDES, "orders", await kept.take(1), "NACK")
    await kept.execute("UPDATE subscriptions SET create_time = now() - interval '2 minutes'")
    kept.lives.epoch = None
    await kept.step()
    assert await kept.rows() == [(0, 0, 0, 0)]


@pytest.mark.parametrize(
    ("lives", "is_old"), [(Lives(epoch=None, fresh=False), True), (Lives(epoch=None), False), (Lives(), True)]
)
async def test_nothing_goes_while_it_is_not_certain_that_the_namespace_is_gone(
    kept: Kept, lives: Lives, is_old: bool
) -> None:
    if is_old:
        await kept.execute("UPDATE subscriptions SET create_time = now() - interval '2 minutes'")
    kept.lives.epoch, kept.lives.fresh = lives.epoch, lives.fresh
    await kept.step()
    assert await kept.rows() == [(1, 1, 0, 1)]


async def test_requests_are_forgotten_after_a_day_also_where_nobody_asks_again(kept: Kept) -> None:
    asked = subscription_pb2.Subscription(start=subscription_pb2.Start(after_revision=0))
    for id in ("one", "two"):
        await kept.service.subscriptions.create(TIDES, id, asked, RequestId("ann", "Create", id, b"hash"))
    count = "SELECT (SELECT count(*) FROM subscription_requests), count(*) FROM subscription_upkeep WHERE id = ''"
    await kept.step()
    assert await kept.execute(count) == [(2, 1)]
    await kept.execute(
        "UPDATE subscription_requests SET create_time = now() - interval '25 hours' WHERE request_id = 'one'"
    )
    await kept.step()
    assert await kept.execute(count) == [(1, 1)]
    await kept.execute("UPDATE subscription_requests SET create_time = now() - interval '25 hours'")
    await kept.step()
    assert await kept.execute(count) == [(0, 0)]
