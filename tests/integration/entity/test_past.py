"""The past against a model: what the log says, replayed in plain Python."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from strandline.entity.v1 import entity_pb2
from strandline.rpc.v1 import access_pb2
from strandline.stream.v1 import feed_pb2

from tests.integration.entity.conftest import Replica, Shore, error_info, reason, refusal
from tests.integration.entity.test_types import remove_type

State = dict[str, entity_pb2.Entity]
TYPES = ("buoy", "whale")
IDS = [f"e{number:02}" for number in range(25)]


def replay(units: list[feed_pb2.Unit]) -> list[State]:
    """What there was after each revision, deleted entities too; the first is before all."""
    states: list[State] = [{}]
    for unit in units:
        state = dict(states[-1])
        state.update({change.entity.name: change.entity for change in unit.changes if change.HasField("entity")})
        states.append(state)
    return states


def is_live(entity: entity_pb2.Entity) -> bool:
    return not entity.HasField("delete_time")


def data_of(entity: entity_pb2.Entity) -> dict[str, Any]:
    data: dict[str, Any] = json_format.MessageToDict(entity.data)
    return data


@pytest.fixture(scope="module")
async def past(replica: Replica) -> tuple[Shore, list[State], list[feed_pb2.Unit]]:
    """A namespace with a random history, its states by revision, and its log."""
    rng = random.Random(11)
    shore = replica.shore()
    for type_id in TYPES:
        await shore.declare(type_id, indexes=[{"fields": ["data.n"]}])
    for _ in range(60):
        writes = []
        for entity_id in rng.sample(IDS, 4):
            type_id, chance = rng.choice(TYPES), rng.random()
            if chance < 0.25:
                writes.append(shore.deleting(entity_id, type_id, allow_missing=True))
            elif chance < 0.4:
                writes.append(shore.undeleting(entity_id, type_id))
            else:
                data = {"n": rng.randrange(4), "at": {"lat": rng.randrange(3)}, "tags": rng.sample("abc", 2)}
                writes.append(shore.updating(entity_id, data, type_id, allow_missing=True))
        if rng.random() < 0.3:
            await shore.transact(*(write for write in writes if write.WhichOneof("operation") == "update"))
        else:
            await shore.batch(*writes)
    units = await shore.units()
    return shore, replay(units), units


def seen(state: State, later: list[feed_pb2.Unit]) -> State:
    """*state* without the deleted entities whose name was taken again later: of those nothing is known."""
    taken: set[str] = set()
    known: set[str] = set()
    for unit in later:
        for change in unit.changes:
            if change.entity.name not in known:
                known.add(change.entity.name)
                if change.kind == feed_pb2.Change.CREATED:
                    taken.add(change.entity.name)
    return {name: entity for name, entity in state.items() if is_live(entity) or name not in taken}


async def test_a_read_as_of_a_revision_sees_what_was_there(
    past: tuple[Shore, list[State], list[feed_pb2.Unit]],
) -> None:
    shore, states, units = past
    for revision in range(1, len(states), 13):
        state = seen(states[revision], units[revision:])
        live = {name: entity for name, entity in state.items() if is_live(entity)}
        for type_id in TYPES:
            names = {entity_id: shore.name(entity_id, type_id) for entity_id in IDS}
            for entity_id, name in names.items():
                if name in state:
                    assert await shore.get(entity_id, type_id, as_of_revision=revision) == state[name]
                else:
                    assert await reason(shore.get(entity_id, type_id, as_of_revision=revision)) == "NOT_FOUND"
            batch = await shore.batch_get(IDS, type_id, as_of_revision=revision)
            assert list(batch.entities) == [live[name] for name in names.values() if name in live]
            assert list(batch.missing_ids) == [entity_id for entity_id, name in names.items() if name not in live]
            assert (batch.revision, list(batch.unread_ids)) == (revision, [])


@pytest.mark.parametrize("show_deleted", [False, True])
@pytest.mark.parametrize("text", ["", "data.n = 2", "data.n >= 1 AND NOT data.at.lat = 1", 'data.tags:"a"'])
async def test_a_list_as_of_a_revision_is_what_the_filter_says_of_that_state(
    past: tuple[Shore, list[State], list[feed_pb2.Unit]],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    show_deleted: bool,
) -> None:
    monkeypatch.setattr("services.entity.history.MAX_EXAMINED", 7)
    monkeypatch.setattr("services.entity.history._AT_ONCE", 3)
    by_text: dict[str, Callable[[dict[str, Any]], bool]] = {
        "": lambda d: True,
        "data.n = 2": lambda d: d["n"] == 2,
        "data.n >= 1 AND NOT data.at.lat = 1": lambda d: d["n"] >= 1 and d["at"]["lat"] != 1,
        'data.tags:"a"': lambda d: "a" in d["tags"],
    }
    matches = by_text[text]
    shore, states, units = past
    for revision in range(2, len(states), 17):
        state = seen(states[revision], units[revision:])
        expected = [
            entity_id
            for entity_id in IDS
            if (entity := state.get(shore.name(entity_id))) is not None
            and (show_deleted or is_live(entity))
            and matches(data_of(entity))
        ]
        for size in (2, 50):
            found = await shore.list_ids(
                filter=text, show_deleted=show_deleted, page_size=size, as_of_revision=revision
            )
            assert found == expected


async def test_a_list_as_of_a_time_stays_at_the_revision_of_its_first_page(shore: Shore) -> None:
    await shore.declare()
    for entity_id in ("b1", "b2", "b3"):
        await shore.create(entity_id, {"n": 1})
    moment = (await shore.look_up(revision=3)).commit_time
    first = await shore.page(as_of_time=moment, page_size=1)
    assert first.revision == 3
    await shore.delete("b2")
    second = await shore.page(as_of_time=moment, page_size=1, page_token=first.next_page_token)
    assert [entity.name for entity in second.entities] == [shore.name("b2")]
    third = await shore.page(as_of_time=moment, page_token=second.next_page_token)
    assert (list(third.entities), third.next_page_token, third.revision) == ([], "", 3)


async def test_every_time_finds_the_revision_that_was_the_newest_then(
    past: tuple[Shore, list[State], list[feed_pb2.Unit]],
) -> None:
    shore, _, units = past
    for unit in units[::7]:
        at = unit.commit_time.ToDatetime(tzinfo=UTC)
        for moment, expected in ((at, unit.revision), (at - timedelta(microseconds=1), unit.revision - 1)):
            answer = await shore.look_up(time=moment)
            assert (answer.revision, answer.head_revision, answer.horizon_revision) == (expected, len(units), 0)
            assert answer.HasField("commit_time") == (expected > 0)
        assert (await shore.look_up(revision=unit.revision)).commit_time == unit.commit_time


async def test_before_the_first_revision_there_is_nothing_and_after_the_last_there_is_the_head(shore: Shore) -> None:
    assert (await shore.look_up(time=datetime.now(UTC))).revision == 0
    await shore.declare()
    await shore.create("b1", {})
    long_ago, far_ahead = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
    assert (await shore.look_up(time=long_ago)).revision == 0
    assert (await shore.look_up(revision=0)).revision == 0
    assert (await shore.look_up(time=far_ahead)).revision == 2
    assert list((await shore.page(as_of_time=long_ago)).entities) == []
    assert await reason(shore.get("b1", as_of_time=long_ago)) == "NOT_FOUND"


async def test_the_future_is_refused(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {})
    ahead = datetime.now(UTC) + timedelta(minutes=1)
    for call in (
        shore.get("b1", as_of_revision=3),
        shore.get("b1", as_of_time=ahead),
        shore.batch_get(["b1"], as_of_revision=3),
        shore.batch_get([], as_of_revision=3),
        shore.page(as_of_revision=3),
        shore.page(as_of_time=ahead),
        shore.look_up(revision=3),
        shore.diff("b1", 1, 3),
        shore.diff_page(from_revision=1, to_revision=3),
        shore.diff_page(from_revision=3),
        shore.diff("b1", 3, 1),
        shore.roll_back("b1", 3),
        shore.export_page(revision=3),
        shore.get("b1", as_of_revision=1, min_revision=3),
    ):
        failure = await refusal(call)
        assert error_info(failure).reason == "FUTURE_REVISION"
        assert error_info(failure).metadata["head_revision"] == "2"


async def test_what_lies_before_the_horizon_is_compacted_and_the_horizon_itself_is_not(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    await shore.update("b1", {"n": 2})
    await shore.update("b1", {"n": 3})
    before = (await shore.look_up(revision=3)).commit_time
    database = shore.replica.deployment
    await database.execute(f"UPDATE heads SET horizon = 3 WHERE namespace = '{shore.namespace.id}'")  # noqa: S608
    for table in ("units", "versions"):
        await database.execute(
            f"DELETE FROM {table} WHERE namespace = '{shore.namespace.id}' AND revision <= 3"  # noqa: S608
        )
    for call in (
        shore.get("b1", as_of_revision=2),
        shore.get("b1", as_of_time=before),
        shore.batch_get(["b1"], as_of_revision=2),
        shore.page(as_of_revision=2),
        shore.look_up(revision=2),
        shore.look_up(time=before),
        shore.diff("b1", 2, 4),
        shore.diff_page(from_revision=2, to_revision=4),
        shore.roll_back("b1", 2),
        shore.export_page(revision=2),
    ):
        failure = await refusal(call)
        assert failure.code() == grpc.StatusCode.OUT_OF_RANGE
        assert error_info(failure).reason == "COMPACTED"
        assert error_info(failure).metadata["horizon_revision"] == "3"
    assert (await shore.get("b1", as_of_revision=3)).data["n"] == 2
    assert [entity.data["n"] for entity in (await shore.page(as_of_revision=3)).entities] == [2]
    assert (await shore.look_up(revision=3)).horizon_revision == 3
    assert [change.pointer for change in (await shore.diff("b1", 3)).changes] == ["/n"]
    assert [version.revision for version in (await shore.revisions("b1")).revisions] == [4]
    assert (await shore.roll_back("b1", 3)).entity.data["n"] == 2


async def test_a_malformed_question_is_refused(shore: Shore) -> None:
    await shore.declare(indexes=[{"fields": ["data.n"]}])
    await shore.create("b1", {"n": 1})
    now = datetime.now(UTC)
    malformed: list[Any] = [
        shore.get("b1", as_of_revision=1, as_of_time=now),
        shore.page(as_of_revision=2, order_by="data.n"),
        shore.get("b1", as_of_revision=-1),
        shore.get("b1", as_of_time=Timestamp(seconds=2**62)),
        shore.look_up(),
        shore.diff("b1", 2, 1),
        shore.diff_page(from_revision=2, to_revision=1),
        shore.roll_back("b1", 0),
        shore.page(as_of_revision=2, filter="data.n = "),
    ]
    for call in malformed:
        assert await reason(call) == "INVALID_FIELD"
    page = await shore.page(as_of_revision=2, page_size=1, filter="data.n = 1")
    await shore.create("b2", {"n": 1})
    page = await shore.page(as_of_revision=3, page_size=1, filter="data.n = 1")
    foreign: list[Any] = [
        shore.page(as_of_revision=2, filter="data.n = 1", page_token=page.next_page_token),
        shore.page(as_of_revision=3, page_token=page.next_page_token),
        shore.page(filter="data.n = 1", page_token=page.next_page_token),
        shore.revisions("b1", page_token=page.next_page_token),
        shore.diff_page(page_token=page.next_page_token),
        shore.export_page(page_token=page.next_page_token),
    ]
    for call in foreign:
        assert await reason(call) == "PAGE_TOKEN_INVALID"
    unknown: list[Any] = [
        shore.page("whale", as_of_revision=2),
        shore.get("b9", as_of_revision=2),
        shore.revisions("b9"),
    ]
    for call in unknown:
        assert await reason(call) == "NOT_FOUND"


async def test_a_stranger_learns_nothing_of_the_past_and_a_viewer_does_not_roll_back(
    shore: Shore, replica: Replica
) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    stranger = replica.member(shore.namespace, 0)
    for call in (
        stranger.get("b1", as_of_revision=2),
        stranger.page(as_of_revision=2),
        stranger.revisions("b1"),
        stranger.diff("b1", 1),
        stranger.diff_page(from_revision=1),
        stranger.look_up(revision=1),
        stranger.export_page(),
        stranger.roll_back("b1", 2),
    ):
        assert await reason(call) == "NOT_FOUND"
    viewer = replica.member(shore.namespace, access_pb2.Access.VIEWER)
    assert len((await viewer.revisions("b1")).revisions) == 1
    assert await reason(viewer.roll_back("b1", 2)) == "ROLE_INSUFFICIENT"


async def test_the_past_of_a_type_that_is_gone_can_be_listed(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    await shore.delete("b1")
    await remove_type(shore)
    assert await shore.list_ids(as_of_revision=2, filter="data.n = 1") == ["b1"]
    assert await shore.list_ids(as_of_revision=3) == []
    assert await reason(shore.page()) == "NOT_FOUND"


async def test_a_list_of_the_past_is_the_same_while_writes_go_on(shore: Shore) -> None:
    await shore.declare()
    await shore.batch(*(shore.creating(f"b{n:03}", {"n": n}) for n in range(200)))
    revision = await shore.head()

    async def write() -> None:
        for n in range(0, 200, 4):
            await shore.batch(
                shore.deleting(f"b{n:03}"), shore.updating(f"b{n + 1:03}", {"n": -1}), shore.creating(f"a{n:03}", {})
            )

    writing = asyncio.create_task(write())
    for _ in range(3):
        found = []
        token = ""
        while True:
            page = await shore.page(as_of_revision=revision, page_size=20, page_token=token)
            found += [(entity.name.rsplit("/", 1)[1], entity.data["n"]) for entity in page.entities]
            if not (token := page.next_page_token):
                break
        assert found == [(f"b{n:03}", n) for n in range(200)]
    await writing


async def test_a_page_of_the_past_ends_by_the_bytes_that_it_examined_and_the_list_goes_on(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.history.MAX_EXAMINED_BYTES", 3 * 2**20)
    await shore.declare()
    for n in range(50):
        await shore.create(f"b{n:02}", {"text": "x" * 200_000, "n": n})
    await shore.create("c", {"n": 50})
    revision = await shore.head()
    page = await shore.page(filter="data.n = 50", as_of_revision=revision)
    assert (len(page.entities), bool(page.next_page_token)) == (0, True)
    assert await shore.list_ids(filter="data.n = 50", as_of_revision=revision) == ["c"]
    assert await shore.list_ids(filter="data.n != 50", as_of_revision=revision) == [f"b{n:02}" for n in range(50)]
