"""Imports: every row decided once and counted once, chunks in their order, replaced sets, dry runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import entity_service_pb2 as entities_pb
from strandline.entity.v1 import import_service_pb2 as pb
from strandline.rpc.v1 import access_pb2

from services.entity import import_finish, import_store, imports, limits, upkeep
from services.entity.import_store import Counts, ImportKey, Rejection, TakenChunk
from services.entity.model import EntityKey
from services.runtime.errors import Unavailable
from tests.integration.entity.conftest import Shore, error_info, info_in, pointers, reason, refusal
from tests.integration.entity.drafts import watch_drafts

INSERT, UPSERT, REPLACE_SET = pb.Import.INSERT, pb.Import.UPSERT, pb.Import.REPLACE_SET
CREATED, UPDATED = entity_pb2.Mutation.CREATED, entity_pb2.Mutation.UPDATED
PROPERTIES = {"n": {"type": "integer"}, "name": {"type": "string"}}
SCHEMA = {"type": "object", "properties": PROPERTIES}
UNIQUE_NAME = [{"fields": ["data.name"], "unique": True}]


def row(entity_id: str, data: dict[str, Any] | None = None, type_id: str = "buoy") -> str:
    return json.dumps({"type": type_id, "id": entity_id, "data": {} if data is None else data})


def send(shore: Shore, rows: Sequence[str] | bytes, offset: int = 0, import_id: str = "i", **more: Any) -> Any:
    raw = rows if isinstance(rows, bytes) else "\n".join(rows).encode()
    request = pb.ImportEntitiesRequest(parent=shore.parent, import_id=import_id, offset=offset, rows=raw, **more)
    return shore.replica.imports.ImportEntities(request, metadata=shore.metadata())


async def look(shore: Shore, import_id: str = "i") -> pb.Import:
    request = pb.GetImportRequest(name=f"{shore.parent}/imports/{import_id}")
    answer: pb.GetImportResponse = await shore.replica.imports.GetImport(request, metadata=shore.metadata())
    return answer.progress


def counts(account: pb.ImportAccount) -> tuple[int, int, int, int]:
    """(inserted, updated, unchanged, rejected); asserts that they are all that was read."""
    parts = (account.inserted, account.updated, account.unchanged, account.rejected)
    assert account.read == sum(parts)
    return parts


async def contents(shore: Shore, type_id: str = "buoy") -> dict[str, Any]:
    entities = (await shore.page(type_id, page_size=1000)).entities
    return {entity.name.rsplit("/", 1)[1]: json_format.MessageToDict(entity.data) for entity in entities}


async def test_of_two_chunks_at_one_place_the_second_leaves_nothing(shore: Shore) -> None:
    await shore.declare(schema=SCHEMA)
    await send(shore, [row("b1")], mode=REPLACE_SET)
    # As by another process, which has looked before the chunk above was recorded.
    key = ImportKey(shore.namespace.id, shore.namespace.epoch, "i")
    late = import_store.record_chunk(
        key,
        0,
        TakenChunk(1, b"other lines", Counts(rejected=1)),
        [Rejection(1, "buoy", "b2", b"")],
        0,
        [EntityKey("buoy", "b2")],
    )
    async with shore.replica.service.database.connection() as connection, connection.transaction():
        await connection.execute("SELECT set_config('app.namespace', %s, true)", (shore.namespace.id,))
        for statement in late:
            await connection.execute(statement.sql.encode(), statement.params)
    for table in ("import_rejections", "import_names"):
        counted = f"SELECT count(*) FROM {table} WHERE namespace = %s AND id = 'b2'"  # noqa: S608
        assert await shore.replica.deployment.rows(counted, shore.namespace.id) == [(0,)]
    assert counts((await look(shore)).account) == (1, 0, 0, 0)


async def test_rows_are_inserted_updated_left_or_rejected_and_all_are_accounted_for(shore: Shore) -> None:
    await shore.declare(schema=SCHEMA, indexes=UNIQUE_NAME)
    await shore.create("b1", {"n": 1})
    await shore.create("b2", {"n": 2, "name": "two"})
    answer = await send(
        shore,
        [
            row("b1", {"n": 7}),
            row("b2", {"name": "two", "n": 2.0}),
            "",
            row("b3", {"n": 3}),
            row("b4", {"n": "many"}),
            row("b5", {"name": "two"}),
            row("b6", {}, "planet"),
            row("not an id", {}),
            "no json",
            '{"id": "b7", "data": {}}',
            '{"type": "buoy", "id": "b8", "data": {"n": 1, "n": 2}}',
            '{"error": "has more cells than the header"}',
            '{"type": "buoy", "id": "b9", "data": {}, "more": 1}',
        ],
        finish=True,
    )
    assert counts(answer.chunk) == (1, 1, 1, 9)
    assert counts(answer.progress.account) == (1, 1, 1, 9)
    assert (answer.progress.next_offset, answer.progress.state) == (13, pb.Import.FINISHED)
    told = {item.line: item for item in answer.rows}
    assert {line: (item.id, info_in(item.status).reason) for line, item in told.items()} == {
        5: ("b4", "SCHEMA_VIOLATION"),
        6: ("b5", "UNIQUE_VIOLATION"),
        7: ("b6", "NOT_FOUND"),
        8: ("not an id", "INVALID_FIELD"),
        9: ("", "ROW_INVALID"),
        10: ("b7", "ROW_INVALID"),
        11: ("b8", "INVALID_FIELD"),
        12: ("", "ROW_INVALID"),
        13: ("b9", "ROW_INVALID"),
    }
    assert told[12].status.message == "has more cells than the header"
    assert await contents(shore) == {"b1": {"n": 7}, "b2": {"n": 2, "name": "two"}, "b3": {"n": 3}}
    assert answer.revision == await shore.head() == 5
    assert counts((await look(shore)).account) == (1, 1, 1, 9)


async def test_insert_rejects_what_is_there(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {"n": 1})
    await shore.create("b2", {"n": 1})
    await shore.delete("b2")
    answer = await send(shore, [row("b1", {"n": 1}), row("b2", {"n": 2}), row("b3"), row("b3")], mode=INSERT)
    assert counts(answer.chunk) == (2, 0, 0, 2)
    assert [(item.line, info_in(item.status).reason) for item in answer.rows] == [
        (1, "ALREADY_EXISTS"),
        (4, "ALREADY_EXISTS"),
    ]


async def test_a_chunk_that_is_sent_again_is_answered_as_the_first_time(shore: Shore) -> None:
    await shore.declare(schema=SCHEMA)
    rows = [row("b1", {"n": 1}), row("b1", {"n": 2}), row("b2", {"n": "x"})]
    first = await send(shore, rows)
    await shore.update("b1", {"n": 9})
    again = await send(shore, rows)
    assert again.chunk == first.chunk
    assert again.rows == first.rows
    assert again.progress == first.progress
    assert await contents(shore) == {"b1": {"n": 9}}


async def test_other_lines_at_a_taken_offset_are_refused(shore: Shore) -> None:
    await shore.declare()
    await send(shore, [row("b1"), row("b2")])
    assert await reason(send(shore, [row("b1"), row("b3")])) == "REQUEST_ID_REUSED"
    failure = await refusal(send(shore, [row("b1")]))
    assert error_info(failure).reason == "IMPORT_OFFSET"
    assert error_info(failure).metadata["next_offset"] == "2"
    failure = await refusal(send(shore, [row("b2")], offset=1))
    assert error_info(failure).reason == "IMPORT_OFFSET"


async def test_other_lines_than_those_that_were_applied_but_not_counted_are_refused(
    shore: Shore, monkeypatch: Any
) -> None:
    await shore.declare()
    with monkeypatch.context() as broken:
        broken.setattr(imports.Importer, "_record", _break_off)
        assert await reason(send(shore, [row("b1"), row("b2")])) == "UNAVAILABLE"
    assert (await look(shore)).account.read == 0
    failure = await refusal(send(shore, [row("b1"), row("b3")]))
    assert (error_info(failure).reason, error_info(failure).metadata["field"]) == ("REQUEST_ID_REUSED", "rows")
    assert pointers(failure) == ["rows"]
    assert sorted(await contents(shore)) == ["b1", "b2"]
    assert counts((await send(shore, [row("b1"), row("b2")])).chunk) == (2, 0, 0, 0)


async def _break_off(*_: Any) -> None:
    raise Unavailable("UNAVAILABLE", "broken off")


async def test_chunks_that_overtake_each_other_apply_in_the_order_of_their_lines(shore: Shore) -> None:
    await shore.declare()
    chunks = [[row("b1", {"n": number}), row(f"c{number}")] for number in range(8)]
    calls = [send(shore, rows, offset=2 * number) for number, rows in enumerate(chunks)]
    answers = await asyncio.gather(*reversed(calls))
    assert (await contents(shore))["b1"] == {"n": 7}
    assert {answer.progress.next_offset for answer in answers} == set(range(2, 17, 2))
    assert counts((await look(shore)).account) == (9, 7, 0, 0)


async def test_a_chunk_that_waited_is_decided_on_what_there_is_when_its_turn_comes(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shore.declare(schema=SCHEMA, indexes=UNIQUE_NAME)
    await send(shore, [row("b1", {"name": "tern"})])
    # It takes a name that the chunk before frees, changes what that one makes, and fits what the type becomes.
    drafted = watch_drafts(monkeypatch)
    # The call is on its way from here on.
    later = send(shore, [row("b2", {"name": "tern"}), row("b3", {"n": 2}), row("b4", {"mass": 1})], offset=3)
    await asyncio.wait_for(drafted.wait(), 30)
    await shore.change_type(schema={"type": "object", "properties": {**PROPERTIES, "mass": {"type": "integer"}}})
    await send(shore, [row("b1", {"name": "gull"}), row("b3", {"n": 1})], offset=1)
    answer = await later
    assert counts(answer.chunk) == (2, 1, 0, 0)
    assert await contents(shore) == {
        "b1": {"name": "gull"},
        "b2": {"name": "tern"},
        "b3": {"n": 2.0},
        "b4": {"mass": 1.0},
    }


async def test_a_gap_is_refused_with_the_place_where_to_go_on(shore: Shore, monkeypatch: Any) -> None:
    monkeypatch.setattr(imports, "WAIT_SECONDS", 0.3)
    await shore.declare()
    failure = await refusal(send(shore, [row("b1")], offset=5))
    assert (error_info(failure).reason, error_info(failure).metadata["next_offset"]) == ("IMPORT_OFFSET", "0")
    await send(shore, [row("b1")])
    failure = await refusal(send(shore, [row("b1")], offset=2))
    assert (error_info(failure).reason, error_info(failure).metadata["next_offset"]) == ("IMPORT_OFFSET", "1")
    assert await reason(send(shore, [row("b1")], offset=10**9)) == "IMPORT_OFFSET"


async def test_the_same_chunk_sent_several_times_at_once_counts_once(shore: Shore) -> None:
    await shore.declare(schema=SCHEMA)
    rows = [row(f"b{number % 50}", {"n": number if number % 7 else "x"}) for number in range(200)]
    answers = await asyncio.gather(*(send(shore, rows) for _ in range(4)))
    assert all(answer.chunk == answers[0].chunk and answer.rows == answers[0].rows for answer in answers)
    assert counts((await look(shore)).account) == counts(answers[0].chunk)
    inserted, updated, _, _ = counts(answers[0].chunk)
    assert await shore.head() == 1 + inserted + updated


async def test_two_replicas_serve_one_import(shore: Shore, other_replica: Any) -> None:
    await shore.declare()
    sides = [shore, shore.through(other_replica)]
    calls = [send(sides[number % 2], [row("b1", {"n": number}), row(f"c{number}")], 2 * number) for number in range(8)]
    await asyncio.gather(*calls)
    assert (await contents(shore))["b1"] == {"n": 7}
    assert counts((await look(shore)).account) == (9, 7, 0, 0)


async def test_a_dry_run_says_what_would_happen_and_changes_nothing(shore: Shore) -> None:
    await shore.declare(schema=SCHEMA)
    await shore.create("b1", {"n": 1, "name": "one"})
    await shore.create("b2", {"n": 2})
    before = await shore.head()
    rows = [row("b1", {"n": 5}), row("b2", {"n": 2}), row("b3", {"n": 3}), row("b4", {"n": "x"})]
    answer = await send(shore, rows, dry_run=True, finish=True)
    assert counts(answer.chunk) == (1, 1, 1, 1)
    assert [(item.line, item.outcome) for item in answer.rows] == [(1, UPDATED), (3, CREATED), (4, 0)]
    (update, creation, _) = answer.rows
    assert [(change.pointer, change.before, change.after) for change in update.changes] == [
        ("/n", Value(number_value=1), Value(number_value=5)),
        ("/name", Value(string_value="one"), Value()),
    ]
    assert not update.changes[1].HasField("after")
    assert not creation.changes
    assert await shore.head() == before
    assert await contents(shore) == {"b1": {"n": 1, "name": "one"}, "b2": {"n": 2}}
    again = await send(shore, rows, dry_run=True, finish=True)
    assert again.rows == answer.rows
    assert counts(again.progress.account) == (1, 1, 1, 1)


async def test_a_dry_run_leaves_out_the_changes_that_find_no_room(shore: Shore, monkeypatch: Any) -> None:
    monkeypatch.setattr(imports, "MAX_CHANGES_BYTES", 2000)
    await shore.declare()
    await send(shore, [row(f"b{n}", {"text": "x" * 400}) for n in range(8)], import_id="fill")
    answer = await send(shore, [row(f"b{n}", {"text": "y" * 400}) for n in range(8)], dry_run=True)
    assert [item.changes_omitted for item in answer.rows] == [False, False, *[True] * 6]
    assert [len(item.changes) for item in answer.rows] == [1, 1, *[0] * 6]


async def finish(shore: Shore, offset: int, **more: Any) -> pb.Import:
    """Repeat the last call until nothing is left to do."""
    while True:
        answer = await send(shore, [], offset, finish=True, **more)
        if answer.progress.state == pb.Import.FINISHED:
            progress: pb.Import = answer.progress
            return progress


async def test_replace_set_deletes_what_no_row_named_in_the_named_types(shore: Shore) -> None:
    await shore.declare(schema=SCHEMA)
    await shore.declare("ship", schema=SCHEMA)
    for entity_id in ("b1", "b2", "b3", "b4"):
        await shore.create(entity_id, {"n": 1})
    await shore.create("s1", {}, "ship")
    await shore.delete("b4")
    # A row that is rejected still names its entity.
    await send(shore, [row("b1", {"n": 1}), row("b2", {"n": "x"}), row("b9", {})], mode=REPLACE_SET)
    done = await finish(shore, 3, mode=REPLACE_SET)
    assert (done.account.deleted, done.compared, done.missing) == (1, 4, 1)
    assert sorted(await contents(shore)) == ["b1", "b2", "b9"]
    assert sorted(await contents(shore, "ship")) == ["s1"]
    head = await shore.head()
    assert (await finish(shore, 3, mode=REPLACE_SET)).account.deleted == 1
    assert await shore.head() == head
    assert await reason(send(shore, [row("b3")], 3, mode=REPLACE_SET)) == "IMPORT_FINISHED"


async def test_replace_set_of_given_types_takes_no_rows_of_others_and_empties_what_has_no_rows(shore: Shore) -> None:
    for type_id in ("buoy", "ship"):
        await shore.declare(type_id)
        await shore.create("x", {}, type_id)
        await shore.create("y", {}, type_id)
    await shore.declare("crane")
    types = ["ship", "buoy"]
    answer = await send(shore, [row("x"), row("z", {}, "crane")], mode=REPLACE_SET, replaced_types=types)
    assert [info_in(item.status).reason for item in answer.rows] == ["ROW_INVALID"]
    info = error_info(await refusal(finish(shore, 2, mode=REPLACE_SET, replaced_types=types)))
    assert (info.reason, info.metadata["type"]) == ("MASS_CHANGE_REFUSED", "buoy,ship")
    operation_id = info.metadata["operation_id"]
    done = await finish(shore, 2, mode=REPLACE_SET, replaced_types=types, confirm_operation_id=operation_id)
    assert done.account.deleted == 3
    assert (sorted(await contents(shore)), sorted(await contents(shore, "ship"))) == (["x"], [])


async def test_replace_set_deletes_nothing_while_a_row_does_not_say_whom_it_is_about(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {})
    await send(shore, [row("b2"), '{"type": "buoy", "id": '], mode=REPLACE_SET)
    assert await reason(send(shore, [], 2, mode=REPLACE_SET, finish=True)) == "IMPORT_INCOMPLETE"
    assert sorted(await contents(shore)) == ["b1", "b2"]


async def test_a_dry_run_of_replace_set_names_what_would_be_deleted(shore: Shore) -> None:
    await shore.declare()
    for number in range(3):
        await shore.create(f"b{number}", {})
    await send(shore, [row("b1")], mode=REPLACE_SET, dry_run=True)
    done = await finish(shore, 1, mode=REPLACE_SET, dry_run=True)
    assert (done.missing, done.account.deleted) == (2, 0)
    assert list((await look(shore)).missing_names) == [shore.name("b0"), shore.name("b2")]
    assert not (await look(shore)).needs_confirmation
    assert len(await contents(shore)) == 3
    await send(shore, [], import_id="empty", mode=REPLACE_SET, dry_run=True, replaced_types=["buoy"])
    assert not (await look(shore, "empty")).needs_confirmation
    await finish(shore, 0, import_id="empty", mode=REPLACE_SET, dry_run=True, replaced_types=["buoy"])
    assert (await look(shore, "empty")).needs_confirmation


async def test_replacing_most_of_a_set_needs_a_confirmation(shore: Shore, monkeypatch: Any) -> None:
    monkeypatch.setattr(import_finish, "GUARD_FLOOR", 10)
    await shore.declare()
    await send(shore, [row(f"b{number}") for number in range(40)], import_id="fill")
    await send(shore, [row(f"b{number}") for number in range(25)], mode=REPLACE_SET)
    failure = await refusal(send(shore, [], 25, mode=REPLACE_SET, finish=True))
    info = error_info(failure)
    assert (info.reason, info.metadata["changed"], info.metadata["limit"]) == ("MASS_CHANGE_REFUSED", "15", "10")
    assert len(await contents(shore)) == 40
    done = await finish(shore, 25, mode=REPLACE_SET, confirm_operation_id=info.metadata["operation_id"])
    assert done.account.deleted == 15
    assert len(await contents(shore)) == 25


@pytest.mark.parametrize("rows", [[], ['{"type": "row", "id": "b1", "data": {}}']], ids=["empty", "of another type"])
async def test_a_type_that_no_row_names_is_emptied_only_when_that_is_confirmed(shore: Shore, rows: list[str]) -> None:
    await shore.declare()
    for number in range(3):
        await shore.create(f"b{number}", {})
    mode: dict[str, Any] = {"mode": REPLACE_SET, "replaced_types": ["buoy"]}
    await send(shore, rows, **mode)
    failure = await refusal(finish(shore, len(rows), **mode))
    info = error_info(failure)
    assert (info.reason, info.metadata["type"], info.metadata["changed"], info.metadata["limit"]) == (
        "MASS_CHANGE_REFUSED",
        "buoy",
        "3",
        "0",
    )
    assert "no row names any buoy" in str(failure.details())
    assert len(await contents(shore)) == 3
    done = await finish(shore, len(rows), confirm_operation_id=info.metadata["operation_id"], **mode)
    assert (done.account.deleted, await contents(shore)) == (3, {})
    # Where there is nothing to lose, nothing needs to be confirmed.
    await send(shore, rows, import_id="again", **mode)
    assert (await finish(shore, len(rows), import_id="again", **mode)).account.deleted == 0


async def test_a_type_that_is_not_there_cannot_be_replaced(shore: Shore) -> None:
    await shore.declare()
    more: dict[str, Any] = {"mode": REPLACE_SET, "replaced_types": ["buoy", "nosuch"]}
    failure = await refusal(send(shore, [row("b1")], **more))
    assert (error_info(failure).reason, error_info(failure).metadata["type"]) == ("NOT_FOUND", "nosuch")
    assert await reason(look(shore)) == "NOT_FOUND"
    assert await contents(shore) == {}


async def test_an_import_stays_in_its_mode_and_with_its_sender(shore: Shore) -> None:
    await shore.declare()
    await send(shore, [row("b1")])
    assert await reason(send(shore, [row("b2")], 1, mode=INSERT)) == "INVALID_FIELD"
    assert await reason(send(shore, [row("b2")], 1, dry_run=True)) == "INVALID_FIELD"
    assert await reason(send(shore, [row("b2")], 1, replaced_types=["buoy"])) == "INVALID_FIELD"
    editor = shore.replica.member(shore.namespace, access_pb2.Access.EDITOR)
    assert await reason(send(editor, [row("b2")], 1)) == "ALREADY_EXISTS"
    assert counts((await look(editor)).account) == (1, 0, 0, 0)
    viewer = shore.replica.member(shore.namespace, access_pb2.Access.VIEWER)
    assert await reason(send(viewer, [row("b2")], 1)) == "ROLE_INSUFFICIENT"
    assert await reason(look(shore, "other")) == "NOT_FOUND"


async def test_rejections_are_listed_page_by_page(shore: Shore) -> None:
    await shore.declare()
    await send(shore, [row(f"b{n}") if n % 3 else "{}" for n in range(10)])
    found: list[int] = []
    token = ""
    while True:
        request = pb.ListImportRejectionsRequest(parent=f"{shore.parent}/imports/i", page_size=3, page_token=token)
        page = await shore.replica.imports.ListImportRejections(request, metadata=shore.metadata())
        found += [item.line for item in page.rows]
        token = page.next_page_token
        if not token:
            break
    assert found == [1, 4, 7, 10]


async def test_a_row_with_a_hundred_violations_is_told_in_short(shore: Shore) -> None:
    await shore.declare(schema={"type": "object", "properties": {}})
    answer = await send(shore, [row(f"b{n}", {f"{'x' * 200}{k}": k for k in range(100)}) for n in range(120)])
    assert counts(answer.chunk) == (0, 0, 0, 120)
    assert answer.ByteSize() < 200_000
    assert info_in(answer.rows[0].status).reason == "SCHEMA_VIOLATION"


async def test_content_nested_as_deep_as_anywhere_is_taken(shore: Shore) -> None:
    await shore.declare()
    data: dict[str, Any] = {}
    for _ in range(31):
        data = {"d": data}
    await shore.create("b1", data)
    answer = await send(shore, [row("b1", data), row("b2", {"d": data})])
    assert counts(answer.chunk) == (0, 0, 1, 1)


async def test_too_many_lines_and_bad_ids_are_refused(shore: Shore) -> None:
    await shore.declare()
    failure = await refusal(send(shore, b"\n" * 2001))
    assert (error_info(failure).reason, pointers(failure)) == ("INVALID_FIELD", ["rows"])
    assert await reason(send(shore, [row("b")], import_id="")) == "INVALID_FIELD"
    assert await reason(send(shore, [row("b")], import_id="a.b")) == "INVALID_FIELD"
    assert await reason(send(shore, [row("b")], offset=-1)) == "INVALID_FIELD"


async def test_an_import_is_forgotten_after_a_week(shore: Shore) -> None:
    await shore.declare()
    await send(shore, [row("b1"), "{}"], mode=REPLACE_SET)
    await send(shore, [row("b1")], import_id="young")
    deployment = shore.replica.deployment
    await deployment.rows(
        "UPDATE imports SET update_time = now() - interval '8 days' WHERE namespace = %s AND id = 'i' RETURNING 1",
        shore.namespace.id,
    )
    await upkeep.forget_everywhere(shore.replica.service.database)
    assert await reason(look(shore)) == "NOT_FOUND"
    assert counts((await look(shore, "young")).account) == (0, 0, 1, 0)
    for left in (
        "SELECT import_id FROM import_chunks WHERE namespace = %s",
        "SELECT import_id FROM import_rejections WHERE namespace = %s",
        "SELECT import_id FROM import_names WHERE namespace = %s",
    ):
        assert set(await deployment.rows(left, shore.namespace.id)) <= {("young",)}


async def test_an_import_that_is_being_forgotten_deletes_nothing_however_it_is_resumed(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b2", {})
    await send(shore, [row("b1"), row("b2")], mode=REPLACE_SET, replaced_types=["buoy"])
    deployment = shore.replica.deployment
    await deployment.rows(
        "UPDATE imports SET update_time = now() - interval '8 days' WHERE namespace = %s RETURNING 1",
        shore.namespace.id,
    )
    # The first step of forgetting, and then the process ends.
    key = ImportKey(shore.namespace.id, shore.namespace.epoch, "i")
    async with shore.replica.service.database.connection() as connection, connection.transaction():
        await connection.execute("SELECT set_config('app.namespace', %s, true)", (shore.namespace.id,))
        for statement in (import_store.forget_old(shore.namespace.id, 10), import_store.forget_parts(key, 10)[2]):
            await connection.execute(statement.sql.encode(), statement.params)
    finishing = send(shore, b"", offset=2, mode=REPLACE_SET, replaced_types=["buoy"], finish=True)
    assert await reason(finishing) == "IMPORT_OFFSET"
    assert await reason(look(shore)) == "NOT_FOUND"
    assert await shore.list_ids() == ["b1", "b2"]
    await upkeep.forget_everywhere(shore.replica.service.database)
    await send(shore, [row("b1")], mode=REPLACE_SET, replaced_types=["buoy"])
    assert (await look(shore)).next_offset == 1


async def test_a_chunk_that_was_refused_half_way_counts_each_row_once_when_it_is_confirmed(
    shore: Shore, monkeypatch: Any
) -> None:
    monkeypatch.setattr(limits, "GUARD_FLOOR", 10)
    await shore.declare()
    await send(shore, [row(f"b{n}") for n in range(40)], import_id="fill")
    rows = [row(f"b{n}", {"n": 1}) for n in range(20)]
    failure = await refusal(send(shore, rows))
    assert error_info(failure).reason == "MASS_CHANGE_REFUSED"
    assert (await look(shore)).account.read == 0
    operation_id = error_info(failure).metadata["operation_id"]
    answer = await send(shore, rows, confirm_operation_id=operation_id)
    assert counts(answer.chunk) == (0, 20, 0, 0)
    # What was confirmed holds for the rest of the import.
    answer = await send(shore, [row(f"b{n}", {"n": 1}) for n in range(20, 40)], 20)
    assert counts(answer.progress.account) == (0, 40, 0, 0)
    assert await shore.head() == 1 + 40 + 40
    assert await reason(send(shore, [row("b")], 40, confirm_operation_id="x")) == "INVALID_FIELD"


async def test_imports_go_with_their_namespace(shore: Shore) -> None:
    await shore.declare()
    await shore.create("b1", {})
    await send(shore, [row("b2"), row("b3", {}, "none")], mode=REPLACE_SET, dry_run=True)
    await finish(shore, 2, mode=REPLACE_SET, dry_run=True)
    request = entities_pb.PurgeNamespaceRequest(namespace_id=shore.namespace.id, epoch=shore.namespace.epoch)
    async with asyncio.timeout(30):
        while not (await shore.replica.entities.PurgeNamespace(request)).done:
            pass
    left = await shore.replica.deployment.rows(
        """SELECT (SELECT count(*) FROM imports WHERE namespace = %s),
            (SELECT count(*) FROM import_chunks WHERE namespace = %s),
            (SELECT count(*) FROM import_rejections WHERE namespace = %s),
            (SELECT count(*) FROM import_names WHERE namespace = %s),
            (SELECT count(*) FROM import_missing WHERE namespace = %s)""",
        *[shore.namespace.id] * 5,
    )
    assert left == [(0, 0, 0, 0, 0)]
