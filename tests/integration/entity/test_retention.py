"""How far back the log goes: who decides, who holds it, and what can still be read."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.entity.v1 import (
    history_service_pb2,
    history_service_pb2_grpc,
    retention_service_pb2,
    retention_service_pb2_grpc,
)
from strandline.rpc.v1 import access_pb2
from strandline.stream.v1 import feed_pb2, log_service_pb2

from services.entity import compaction, retention, retention_store
from services.entity.compaction import compact
from services.entity.leases import Leases
from services.entity.upkeep import forget_everywhere
from services.runtime.errors import OutOfRange, ResourceExhausted
from tests.integration.entity.conftest import Replica, Shore, error_info, pointers, reason, refusal
from tests.integration.entity.test_as_of import live_through
from tests.integration.entity.test_purges import places_of, purge, secret_of
from tests.integration.entity.test_snapshots import snapshot

DAY = 86_400
Change = feed_pb2.Change


async def get(shore: Shore) -> retention_service_pb2.Retention:
    stub: Any = retention_service_pb2_grpc.RetentionServiceStub(shore.replica.channel)
    request = retention_service_pb2.GetRetentionRequest(name=f"{shore.parent}/retention")
    answer: retention_service_pb2.GetRetentionResponse = await stub.GetRetention(request, metadata=shore.metadata())
    assert answer.revision == answer.retention.head_revision
    return answer.retention


async def choose(
    shore: Shore, mask: tuple[str, ...] = (), validate_only: bool = False, **fields: Any
) -> retention_service_pb2.Retention:
    stub: Any = retention_service_pb2_grpc.RetentionServiceStub(shore.replica.channel)
    retention = retention_service_pb2.Retention(name=f"{shore.parent}/retention", **fields)
    request = retention_service_pb2.UpdateRetentionRequest(
        retention=retention, update_mask=mask, validate_only=validate_only
    )
    answer: retention_service_pb2.UpdateRetentionResponse = await stub.UpdateRetention(
        request, metadata=shore.metadata()
    )
    return answer.retention


async def age(shore: Shore, revision: int, days: float) -> None:
    """Let everything up to *revision* be committed so many days earlier than it was."""
    await shore.replica.deployment.execute(
        f"UPDATE units SET commit_time = commit_time - interval '{days} days' "  # noqa: S608
        f"WHERE namespace = '{shore.namespace.id}' AND revision <= {revision}"
    )


async def cut(shore: Shore) -> int:
    return await compact(shore.replica.service.database, shore.namespace)


async def lease(shore: Shore, name: str, acknowledged: int, ttl: timedelta = timedelta(days=7)) -> None:
    request = log_service_pb2.PutConsumerLeaseRequest(
        namespace_id=shore.namespace.id,
        epoch=shore.namespace.epoch,
        name=name,
        types=["buoy"],
        fields=["data.n"],
        acknowledged_revision=acknowledged,
    )
    request.ttl.FromTimedelta(ttl)
    await shore.replica.log.PutConsumerLease(request)


async def write(shore: Shore, count: int) -> int:
    """The head after a type and so many units."""
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:03}", {"n": n}) for n in range(count)))
    return await shore.head()


async def test_by_default_thirty_days_are_kept_and_who_reads_can_see_it(shore: Shore) -> None:
    head = await write(shore, 3)
    viewer = shore.replica.member(shore.namespace, access_pb2.Access.VIEWER)
    retention = await get(viewer)
    assert retention.max_age == Duration(seconds=30 * DAY)
    assert retention.max_lease_age == Duration(seconds=60 * DAY)
    assert (retention.max_revisions, retention.horizon_revision, retention.next_horizon_revision) == (0, 0, 0)
    assert retention.head_revision == head
    assert not retention.HasField("update_time")
    oldest = (await shore.units())[0].commit_time
    assert retention.horizon_time == oldest
    assert retention.next_cut_time.seconds == oldest.seconds + 30 * DAY


async def test_an_owner_chooses_within_bounds(shore: Shore) -> None:
    editor = shore.replica.member(shore.namespace, access_pb2.Access.EDITOR)
    assert await reason(choose(editor, max_revisions=5)) == "ROLE_INSUFFICIENT"
    for age in (Duration(seconds=DAY - 1), Duration(seconds=3650 * DAY + 1), Duration(seconds=DAY, nanos=500_000_000)):
        failure = await refusal(choose(shore, max_age=age))
        assert pointers(failure) == ["retention.max_age"]
    assert await reason(choose(shore, max_revisions=-1)) == "INVALID_FIELD"
    assert await reason(choose(shore, mask=("horizon_revision",))) == "INVALID_FIELD"
    rehearsed = await choose(shore, validate_only=True, max_revisions=9)
    assert rehearsed.max_revisions == 9
    assert (await get(shore)).max_revisions == 0
    chosen = await choose(shore, max_age=Duration(seconds=DAY), max_revisions=5)
    assert (chosen.max_age.seconds, chosen.max_revisions, chosen.updated_by) == (DAY, 5, shore.user_id)
    assert chosen == await get(shore)
    assert (await choose(shore, mask=("maxRevisions",), validate_only=True, max_revisions=7)).max_revisions == 7
    assert (await choose(shore, mask=("max_age",), max_revisions=7)).max_age.seconds == 30 * DAY
    assert (await get(shore)).max_revisions == 5
    assert (await choose(shore, mask=("*",))).max_revisions == 0


async def test_two_owners_who_choose_at_once_do_not_undo_each_other(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = retention.choose

    async def choose_second(*late: Any) -> None:
        monkeypatch.undo()
        await choose(shore, max_age=Duration(seconds=90 * DAY))
        await real(*late)

    monkeypatch.setattr("services.entity.retention_api.choose", choose_second)
    chosen = await choose(shore, max_revisions=7)
    assert (chosen.max_age.seconds, chosen.max_revisions) == (90 * DAY, 7)


async def test_what_is_too_old_is_cut_and_every_state_from_the_horizon_on_stays(shore: Shore) -> None:
    units = await live_through(shore, 11)
    head = units[-1].revision
    before = {revision: await snapshot(shore, revision) for revision in range(head // 2, head + 1)}
    await age(shore, head // 2, 31)
    announced = await get(shore)
    assert announced.next_horizon_revision == head // 2
    assert await cut(shore) == head // 2
    for revision, state in before.items():
        assert await snapshot(shore, revision) == state
    assert await shore.units(head // 2) == units[head // 2 :]
    for late in (
        shore.units(head // 2 - 1),
        shore.get("e1", as_of_revision=head // 2 - 1),
        shore.page(as_of_revision=head // 2 - 1),
    ):
        failure = await refusal(late)
        assert failure.code() == grpc.StatusCode.OUT_OF_RANGE
        assert error_info(failure).reason == "COMPACTED"
        assert error_info(failure).metadata["horizon_revision"] == str(head // 2)
    assert await reason(snapshot(shore, head // 2 - 1)) == "SNAPSHOT_EXPIRED"
    assert (await get(shore)).horizon_revision == head // 2
    rows = shore.replica.deployment.rows
    for table in ("units", "versions"):
        query = f"SELECT count(*) FROM {table} WHERE namespace = %s AND revision <= %s"  # noqa: S608
        assert await rows(query, shore.namespace.id, head // 2) == [(0,)]
    # And all of it, when nothing happens any more; the entities are as they are.
    await age(shore, head, 62)
    assert await cut(shore) == head
    assert await snapshot(shore, head) == before[head]
    await shore.update("e1", {"again": 1}, allow_missing=True)
    assert [unit.revision for unit in await shore.units(head)] == [head + 1]
    assert await snapshot(shore, head) == before[head], "what was before is told by what came after"


async def test_a_bound_on_revisions_never_cuts_what_is_younger_than_a_day(shore: Shore) -> None:
    head = await write(shore, 20)
    await choose(shore, max_revisions=5)
    assert await cut(shore) == 0
    await age(shore, 10, 1.01)
    assert await cut(shore) == 10
    await age(shore, head, 1.01)
    assert (await get(shore)).next_horizon_revision == head - 5
    assert await cut(shore) == head - 5


async def test_a_lease_keeps_what_its_consumer_has_not_seen_up_to_twice_the_age(shore: Shore) -> None:
    head = await write(shore, 20)
    await lease(shore, "webhooks/a", 7)
    await lease(shore, "webhooks/b", 12)
    await age(shore, head, 31)
    retention = await get(shore)
    assert [(one.name, one.holds_back) for one in retention.leases] == [("webhooks/a", True), ("webhooks/b", True)]
    assert (list(retention.leases[0].types), list(retention.leases[0].fields)) == (["buoy"], ["data.n"])
    assert await cut(shore) == retention.next_horizon_revision == 7
    assert await reason(lease(shore, "late", 6)) == "COMPACTED"
    assert await reason(lease(shore, "early", head + 1)) == "FUTURE_REVISION"
    await lease(shore, "webhooks/a", head)
    assert await cut(shore) == 12
    await age(shore, 15, 30)
    assert await cut(shore) == 15, "what is older than twice the age goes all the same"
    await shore.replica.log.DeleteConsumerLease(
        log_service_pb2.DeleteConsumerLeaseRequest(
            namespace_id=shore.namespace.id, epoch=shore.namespace.epoch, name="webhooks/b"
        )
    )
    assert await cut(shore) == head
    assert [one.name for one in (await get(shore)).leases] == ["webhooks/a"]


async def test_a_lease_that_is_not_renewed_ends_and_is_forgotten(shore: Shore) -> None:
    head = await write(shore, 5)
    await lease(shore, "gone", 1, timedelta(milliseconds=1))
    await age(shore, head, 31)
    await asyncio.sleep(0.01)
    assert not (await get(shore)).leases
    await forget_everywhere(shore.replica.service.database)
    assert (await get(shore)).horizon_revision == head
    query = "SELECT count(*) FROM consumer_leases WHERE namespace = %s"
    assert await shore.replica.deployment.rows(query, shore.namespace.id) == [(0,)]


@pytest.mark.parametrize(("name", "seconds"), [("", 60), ("reading:5", 60), ("a" * 201, 60), ("a", 0), ("a", 31 * DAY)])
async def test_a_lease_that_makes_no_sense_is_refused(shore: Shore, name: str, seconds: int) -> None:
    await write(shore, 1)
    assert await reason(lease(shore, name, 1, timedelta(seconds=seconds))) == "INVALID_FIELD"


async def test_a_lease_that_comes_in_the_middle_of_a_cut_stops_it_there(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "UNITS_AT_ONCE", 3)
    head = await write(shore, 30)
    await age(shore, head, 31)
    step, put = compaction._step, Leases(shore.replica.service.database).put

    async def lease_and_step(*rest: Any) -> Any:
        if rest[-1] == 6:  # this step has read that it may cut up to 9
            await put(shore.namespace, "new", (), (), 8, timedelta(days=1))
            with pytest.raises(OutOfRange):
                await put(shore.namespace, "old", (), (), 5, timedelta(days=1))
        return await step(*rest)

    with monkeypatch.context() as patched:
        patched.setattr(compaction, "_step", lease_and_step)
        assert await cut(shore) == 6
    assert await cut(shore) == 8


async def test_an_owner_who_chooses_to_keep_more_stops_a_cut_that_is_under_way(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "UNITS_AT_ONCE", 3)
    await age(shore, await write(shore, 30), 31)
    step = compaction._step

    async def step_and_choose(*rest: Any) -> Any:
        moved = await step(*rest)
        await choose(shore, max_age=Duration(seconds=90 * DAY))
        return moved

    monkeypatch.setattr(compaction, "_step", step_and_choose)
    assert await cut(shore) == 3
    assert (await get(shore)).horizon_revision == 3


async def test_a_repetition_of_what_changed_nothing_is_answered_when_the_version_it_found_is_cut(shore: Shore) -> None:
    head = await write(shore, 3)
    await age(shore, head, 31)
    unchanged = await shore.update("b001", {"n": 1}, request_id="r")
    assert unchanged.revision == head
    assert await cut(shore) == head
    assert await shore.update("b001", {"n": 1}, request_id="r") == unchanged
    await shore.update("b001", {"n": 2})
    assert await shore.update("b001", {"n": 1}, request_id="r") == unchanged


async def test_a_cut_goes_on_where_it_was_left_and_two_do_not_disturb_each_other(
    shore: Shore, other_replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "UNITS_AT_ONCE", 7)
    head = await write(shore, 200)
    await age(shore, head - 1, 31)
    step, is_half_way = compaction._step, asyncio.Event()

    async def step_and_tell(*rest: Any) -> Any:
        if rest[-1] > 20:
            is_half_way.set()
        return await step(*rest)

    monkeypatch.setattr(compaction, "_step", step_and_tell)
    cutting = asyncio.create_task(cut(shore))
    await is_half_way.wait()
    cutting.cancel()
    await asyncio.gather(cutting, return_exceptions=True)
    assert 20 < (await get(shore)).horizon_revision < head - 1
    horizons = await asyncio.gather(cut(shore), compact(other_replica.service.database, shore.namespace))
    assert max(horizons) <= head - 1
    assert await cut(shore) == head - 1
    assert len(await snapshot(shore, head)) == 200


async def test_whoever_reads_while_the_log_is_cut_misses_no_deletion(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "UNITS_AT_ONCE", 5)
    await write(shore, 40)
    rng = random.Random(5)
    state = {entity.name for entity in await snapshot(shore, await shore.head())}
    cursor = await shore.head()
    writing = True

    async def write_and_cut() -> None:
        nonlocal writing
        for _ in range(25):
            for entity_id in rng.sample(range(40), 4):
                name = f"b{entity_id:03}"
                await shore.batch(
                    shore.deleting(name, allow_missing=True), shore.updating(name, {}, allow_missing=True)
                )
                await shore.batch(shore.deleting(name)) if rng.random() < 0.5 else None
            # The reader is never further behind than this: the horizon follows close behind it.
            await age(shore, cursor, 31)
            await cut(shore)
        writing = False

    busy = asyncio.create_task(write_and_cut())
    while writing or cursor < await shore.head():
        request = log_service_pb2.ReadUnitsRequest(namespace_id=shore.namespace.id, after_revision=cursor)
        answer = await shore.replica.log.ReadUnits(request)
        for unit in map(feed_pb2.Unit.FromString, answer.units):
            assert unit.revision == cursor + 1
            cursor = unit.revision
            for change in unit.changes:
                if change.kind == Change.DELETED:
                    state.remove(change.entity.name)
                else:
                    state.add(change.entity.name)
    await busy
    assert (await get(shore)).horizon_revision > 40
    assert state == {entity.name for entity in await snapshot(shore, cursor)}


async def test_an_export_keeps_the_revision_that_it_reads(shore: Shore) -> None:
    head = await write(shore, 5)
    await shore.update("b001", {"n": -1})
    stub: Any = history_service_pb2_grpc.HistoryServiceStub(shore.replica.channel)
    request = history_service_pb2.ExportEntitiesRequest(parent=shore.parent, revision=head)
    await stub.ExportEntities(request, metadata=shore.metadata())
    await age(shore, await shore.head(), 31)
    assert await cut(shore) == head
    assert [one.name for one in (await get(shore)).leases] == [f"reading:{head}"]


async def test_those_who_read_old_states_take_no_room_from_consumers(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = await write(shore, 5)
    monkeypatch.setattr(retention_store, "MAX_LEASES", 3)
    leases = Leases(shore.replica.service.database)
    for revision in range(3):
        await leases.hold(shore.namespace, head - revision)
    for number in range(3):
        await lease(shore, f"c{number}", head)
    assert await reason(lease(shore, "c3", head)) == "QUOTA_EXCEEDED"
    with pytest.raises(ResourceExhausted):
        await leases.hold(shore.namespace, head - 3)
    assert len((await get(shore)).leases) == 6


async def test_a_purge_reaches_what_the_horizon_left_in_later_units(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"where": secret_of(shore)})
    await age(shore, 2, 31)
    await shore.update("b1", {"where": "elsewhere"})
    assert await cut(shore) == 2
    assert await places_of(shore, secret_of(shore)) == {"units.body"}
    await purge(shore, "b1")
    assert await places_of(shore, secret_of(shore)) == set()
    assert await reason(shore.get("b1", as_of_revision=2)) == "NOT_FOUND"


async def test_a_new_life_begins_with_nothing_of_the_old_ones_policy(shore: Shore) -> None:
    await write(shore, 2)
    await choose(shore, max_revisions=5)
    await lease(shore, "a", 1)
    request = pb.PurgeNamespaceRequest(namespace_id=shore.namespace.id, epoch=shore.namespace.epoch)
    async with asyncio.timeout(60):
        while not (await shore.replica.entities.PurgeNamespace(request)).done:
            pass
    for table in ("retentions", "consumer_leases", "expirations"):
        query = f"SELECT count(*) FROM {table} WHERE namespace = %s"  # noqa: S608
        assert await shore.replica.deployment.rows(query, shore.namespace.id) == [(0,)]
    assert await reason(lease(shore, "a", 0)) == "OVERLOADED", "that life is over"
