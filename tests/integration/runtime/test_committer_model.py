"""The committer against a sequential model: whatever happens at once, some order explains it, and the log tells which.

Units move amounts between cells: what they may do, and what they answer, depends on all that was committed before. Two
replicas take them at the same time, also the same unit twice, while connections are cut and statements fail. The log is
then replayed in plain Python: every answer, refusal and stored value must be what the replay says.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strandline.stream.v1 import feed_pb2

from services.runtime import changelog, wire
from services.runtime.call import Namespace
from services.runtime.changelog import CREATED, UPDATED, Change
from services.runtime.committer import Commit, Committer, Decision, Stamp
from services.runtime.database import Database, Row, Statement, packed_int8, packed_text
from services.runtime.errors import Aborted
from services.runtime.request_ids import Share
from services.runtime.units import Outcomes, Receipt, Unit

POISON = 666  # the table refuses it
CELLS = ("a", "b", "c", "d")
Values: TypeAlias = Mapping[str, int]
_namespaces = itertools.count()


@dataclass(frozen=True)
class Spec:
    """Add *amounts* to cells, if none becomes negative; answer what they are then, and what the *seen* cells hold."""

    amounts: tuple[tuple[str, int], ...]
    seen: tuple[str, ...]
    poisoned: bool
    validate_only: bool

    def applied(self, values: Values) -> dict[str, int] | None:
        """What the cells hold after it; None: it is refused."""
        after = {cell: values.get(cell, 0) + amount for cell, amount in self.amounts}
        return None if min(after.values()) < 0 else after

    def answer(self, values: Values) -> bytes:
        return json.dumps([self.applied(values), [values.get(cell, 0) for cell in self.seen]]).encode()

    @property
    def changes(self) -> bool:
        return any(amount for _, amount in self.amounts)

    def conflicts(self, other: Spec) -> bool:
        mine, others = {cell for cell, _ in self.amounts}, {cell for cell, _ in other.amounts}
        return bool(mine & (others | set(other.seen)) or others & set(self.seen))


@dataclass(kw_only=True, eq=False)
class Move(Unit):
    spec: Spec


def move(spec: Spec, request_id: str) -> Move:
    request, is_share, number = request_id.partition(".")
    return Move(
        actor="ann",
        method="Move",
        request_id=request_id,
        share=Share(request, int(number)) if is_share else None,
        body_hash=hashlib.sha256(repr(spec).encode()).digest(),
        exclusive=frozenset(cell for cell, _ in spec.amounts),
        shared=frozenset(spec.seen),
        validate_only=spec.validate_only,
        spec=spec,
    )


class Moves:
    """The ledger."""

    def reads(self, namespace: str, units: Sequence[Move]) -> Sequence[Statement]:
        names = packed_text(CELLS)
        return [Statement("SELECT name, value FROM cells WHERE namespace = %s AND name = ANY(%s)", (namespace, names))]

    def open_round(self, namespace: str, units: Sequence[Move], rows: Sequence[list[Row]]) -> MoveRound:
        return MoveRound(namespace, dict(rows[0]))


@dataclass
class MoveRound:
    namespace: str
    values: Values

    def decide(self, unit: Move, stamp: Stamp) -> Decision:
        after = unit.spec.applied(self.values)
        if after is None:
            raise Aborted("ETAG_MISMATCH", "a cell would become negative")
        changes = [
            Change(UPDATED if cell in self.values else CREATED, "cell", cell, wire.text(1, cell))
            for cell, value in after.items()
            if value != self.values.get(cell, 0)
        ]
        return Decision(changes, unit.spec.answer(self.values))

    def writes(self, accepted: Sequence[tuple[Move, Stamp]]) -> Sequence[Statement]:
        written = [
            (cell, POISON if unit.spec.poisoned else value)
            for unit, _ in accepted
            for cell, value in (unit.spec.applied(self.values) or {}).items()
        ]
        if not written:
            return []
        return [
            Statement(
                """INSERT INTO cells (namespace, name, value) SELECT %s, * FROM unnest(%s::text[], %s::int8[])
                ON CONFLICT (namespace, name) DO UPDATE SET value = excluded.value""",
                (
                    self.namespace,
                    packed_text(cell for cell, _ in written),
                    packed_int8(value for _, value in written),
                ),
            )
        ]


@dataclass(frozen=True)
class Step:
    """Submit *specs* to a replica; *again*: to the other one too; *cut*: meanwhile, every connection is cut.

    ``apart``: the specs are shares of one request, this far from each other; 0: each is a request of its own.
    """

    replica: int
    specs: tuple[Spec, ...]
    apart: int
    again: bool
    cut: bool
    wait: bool
    """Whether all is answered before the next step."""


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    written = draw(st.lists(st.sampled_from(CELLS), min_size=1, max_size=2, unique=True))
    rest = [cell for cell in CELLS if cell not in written]
    return Spec(
        tuple((cell, draw(st.sampled_from([-3, -1, 0, 1, 2, 5]))) for cell in written),
        tuple(draw(st.lists(st.sampled_from(rest), max_size=2, unique=True))),
        poisoned=draw(st.sampled_from([False] * 9 + [True])),
        validate_only=draw(st.sampled_from([False] * 9 + [True])),
    )


rare = st.sampled_from([False, False, True])
steps = st.builds(
    Step,
    st.integers(0, 1),
    st.lists(specs(), min_size=1, max_size=8).map(tuple),
    apart=st.sampled_from([0, 0, 1, 700]),
    again=rare,
    cut=rare,
    wait=rare,
)


@dataclass
class Submission:
    """What became of the specs of one submission; all of it was decided on revision *least* or later."""

    specs: Sequence[Spec]
    request_ids: Sequence[str]
    least: int
    alone: bool
    outcomes: Outcomes = field(default_factory=list)


@dataclass
class Cluster:
    """Two replicas on one namespace of one database, and whoever cuts their connections."""

    namespace: Namespace
    databases: Sequence[Database]
    committers: Sequence[Committer[Move]]
    admin: psycopg.AsyncConnection[tuple[object, ...]]
    announced: list[Commit]
    acknowledged: int = 0
    submissions: list[Submission] = field(default_factory=list)

    async def submit(self, replica: int, submission: Submission) -> None:
        units = [move(spec, of) for spec, of in zip(submission.specs, submission.request_ids, strict=True)]
        submission.outcomes = await self.committers[replica].submit(self.namespace, *units)
        revisions = [outcome.revision for outcome in submission.outcomes if isinstance(outcome, Receipt)]
        self.acknowledged = max([self.acknowledged, *revisions])

    async def cut_connections(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0.004)
            await self.admin.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()"""
            )

    async def run(self, plan: Sequence[Step]) -> None:
        running: list[asyncio.Task[None]] = []
        numbers = itertools.count()
        for step in plan:
            ids = [f"r{next(numbers)}" for _ in step.specs]
            if step.apart:
                ids = [f"{ids[0]}.{place * step.apart}" for place in range(len(ids))]
            for replica in (step.replica, 1 - step.replica) if step.again else (step.replica,):
                submission = Submission(step.specs, ids, self.acknowledged, alone=not step.again)
                self.submissions.append(submission)
                running.append(asyncio.create_task(self.submit(replica, submission)))
            if step.cut:
                running.append(asyncio.create_task(self.cut_connections()))
            if step.wait:
                await asyncio.gather(*running)
            await asyncio.sleep(0)
        await asyncio.gather(*running)

    async def log(self) -> list[feed_pb2.Unit]:
        _, units = await changelog.read_units(self.databases[0], self.namespace.id, 0, 0, 3 * 2**20)
        return [feed_pb2.Unit.FromString(unit) for unit in units]

    async def stored(self) -> dict[str, int]:
        cursor = await self.admin.execute("SELECT name, value FROM cells WHERE namespace = %s", (self.namespace.id,))
        return {str(name): int(str(value)) for name, value in await cursor.fetchall()}


@asynccontextmanager
async def cluster(log_url: str) -> AsyncIterator[Cluster]:
    databases = [Database(log_url), Database(log_url)]
    announced: list[Commit] = []

    async def announce(commit: Commit) -> None:
        announced.append(commit)

    committers = [Committer(database, Moves(), announce) for database in databases]
    superuser = psycopg.conninfo.make_conninfo(log_url, user="postgres")
    async with await psycopg.AsyncConnection.connect(superuser, autocommit=True) as admin:
        namespace = Namespace(f"model-{next(_namespaces)}", "00c0ffee")
        yield Cluster(namespace, databases, committers, admin, announced)
    for database in databases:
        await database.close()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(plan=st.lists(steps, min_size=1, max_size=6), part=st.sampled_from([1, 3, 128]))
async def test_some_order_explains_every_answer_and_it_is_that_of_the_log(
    log_url: str, monkeypatch: pytest.MonkeyPatch, plan: list[Step], part: int
) -> None:
    monkeypatch.setattr("services.runtime.committer.PART_UNITS", part)
    async with cluster(log_url) as running:
        await running.run(plan)
        log, stored = await running.log(), await running.stored()

    specs_of = {
        request_id: spec
        for submission in running.submissions
        for request_id, spec in zip(submission.request_ids, submission.specs, strict=True)
    }
    assert [unit.revision for unit in log] == list(range(1, len(log) + 1))
    history: list[dict[str, int]] = [{}]
    for unit in log:
        spec = specs_of[unit.request_id]
        after = spec.applied(history[-1])
        assert after is not None, "it was not refused"
        assert (spec.changes, spec.poisoned, spec.validate_only) == (True, False, False)
        history.append({**history[-1], **after})
    assert {cell: value for cell, value in stored.items() if value} == {c: v for c, v in history[-1].items() if v}

    logged = {unit.request_id: unit.revision for unit in log}
    assert len(logged) == len(log), "a unit is committed once"
    for submission in running.submissions:
        for request_id, spec, outcome in zip(
            submission.request_ids, submission.specs, submission.outcomes, strict=True
        ):
            if isinstance(outcome, Receipt):
                committed = spec.changes and not spec.validate_only
                assert logged.get(request_id) == (outcome.revision if committed else None)
                assert outcome.revision >= (submission.least if submission.alone else 0)
                assert outcome.answer == spec.answer(history[outcome.revision - committed])
            elif isinstance(outcome, Aborted):
                assert any(spec.applied(values) is None for values in history[submission.least :])
                assert not submission.alone or request_id not in logged
            else:
                assert isinstance(outcome, psycopg.errors.CheckViolation)
                assert (spec.changes, spec.poisoned) == (True, True)
        assert_in_order(submission, logged)


def assert_in_order(submission: Submission, logged: Mapping[str, int]) -> None:
    """Units on the same cells were applied as they were submitted, if nobody else could apply them."""
    if not submission.alone:
        return
    applied = [
        (spec, logged[request_id])
        for request_id, spec in zip(submission.request_ids, submission.specs, strict=True)
        if request_id in logged
    ]
    for (earlier, before), (later, after) in itertools.combinations(applied, 2):
        assert before < after or not earlier.conflicts(later)
