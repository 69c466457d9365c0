"""What the committer promises, on a real database: dense, atomic, idempotent, decided under the lock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import psycopg
import pytest
from strandline.stream.v1 import feed_pb2

from services.runtime import changelog
from services.runtime.call import Namespace
from services.runtime.committer import Decision, Stamp
from services.runtime.database import Connection, Statement, pipeline
from services.runtime.errors import Aborted, InvalidArgument
from services.runtime.lanes import Lane, Submission, Waiting
from services.runtime.units import Outcomes, Receipt

from .conftest import NAMESPACE, CellRound, Cells, Put, Replica, put


async def log_of(replica: Replica, namespace: str = NAMESPACE.id) -> list[feed_pb2.Unit]:
    _, units = await changelog.read_units(replica.database, namespace, 0, 0, 3 * 2**20)
    return [feed_pb2.Unit.FromString(unit) for unit in units]


def receipts_of(outcomes: Outcomes) -> list[Receipt]:
    assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    return [outcome for outcome in outcomes if isinstance(outcome, Receipt)]


async def test_revisions_are_dense_and_times_rise_with_them(replica: Replica) -> None:
    receipts = await asyncio.gather(*(replica.put(f"c{n}", n) for n in range(300)))
    assert sorted(receipt.revision for receipt in receipts) == list(range(1, 301))
    units = await log_of(replica)
    assert [unit.revision for unit in units] == list(range(1, 301))
    times = [unit.commit_time.ToNanoseconds() for unit in units]
    assert times == sorted(set(times))
    assert [unit.changes[0].entity.revision for unit in units] == list(range(1, 301))


async def test_commits_are_announced_in_order_with_the_bytes_of_the_log(replica: Replica) -> None:
    await asyncio.gather(*(replica.put(f"c{n % 7}", n) for n in range(50)))
    announced = [body for commit in replica.announced for body in commit.units]
    _, logged = await changelog.read_units(replica.database, NAMESPACE.id, 0, 0, 3 * 2**20)
    assert announced == logged
    assert [commit.after for commit in replica.announced[1:]] == [c.head.revision for c in replica.announced[:-1]]


async def test_writes_to_one_name_apply_in_the_order_of_submission(replica: Replica) -> None:
    receipts = receipts_of(await replica.committer.submit(NAMESPACE, *(put("c", n) for n in range(1, 21))))
    assert [receipt.revision for receipt in receipts] == list(range(1, 21))
    assert [unit.changes[0].kind for unit in await log_of(replica)] == [changelog.CREATED] + [changelog.UPDATED] * 19


async def test_of_two_replicas_with_one_expectation_one_wins(replica: Replica, other_replica: Replica) -> None:
    await replica.put("c", 1)
    held = 1
    for n in range(1, 20):
        wanted = (n * 100, n * 100 + 1)
        outcomes = await asyncio.gather(
            replica.put("c", wanted[0], expected=held),
            other_replica.put("c", wanted[1], expected=held),
            return_exceptions=True,
        )
        lost = [isinstance(outcome, Aborted) for outcome in outcomes]
        assert sorted(lost) == [False, True], outcomes
        held = wanted[lost.index(False)]


async def test_two_replicas_write_one_dense_log(replica: Replica, other_replica: Replica) -> None:
    writes = [r.put(f"{name}{n}", n) for n in range(200) for name, r in (("a", replica), ("b", other_replica))]
    receipts = await asyncio.gather(*writes)
    assert sorted(receipt.revision for receipt in receipts) == list(range(1, 401))


async def test_a_unit_that_changes_nothing_takes_no_revision(replica: Replica) -> None:
    await replica.put("c", 1)
    again = await replica.put("c", 1)
    assert (again.revision, again.result) == (1, "same")
    assert len(await log_of(replica)) == 1


async def test_a_request_sent_twice_is_one_revision_with_one_answer(replica: Replica, other_replica: Replica) -> None:
    first, second = await asyncio.gather(
        replica.put("c", 1, request_id="once"), other_replica.put("c", 1, request_id="once")
    )
    third = await replica.put("c", 1, request_id="once")
    assert {(r.revision, r.answer) for r in (first, second, third)} == {(1, b"put")}
    assert len(await log_of(replica)) == 1


async def test_a_request_id_with_another_body_is_refused(replica: Replica) -> None:
    await replica.put("c", 1, request_id="once")
    with pytest.raises(InvalidArgument) as refused:
        await replica.put("c", 2, request_id="once")
    assert refused.value.reason == "REQUEST_ID_REUSED"


async def test_validate_only_decides_and_leaves_nothing(replica: Replica) -> None:
    checked = await replica.put("c", 1, validate_only=True, request_id="dry")
    assert (checked.revision, checked.result) == (0, "put")
    with pytest.raises(Aborted):
        await replica.put("c", 2, expected=1, validate_only=True)
    assert await log_of(replica) == []
    assert (await replica.put("c", 1, request_id="dry")).revision == 1


async def test_a_refused_unit_does_not_fail_its_neighbours(replica: Replica) -> None:
    await replica.put("c0", 5)
    outcomes = await asyncio.gather(
        *(replica.put(f"c{n}", n, expected=7 if n == 0 else None) for n in range(10)), return_exceptions=True
    )
    assert [type(outcome).__name__ for outcome in outcomes] == ["Aborted"] + ["Receipt"] * 9
    assert len(await log_of(replica)) == 10


async def test_a_statement_that_fails_is_bisected_down_to_the_guilty_unit(replica: Replica) -> None:
    await replica.put("warm", 1)
    outcomes = await asyncio.gather(
        *(replica.put(f"c{n}", 666 if n == 11 else n) for n in range(20)), return_exceptions=True
    )
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [11]
    assert isinstance(outcomes[11], psycopg.errors.CheckViolation)
    assert [unit.revision for unit in await log_of(replica)] == list(range(1, 21))


async def test_a_connection_lost_inside_commit_is_answered_rightly(
    replica: Replica, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await replica.put("warm", 1)
    cut: list[bool] = []

    async def commit_then_lose_the_answer(connection: Connection, *statements: Statement) -> object:
        result = await pipeline(connection, *statements)
        if statements[-1].sql == "COMMIT" and len(statements) > 2 and not cut:
            cut.append(True)
            await connection.close()
            raise psycopg.OperationalError("the server closed the connection")
        return result

    monkeypatch.setattr("services.runtime.committer.pipeline", commit_then_lose_the_answer)
    receipt = await replica.put("c", 1)
    assert cut
    assert (receipt.revision, receipt.answer) == (2, b"put")
    assert len(await log_of(replica)) == 2


async def test_a_backend_killed_under_load_loses_and_doubles_nothing(replica: Replica, postgres: str) -> None:
    async def kill_backends() -> None:
        async with await psycopg.AsyncConnection.connect(postgres, autocommit=True) as admin:
            for _ in range(6):
                await asyncio.sleep(0.05)
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'log%_app'"
                )

    async def writer(name: str) -> list[int]:
        return [(await replica.put(f"{name}{n}", n)).revision for n in range(60)]

    *revisions, _ = await asyncio.gather(*(writer(f"w{n}-") for n in range(8)), kill_backends())
    acknowledged: Sequence[int] = sorted(revision for own in revisions if own for revision in own)
    assert acknowledged == list(range(1, 481))
    assert [unit.revision for unit in await log_of(replica)] == acknowledged


async def test_namespaces_do_not_see_each_other(replica: Replica) -> None:
    other = Namespace("shoals", "0badcafe")
    await replica.put("c", 1)
    await replica.put("c", 2, namespace=other)
    assert [unit.revision for unit in await log_of(replica, "shoals")] == [1]
    (rows,) = await replica.database.read("tides", Statement("SELECT DISTINCT namespace FROM units"))
    assert rows == [("tides",)]


async def test_a_version_is_a_slice_of_its_unit(replica: Replica) -> None:
    for value in (1, 2, 3):
        await replica.put("c", value)
    (rows,) = await replica.database.read(NAMESPACE.id, changelog.select_versions(NAMESPACE.id, [("cell", "c")], 2))
    ((kind, identifier, change_kind, entity),) = rows
    assert (kind, identifier, change_kind) == ("cell", "c", changelog.UPDATED)
    assert feed_pb2.Change.FromString(b"\x12" + bytes([len(entity)]) + entity).entity.revision == 2


async def test_a_statement_that_takes_too_long_fails_its_unit_and_not_its_neighbours(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    await replica.put("warm", 1)
    real = CellRound.writes

    def writes(self: CellRound, accepted: Sequence[tuple[Put, Stamp]]) -> Sequence[Statement]:
        slow = [Statement("SET LOCAL statement_timeout = '50ms'"), Statement("SELECT pg_sleep(2)")]
        return [*(slow if any(unit.cell == "c7" for unit, _ in accepted) else []), *real(self, accepted)]

    monkeypatch.setattr(CellRound, "writes", writes)
    outcomes = await asyncio.gather(*(replica.put(f"c{n}", n) for n in range(12)), return_exceptions=True)
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [7]
    assert isinstance(outcomes[7], psycopg.errors.QueryCanceled)


async def test_a_batch_is_cut_by_what_it_really_adds_to_the_log(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runtime.committer.MAX_BATCH_BYTES", 300)
    units = [put(f"c{n}", n) for n in range(40)]
    for unit in units:
        unit.size = 1
    receipts = receipts_of(await replica.committer.submit(NAMESPACE, *units))
    assert [receipt.revision for receipt in receipts] == list(range(1, 41))
    assert len(replica.announced) > 5


async def test_a_unit_that_was_answered_is_not_decided_again_when_the_rest_of_its_batch_fails(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runtime.committer.MAX_BATCH_BYTES", 300)
    decided: list[str] = []
    real = CellRound.decide

    def decide(self: CellRound, unit: Put, stamp: Stamp) -> Decision:
        decided.append(unit.cell)
        return real(self, unit, stamp)

    monkeypatch.setattr(CellRound, "decide", decide)
    units = [put("refused", 1, expected=7), *(put(f"c{n}", 666 if n == 39 else n) for n in range(40))]
    for unit in units:
        unit.size = 1
    refused, *others, failed = await replica.committer.submit(NAMESPACE, *units)
    assert isinstance(refused, Aborted)
    assert isinstance(failed, psycopg.errors.CheckViolation)
    assert [receipt.result for receipt in receipts_of(others)] == ["put"] * 39, "none was taken for a repetition"
    assert decided.count("refused") == 1


async def test_a_batch_that_is_cut_again_and_again_is_not_read_in_full_each_time(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.runtime.committer.MAX_BATCH_BYTES", 300)
    read: list[int] = []
    real = Cells.reads

    def reads(self: Cells, namespace: str, units: Sequence[Put]) -> Sequence[Statement]:
        read.append(len(units))
        return real(self, namespace, units)

    monkeypatch.setattr(Cells, "reads", reads)
    units = [put(f"c{n}", n) for n in range(320)]
    for unit in units:
        unit.size = 1
    receipts_of(await replica.committer.submit(NAMESPACE, *units))
    assert len(replica.announced) > 40
    assert sum(read) < 320 * 8


async def test_of_many_that_wait_for_one_name_few_are_looked_at_and_the_order_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.runtime.lanes.MAX_LOOKED_AT", 10)
    lane: Lane[Put] = Lane(NAMESPACE)
    cells = ["a"] * 30 + ["b"] * 5 + ["a", "c"]
    units = [put(cell, n, request_id=str(n)) for n, cell in enumerate(cells)]
    submission = Submission(len(units))
    lane.waiting.extend(Waiting(unit, submission, place) for place, unit in enumerate(units))
    batches = [[item.unit for item in lane.take()] for _ in range(len(units))]
    assert [unit.value for unit in batches[0]] == [0], "what is not looked at does not overtake"
    assert {unit.value for batch in batches for unit in batch} == set(range(len(units)))
    for name in "abc":
        taken = [unit.value for batch in batches for unit in batch if unit.cell == name]
        assert taken == sorted(taken)


async def test_a_lone_writer_waits_for_nobody_and_many_wait_for_each_other() -> None:
    lane: Lane[Put] = Lane(NAMESPACE)
    assert not waits(lane, 1)
    assert waits(lane, 64)
    assert waits(lane, 1), "one small batch does not make them few"
    while waits(lane, 1):
        pass  # but some do


def waits(lane: Lane[Put], committed: int) -> bool:
    """Whether the commit after one of *committed* units lets others come in first."""
    gathering = lane.gather(committed)
    try:
        gathering.__await__().send(None)
    except StopIteration:
        return False
    gathering.close()
    return True
