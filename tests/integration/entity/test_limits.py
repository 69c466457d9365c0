"""Quotas, usage, and the guard against mass changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.entity.v1.import_service_pb2 import ImportEntitiesRequest
from strandline.rpc.v1 import access_pb2

from services.entity import upkeep
from services.entity.limits import Limits
from services.entity.mutations import parse_mutation
from services.entity.writes import Writing, Written
from services.runtime.call import Quota
from services.runtime.errors import InvalidArgument
from tests.integration.entity.conftest import Deployment, Replica, Shore, error_info, info_in, reason, refusal
from tests.integration.entity.drafts import watch_drafts


def limited(shore: Shore, **quota: int) -> Shore:
    """*shore* under a quota."""
    members = shore.replica.deployment.members
    shore.namespace = members.namespaces[shore.namespace.id] = replace(shore.namespace, quota=Quota(**quota))
    return shore


async def usage_of(shore: Shore, **query: Any) -> pb.Usage:
    request = pb.GetUsageRequest(name=f"{shore.parent}/usage", **query)
    answer: pb.GetUsageResponse = await shore.replica.entities.GetUsage(request, metadata=shore.metadata())
    assert answer.revision == await shore.head()
    return answer.usage


async def fill(shore: Shore, count: int, type_id: str = "buoy") -> None:
    """Create *count* entities b0, b1, ..."""
    for start in range(0, count, 500):
        numbers = range(start, min(start + 500, count))
        answer = await shore.batch(*(shore.creating(f"b{n}", {"n": n}, type_id) for n in numbers))
        assert not any(result.status.code for result in answer.results)


async def test_usage_counts_live_entities_and_the_bytes_of_all_that_are_kept(shore: Shore) -> None:
    await shore.declare()
    await shore.declare("pier")
    assert await usage_of(shore) == pb.Usage(name=f"{shore.parent}/usage")
    for entity_id in ("b1", "b2"):
        await shore.create(entity_id, {"n": 1})
    await shore.create("p1", {"text": "x" * 1000}, "pier")
    await shore.update("b1", {"text": "y" * 500})
    await shore.delete("b2")
    await shore.transact(shore.creating("b3", {}), shore.updating("p1", {"text": "z"}, "pier"))
    kept = [await shore.get("b1"), await shore.get("b2"), await shore.get("b3"), await shore.get("p1", "pier")]
    sizes = [len(entity.SerializeToString(deterministic=True)) for entity in kept]
    usage = await usage_of(shore)
    assert (usage.entities, usage.bytes) == (3, sum(sizes))
    assert [(one.type, one.entities, one.bytes) for one in usage.types] == [
        ("buoy", 2, sum(sizes[:3])),
        ("pier", 1, sizes[3]),
    ]


async def test_usage_agrees_with_the_rows_after_many_writers_were_refused_and_accepted(shore: Shore) -> None:
    await shore.declare()
    await shore.declare("pier", indexes=[{"fields": ["data.n"], "unique": True}])
    calls: list[Coroutine[Any, Any, Any]] = [shore.create(f"b{n % 7}", {"n": n}) for n in range(20)]
    calls += [shore.create(f"p{n}", {"n": n % 5}, "pier") for n in range(20)]
    calls += [shore.transact(shore.creating(f"t{n}", {}), shore.creating("p0", {"n": 99}, "pier")) for n in range(5)]
    await asyncio.gather(*calls, return_exceptions=True)
    await asyncio.gather(*(shore.delete(f"b{n}", allow_missing=True) for n in range(4)))
    rows = await shore.replica.deployment.rows(
        """SELECT type, count(*) FILTER (WHERE delete_time IS NULL), sum(octet_length(message)) FROM entities
        WHERE namespace = %s GROUP BY type ORDER BY type""",
        shore.namespace.id,
    )
    usage = await usage_of(shore)
    assert [(one.type, one.entities, one.bytes) for one in usage.types] == rows
    assert usage.entities == sum(row[1] for row in rows)


async def test_usage_is_for_members_and_under_its_own_name(shore: Shore) -> None:
    stranger = shore.replica.member(shore.namespace, 0)
    assert await reason(usage_of(stranger)) == "NOT_FOUND"
    request = pb.GetUsageRequest(name=f"{shore.parent}/used")
    assert await reason(shore.replica.entities.GetUsage(request, metadata=shore.metadata())) == "INVALID_FIELD"
    assert await reason(usage_of(shore, min_revision=9)) == "FUTURE_REVISION"


async def test_the_entity_beyond_the_quota_is_refused_and_a_delete_makes_room(shore: Shore) -> None:
    limited(shore, max_entities=3)
    await shore.declare()
    await shore.transact(shore.creating("b1", {}), shore.creating("b2", {}))
    failure = await refusal(shore.transact(shore.creating("b3", {}), shore.creating("b4", {})))
    assert error_info(failure).reason == "QUOTA_EXCEEDED"
    assert dict(error_info(failure).metadata) == {
        "quota": "entities",
        "limit": "3",
        "used": "2",
        "retry_after": "3600",
    }
    await shore.create("b3", {})
    await shore.update("b3", {"n": 1})
    assert await reason(shore.create("b4", {})) == "QUOTA_EXCEEDED"
    await shore.delete("b1")
    await shore.create("b4", {})
    assert await reason(shore.undelete("b1")) == "QUOTA_EXCEEDED"
    usage = await usage_of(shore)
    assert (usage.entities, usage.max_entities) == (3, 3)


async def test_bytes_beyond_the_quota_are_refused_and_shrinking_is_not(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"text": "x" * 3000})
    limited(shore, max_bytes=3500)
    assert await reason(shore.create("b2", {"text": "x" * 3000})) == "QUOTA_EXCEEDED"
    assert await reason(shore.update("b1", {"text": "x" * 4000})) == "QUOTA_EXCEEDED"
    await shore.update("b1", {"text": "x" * 10})
    await shore.create("b2", {"text": "x" * 2000})


async def test_at_the_limit_of_bytes_what_is_there_can_be_deleted_and_purged(shore: Shore) -> None:
    await shore.declare()
    for entity_id in ("b1", "b2", "b3"):
        await shore.create(entity_id, {"text": "x" * 500})
    limited(shore, max_bytes=(await usage_of(shore)).bytes)
    await shore.delete("b1")
    assert await reason(shore.create("b4", {})) == "QUOTA_EXCEEDED"
    await shore.transact(shore.deleting("b2"))
    request = pb.PurgeEntityRequest(name=shore.name("b3"))
    await shore.replica.entities.PurgeEntity(request, metadata=shore.metadata())
    await shore.create("b4", {"text": "x" * 100})


async def test_of_one_batch_exactly_as_many_pass_as_the_quota_has_room_for(shore: Shore) -> None:
    limited(shore, max_entities=10)
    await shore.declare()
    answer = await shore.batch(*(shore.creating(f"b{n}", {}) for n in range(30)))
    refused = [result for result in answer.results if result.status.code]
    assert len(refused) == 20
    assert {info_in(result.status).reason for result in refused} == {"QUOTA_EXCEEDED"}
    assert (await usage_of(shore)).entities == 10


async def test_a_rehearsal_makes_no_room_for_its_neighbours_and_takes_none(shore: Shore) -> None:
    limited(shore, max_entities=2)
    await shore.declare()
    await shore.create("b1", {})
    await shore.create("b2", {})
    rehearsals = [shore.delete(f"b{n}", validate_only=True) for n in (1, 2)]
    writes = [shore.create(f"c{n}", {}) for n in range(10)]
    outcomes = await asyncio.gather(*rehearsals, *writes, return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 2
    await shore.delete("b1")
    rehearsed = [shore.create(f"d{n}", {}, validate_only=True) for n in range(9)]
    *_, meant = await asyncio.gather(*rehearsed, shore.create("e1", {}), return_exceptions=True)
    assert not isinstance(meant, BaseException)
    assert (await usage_of(shore)).entities == 2


async def test_writes_per_second_are_averaged_with_room_for_one_full_unit(shore: Shore) -> None:
    limited(shore, max_writes_per_second=2)
    await shore.declare()
    await shore.transact(*(shore.creating(f"b{n}", {}) for n in range(499)))
    await shore.create("c1", {})
    failure = await refusal(shore.transact(*(shore.creating(f"d{n}", {}) for n in range(20))))
    assert error_info(failure).reason == "QUOTA_EXCEEDED"
    assert error_info(failure).metadata["quota"] == "writes_per_second"
    assert 1 <= int(dict(failure.trailing_metadata() or ())["retry-after"]) <= 10
    assert 0 <= (await usage_of(shore)).available_writes < 20
    await shore.replica.deployment.rows(
        "UPDATE write_budgets SET update_time = update_time - interval '11 s' WHERE namespace = %s RETURNING 1",
        shore.namespace.id,
    )
    await shore.transact(*(shore.creating(f"d{n}", {}) for n in range(20)))


async def test_what_changes_nothing_needs_no_writes_that_are_left(shore: Shore) -> None:
    limited(shore, max_writes_per_second=1)
    await shore.declare()
    await shore.create("b1", {"n": 1})
    await shore.replica.deployment.rows(
        "UPDATE write_budgets SET tokens = -1000 WHERE namespace = %s RETURNING 1", shore.namespace.id
    )
    await shore.update("b1", {"n": 1})
    assert await reason(shore.update("b1", {"n": 2})) == "QUOTA_EXCEEDED"


async def test_a_unit_that_is_too_large_for_the_log_takes_no_room_from_its_neighbours(shore: Shore) -> None:
    quota = Quota(max_entities=14, max_writes_per_second=1)
    limited(shore, max_writes_per_second=1)
    await shore.declare()
    await shore.create("a1", {})
    large = [shore.creating(f"b{n}", {"text": "x" * 250_000}) for n in range(13)]
    writer = shore.replica.service.expirer._writer
    writing = Writing(shore.namespace, shore.user_id, "Transact", "", limits=Limits(quota))
    units = [
        [parse_mutation(message, shore.namespace.id, "mutations") for message in messages]
        for messages in (large, [shore.creating("c1", {})])
    ]
    # Submitted in one turn of the loop, they share a batch.
    outcomes = await asyncio.gather(*(writer.transact(writing, unit) for unit in units), return_exceptions=True)
    assert isinstance(outcomes[0], InvalidArgument)
    assert outcomes[0].reason == "UNIT_TOO_LARGE"
    assert isinstance(outcomes[1], Written), outcomes[1]
    assert (await usage_of(shore)).available_writes > 490


async def test_a_chunk_of_an_import_that_was_prepared_while_it_waited_has_the_same_quota(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(shore, max_entities=3)
    await shore.declare()
    drafted = watch_drafts(monkeypatch)

    def send(offset: int, *ids: str) -> Any:
        rows = "".join(f'{{"type": "buoy", "id": "{entity_id}", "data": {{}}}}\n' for entity_id in ids)
        request = ImportEntitiesRequest(parent=shore.parent, import_id="i", offset=offset, rows=rows.encode())
        return shore.replica.imports.ImportEntities(request, metadata=shore.metadata())

    later = send(2, "b3", "b4")
    await asyncio.wait_for(drafted.wait(), 30)
    await send(0, "b1", "b2")
    assert await reason(later) == "QUOTA_EXCEEDED"
    assert (await usage_of(shore)).entities == 3


async def test_two_replicas_share_one_quota(shore: Shore, deployment: Deployment) -> None:
    limited(shore, max_entities=50)
    await shore.declare()
    async with deployment.replica() as second:
        other = shore.through(second)
        calls = [one.create(f"b{n}", {}) for n in range(60) for one in ((shore, other)[n % 2],)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(outcome, BaseException) for outcome in outcomes) == 50
    assert (await usage_of(shore)).entities == 50


# The guard


async def delete_all(shore: Shore, count: int, start: int = 0, **more: Any) -> tuple[int, str]:
    """Delete b<start>.. in transactions of 100; how many are gone, and the operation id of the refusal, if any."""
    for first in range(start, count, 100):
        deletes = [shore.deleting(f"b{n}") for n in range(first, min(first + 100, count))]
        try:
            await shore.transact(*deletes, **more)
        except grpc.aio.AioRpcError as failure:
            info = error_info(failure)
            assert info.reason == "MASS_CHANGE_REFUSED"
            return first, info.metadata["operation_id"]
    return count, ""


async def test_deletes_beyond_a_fifth_of_a_type_are_refused_until_confirmed(shore: Shore) -> None:
    await shore.declare()
    await fill(shore, 6000)
    gone, operation = await delete_all(shore, 6000)
    assert gone == 1200
    deletes = [shore.deleting(f"b{n}") for n in range(1200, 1201)]
    failure = await refusal(shore.transact(*deletes))
    metadata = dict(error_info(failure).metadata)
    assert (metadata["type"], metadata["changed"], metadata["limit"]) == ("buoy", "1201", "1200")
    assert "4800 are there" in (failure.details() or "")
    assert (await usage_of(shore)).entities == 4800
    assert await delete_all(shore, 6000, 1200, confirm_operation_id=operation) == (6000, "")


async def test_a_thousand_entities_may_always_be_changed(shore: Shore) -> None:
    await shore.declare()
    await fill(shore, 1001)
    assert (await delete_all(shore, 1000))[0] == 1000
    assert await reason(shore.delete("b1000")) == "MASS_CHANGE_REFUSED"


async def test_an_entity_counts_once_however_often_its_principal_changes_it(shore: Shore) -> None:
    await shore.declare()
    await fill(shore, 20)
    for turn in range(60):
        answer = await shore.batch(*(shore.updating(f"b{n}", {"turn": turn}) for n in range(20)))
        assert not any(result.status.code for result in answer.results)


async def test_creating_is_no_change_and_each_principal_is_counted_alone(shore: Shore) -> None:
    await shore.declare()
    await fill(shore, 2000)
    assert (await delete_all(shore, 1000))[0] == 1000
    colleague = shore.replica.member(shore.namespace, access_pb2.Access.EDITOR)
    assert await reason(shore.delete("b1000")) == "MASS_CHANGE_REFUSED"
    await colleague.delete("b1000")


async def test_updates_of_many_entities_count_like_deletes(shore: Shore) -> None:
    await shore.declare()
    await fill(shore, 1200)
    refused = []
    for start in range(0, 1200, 400):
        answer = await shore.batch(*(shore.updating(f"b{n}", {"m": 1}) for n in range(start, start + 400)))
        refused += [info_in(result.status) for result in answer.results if result.status.code]
    assert len(refused) == 200
    assert {info.reason for info in refused} == {"MASS_CHANGE_REFUSED"}
    operation = refused[-1].metadata["operation_id"]
    again = [shore.updating(f"b{n}", {"m": 1}) for n in range(1000, 1200)]
    answer = await shore.batch(*again, confirm_operation_id=operation)
    assert not any(result.status.code for result in answer.results)


async def test_an_operation_id_confirms_nothing_but_what_was_refused(shore: Shore, replica: Replica) -> None:
    await shore.declare()
    await shore.declare("pier")
    await fill(shore, 1001)
    await fill(shore, 1001, "pier")
    _, operation = await delete_all(shore, 1001)
    colleague = replica.member(shore.namespace, access_pb2.Access.OWNER)
    assert await reason(colleague.delete("b1000", confirm_operation_id=operation)) == "INVALID_FIELD"
    elsewhere = replica.shore()
    await elsewhere.declare()
    await elsewhere.create("b1", {})
    assert await reason(elsewhere.delete("b1", confirm_operation_id=operation)) == "INVALID_FIELD"
    assert await reason(shore.delete("b1000", confirm_operation_id=operation + "x")) == "INVALID_FIELD"
    for first in range(0, 1000, 100):
        await shore.transact(*(shore.deleting(f"b{n}", "pier") for n in range(first, first + 100)))
    assert await reason(shore.delete("b1000", "pier", confirm_operation_id=operation)) == "MASS_CHANGE_REFUSED"
    await shore.delete("b1000", confirm_operation_id=operation)


async def test_an_operation_id_is_good_for_ten_minutes(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> None:
    await shore.declare()
    await fill(shore, 1001)
    _, operation = await delete_all(shore, 1001)
    later = time.time() + 601
    # For the limits alone: by everybody's clock the caller's token would soon have expired as well.
    monkeypatch.setattr("services.entity.limits.time", SimpleNamespace(time=lambda: later))
    assert await reason(shore.delete("b1000", confirm_operation_id=operation)) == "INVALID_FIELD"


async def test_what_was_changed_eleven_minutes_ago_counts_no_more(shore: Shore) -> None:
    await shore.declare()
    await fill(shore, 1500)
    await delete_all(shore, 1000)
    assert await reason(shore.delete("b1000")) == "MASS_CHANGE_REFUSED"
    age = "UPDATE mass_changes SET minute = minute - %s WHERE namespace = %s RETURNING 1"
    await shore.replica.deployment.rows(age, 11, shore.namespace.id)
    await shore.delete("b1000")
    await shore.replica.deployment.rows(age, 61, shore.namespace.id)
    await upkeep.forget_everywhere(shore.replica.service.database)
    rows = await shore.replica.deployment.rows(
        "SELECT minute FROM mass_changes WHERE namespace = %s", shore.namespace.id
    )
    assert rows == []


async def test_a_namespace_may_do_without_the_guard(shore: Shore) -> None:
    members = shore.replica.deployment.members
    shore.namespace = members.namespaces[shore.namespace.id] = replace(shore.namespace, mass_change_guard=False)
    await shore.declare()
    await fill(shore, 1500)
    assert (await delete_all(shore, 1500))[0] == 1500
