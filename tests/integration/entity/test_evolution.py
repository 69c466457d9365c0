"""Questions about a schema before it is declared, and what a change of it means for what is stored and who uses it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any, TypeAlias

import psycopg
import pytest
from google.protobuf import json_format
from strandline.entity.v1 import entity_pb2, operation_service_pb2, schema_service_pb2, type_service_pb2
from strandline.rpc.v1 import access_pb2
from strandline.stream.v1 import log_service_pb2

from services.entity import operation_store, type_store
from services.entity.long_running import OperationRunner
from services.entity.operation_store import OperationKey, OperationKind
from services.entity.upkeep import forget_everywhere
from services.entity.validations import EntityValidation
from services.runtime.database import INDEX_WALKS_ONLY, Database, Statement
from tests.integration.entity.conftest import (
    Deployment,
    Replica,
    Shore,
    error_info,
    eventually,
    pointers,
    reason,
    refusal,
)

TEXT = {"type": "string"}
BUOY: dict[str, Any] = {"type": "object", "properties": {"country": TEXT, "depth": {"type": "number"}}}
SHORT: dict[str, Any] = {"type": "object", "properties": {"country": {"type": "string", "maxLength": 2}}}
Compatibility = entity_pb2.EntityType.Compatibility
Work: TypeAlias = Callable[[OperationRunner], Awaitable[None]]


async def check(shore: Shore, schema: dict[str, Any], **more: Any) -> schema_service_pb2.CheckCompatibilityResponse:
    request = schema_service_pb2.CheckCompatibilityRequest(name=f"{shore.parent}/types/buoy", **more)
    json_format.ParseDict(schema, request.schema)
    answer: schema_service_pb2.CheckCompatibilityResponse = await shore.replica.schemas.CheckCompatibility(
        request, metadata=shore.metadata()
    )
    return answer


async def begin_validation(shore: Shore, schema: dict[str, Any]) -> operation_service_pb2.Operation:
    request = schema_service_pb2.ValidateEntitiesRequest(name=f"{shore.parent}/types/buoy")
    json_format.ParseDict(schema, request.schema)
    answer = await shore.replica.schemas.ValidateEntities(request, metadata=shore.metadata())
    operation: operation_service_pb2.Operation = answer.operation
    return operation


async def get_operation(shore: Shore, name: str) -> operation_service_pb2.Operation:
    request = operation_service_pb2.GetOperationRequest(name=name)
    answer = await shore.replica.operations.GetOperation(request, metadata=shore.metadata())
    operation: operation_service_pb2.Operation = answer.operation
    return operation


async def finished(shore: Shore, name: str) -> operation_service_pb2.Operation:
    async def done() -> bool:
        return (await get_operation(shore, name)).done

    await eventually(done)
    return await get_operation(shore, name)


async def update(shore: Shore, schema: dict[str, Any], **fields: Any) -> type_service_pb2.UpdateTypeResponse:
    request = type_service_pb2.UpdateTypeRequest(
        request_id=fields.pop("request_id", ""), validate_only=fields.pop("validate_only", False)
    )
    json_format.ParseDict({"name": f"{shore.parent}/types/buoy", "schema": schema, **fields}, request.type)
    answer: type_service_pb2.UpdateTypeResponse = await shore.replica.types.UpdateType(
        request, metadata=shore.metadata()
    )
    return answer


# Questions


async def test_a_question_about_a_schema_is_answered_and_changes_nothing(shore: Shore) -> None:
    await shore.declare(schema=BUOY)
    answer = await check(shore, SHORT)
    assert not answer.compatible
    assert [(one.rule, one.path) for one in answer.differences] == [
        ("MAX_LENGTH_LOWERED", "/properties/country/maxLength"),
        ("PROPERTY_REMOVED_FROM_CLOSED", "/properties/depth"),
    ]
    assert [Compatibility.Name(mode) for mode in answer.allowed_by] == ["NONE", "FORWARD", "FORWARD_TRANSITIVE"]
    assert (await check(shore, SHORT, compatibility=Compatibility.FORWARD)).compatible
    assert (await check(shore, BUOY)).compatible
    assert (answer.revision, await shore.head()) == (1, 1)


async def test_a_viewer_may_ask_and_a_stranger_may_not(shore: Shore) -> None:
    await shore.declare(schema=BUOY)
    viewer = shore.replica.member(shore.namespace, access_pb2.Access.VIEWER)
    assert (await check(viewer, BUOY)).compatible
    assert await reason(begin_validation(viewer, BUOY)) == "ROLE_INSUFFICIENT"
    assert await reason(check(shore.replica.member(shore.namespace, 0), BUOY)) == "NOT_FOUND"
    operation = await begin_validation(shore, BUOY)
    assert (await finished(viewer, operation.name)).done
    elsewhere = shore.replica.shore()
    stolen = operation.name.replace(shore.namespace.id, elsewhere.namespace.id)
    assert await reason(get_operation(elsewhere, stolen)) == "NOT_FOUND"


async def test_draft_07_can_be_asked_about_and_is_taken_as_written(shore: Shore) -> None:
    await shore.declare(schema={**BUOY, "additionalProperties": True})
    legacy = {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}
    assert (await check(shore, {**legacy, "dependencies": {}})).compatible
    answer = await check(shore, {**legacy, "dependencies": {"a": ["b"]}})
    assert [(one.rule, one.path) for one in answer.differences] == [("DEPENDENT_REQUIRED_ADDED", "/dependencies/a")]


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ({"type": "array"}, "/type"),
        ({"type": "object", "properties": {"a": {"type": "thing"}}}, "/properties/a/type"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "required": True}, "/required"),
    ],
)
async def test_what_is_no_schema_is_refused_with_its_place(shore: Shore, schema: Any, pointer: str) -> None:
    await shore.declare(schema=BUOY)
    failure = await refusal(check(shore, schema))
    assert (error_info(failure).reason, pointers(failure)) == ("INVALID_FIELD", [pointer])


async def test_there_is_nothing_to_ask_about_a_type_that_is_not_there(shore: Shore) -> None:
    assert await reason(check(shore, BUOY)) == "NOT_FOUND"
    assert await reason(begin_validation(shore, BUOY)) == "NOT_FOUND"
    assert await reason(get_operation(shore, f"{shore.parent}/operations/x")) == "NOT_FOUND"
    assert await reason(get_operation(shore, f"{shore.parent}/imports/x")) == "INVALID_FIELD"


async def test_the_versions_of_a_type_are_listed_in_pages(shore: Shore) -> None:
    expected = []
    for count in range(1, 6):
        schema = {"type": "object", "properties": {f"f{n}": TEXT for n in range(count)}}
        expected.append((count, schema))
        await (shore.declare(schema=schema) if count == 1 else update(shore, schema))
    seen: list[Any] = []
    request = schema_service_pb2.ListTypeVersionsRequest(parent=f"{shore.parent}/types/buoy", page_size=2)
    while True:
        page = await shore.replica.schemas.ListTypeVersions(request, metadata=shore.metadata())
        seen += [(one.schema_version, json_format.MessageToDict(one.schema)) for one in page.versions]
        assert page.versions[0].name == f"{shore.parent}/types/buoy/versions/{page.versions[0].schema_version}"
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert seen == expected


# What is stored


async def fill(shore: Shore, count: int, bad: set[int]) -> None:
    """*count* buoys; the country of the *bad* ones is too long for ``SHORT``."""
    await shore.declare(schema=BUOY, compatibility="NONE")
    for n in range(count):
        await shore.create(f"b{n:03}", {"country": "Nowhere" if n in bad else "CH"})


async def test_stored_entities_are_counted_and_sampled_that_a_schema_would_refuse(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.validations.ENTITIES_AT_ONCE", 7)
    await fill(shore, 30, bad=set(range(5, 20)))
    await shore.delete("b006")
    begun = await begin_validation(shore, SHORT)
    assert (begun.done, begun.metadata.total_estimate) == (False, 29)
    operation = await finished(shore, begun.name)
    assert (operation.metadata.examined, operation.metadata.total_estimate) == (29, 29)
    result = operation.validation
    assert (result.examined, result.invalid) == (29, 14)
    names = [shore.name(f"b{n:03}") for n in range(5, 20) if n != 6]
    assert [one.name for one in result.sample] == names[:10]
    assert {one.pointer for one in result.sample} == {"/country"}
    assert result.sample[0].message == "the value is longer than 2 characters"
    assert await shore.head() == 32


async def test_a_change_that_stored_entities_may_not_fit_begins_a_validation_in_the_same_commit(shore: Shore) -> None:
    await fill(shore, 3, bad={1})
    assert (await update(shore, {**BUOY, "title": "Buoy"})).operation == ""
    answer = await update(shore, SHORT, request_id="narrow")
    assert answer.type.schema_version == 3
    operation = await finished(shore, answer.operation)
    assert [one.name for one in operation.validation.sample] == [shore.name("b001")]
    assert (await update(shore, SHORT, request_id="narrow")).operation == ""  # a repetition begins no second one


async def test_a_rehearsed_change_names_no_operation_because_there_is_none(shore: Shore) -> None:
    await shore.declare(schema=BUOY, compatibility="NONE")
    await shore.create("b1", {"country": "Norway"})
    answer = await update(shore, SHORT, validate_only=True)
    assert (answer.type.schema_version, answer.operation) == (2, "")
    assert (await update(shore, SHORT)).operation


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Iterator[Work]:
    """``OperationRunner.work``, which the replicas' own do not do meanwhile: they look every ten seconds."""

    async def rest(self: OperationRunner) -> None:
        return None

    with monkeypatch.context() as patch:
        real = OperationRunner.work
        patch.setattr(OperationRunner, "work", rest)
        yield real


async def test_a_validation_that_was_cut_off_goes_on_where_it_was(
    deployment: Deployment, shore: Shore, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.validations.ENTITIES_AT_ONCE", 5)
    await fill(shore, 20, bad={2, 17})
    database = Database(deployment.app_url)
    try:
        worker = DyingWorker(steps=2)
        runner = OperationRunner(database, {OperationKind.VALIDATE_ENTITIES: worker})
        key = await begin_unnoticed(shore, database)
        with pytest.raises(asyncio.CancelledError):
            await work(runner)
        half = await get_operation(shore, key.name)
        assert (half.done, half.metadata.examined) == (False, 10)
        await work(OperationRunner(database, {OperationKind.VALIDATE_ENTITIES: EntityValidation()}))
    finally:
        await database.close()
    result = (await get_operation(shore, key.name)).validation
    assert (result.examined, result.invalid) == (20, 2)


async def begin_unnoticed(shore: Shore, database: Database) -> OperationKey:
    """Begin a validation that nobody is told of."""
    key = OperationKey(shore.namespace.id, shore.namespace.epoch, uuid.uuid4().hex)
    async with database.connection() as connection, connection.transaction():
        await connection.execute("SELECT set_config('app.namespace', %s, true)", (shore.namespace.id,))
        for statement in operation_store.begin_validation(key, "buoy", SHORT):
            await connection.execute(statement.sql, statement.params)
    return key


async def test_an_operation_does_not_wait_for_the_end_of_those_that_began_before(
    deployment: Deployment, shore: Shore, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.validations.ENTITIES_AT_ONCE", 5)
    await fill(shore, 20, bad=set())
    steps: list[OperationKey] = []

    class WatchedWorker(EntityValidation):
        async def take_step(self, connection: Any, key: OperationKey, *arguments: Any) -> Any:
            if not steps:
                await begin_unnoticed(shore, database)
            steps.append(key)
            return await super().take_step(connection, key, *arguments)

    database = Database(deployment.app_url)
    try:
        first = await begin_unnoticed(shore, database)
        await work(OperationRunner(database, {OperationKind.VALIDATE_ENTITIES: WatchedWorker()}))
    finally:
        await database.close()
    (second,) = set(steps) - {first}
    assert steps.index(second) < max(place for place, key in enumerate(steps) if key == first)


async def test_a_namespace_has_only_so_many_operations_under_way(
    deployment: Deployment, shore: Shore, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.entity.schema_api.MAX_UNDER_WAY", 1)
    await fill(shore, 1, bad=set())
    database = Database(deployment.app_url)
    try:
        key = await begin_unnoticed(shore, database)
        async with database.connection() as connection, connection.transaction():
            # As a process does that takes a step of it.
            await connection.execute("SELECT set_config('app.namespace', %s, true)", (shore.namespace.id,))
            taken = operation_store.take_operation(key)
            await connection.execute(taken.sql, taken.params)
            assert await reason(begin_validation(shore, SHORT)) == "OVERLOADED"
        runner = OperationRunner(database, {OperationKind.VALIDATE_ENTITIES: EntityValidation()})
        await work(runner)
        begun = await begin_validation(shore, SHORT)
        await work(runner)
    finally:
        await database.close()
    assert (await finished(shore, begun.name)).done


class DyingWorker(EntityValidation):
    """Is cut off in the middle of a step after *steps* of them, as by ``kill -9``: its transaction is lost."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    async def take_step(self, *arguments: Any) -> Any:
        step = await super().take_step(*arguments)
        if not self._left:
            raise asyncio.CancelledError
        self._left -= 1
        return step


async def test_operations_are_forgotten_after_a_day(shore: Shore, replica: Replica) -> None:
    await shore.declare(schema=BUOY)
    old, young = [(await begin_validation(shore, BUOY)).name for _ in range(2)]
    await finished(shore, old)
    await finished(shore, young)
    await replica.deployment.rows(
        "UPDATE operations SET update_time = now() - interval '25 hours' WHERE id = %s RETURNING 1",
        old.rsplit("/", 1)[1],
    )
    await forget_everywhere(replica.service.database)
    assert await reason(get_operation(shore, old)) == "NOT_FOUND"
    assert (await get_operation(shore, young)).done


# Who names a field


async def test_a_field_that_an_index_names_goes_only_together_with_the_index(shore: Shore) -> None:
    indexes = [{"fields": ["data.country", "data.depth desc"]}]
    await shore.declare(schema=BUOY, compatibility="NONE", indexes=indexes)
    failure = await refusal(update(shore, SHORT))
    assert (error_info(failure).reason, pointers(failure)) == ("INCOMPATIBLE_SCHEMA", ["/properties/depth"])
    assert error_info(failure).metadata["rule"] == "FIELD_INDEXED"
    assert "data.country, data.depth desc" in (failure.details() or "")
    # Without a mask, an empty list says nothing: the text must say what does.
    empty = await refusal(update(shore, SHORT, indexes=[]))
    assert "with indexes in the update_mask" in (empty.details() or "")
    answer = await update(shore, SHORT, indexes=[{"fields": ["data.country"]}])
    assert (answer.type.schema_version, len(answer.type.indexes)) == (2, 1)


async def lease(shore: Shore, name: str, types: list[str], fields: list[str], seconds: float = 60) -> None:
    request = log_service_pb2.PutConsumerLeaseRequest(
        namespace_id=shore.namespace.id, epoch=shore.namespace.epoch, name=name, types=types, fields=fields
    )
    request.ttl.FromTimedelta(timedelta(seconds=seconds))
    await shore.replica.log.PutConsumerLease(request)


async def test_a_field_that_the_filter_of_a_consumer_names_cannot_go_while_its_lease_lives(shore: Shore) -> None:
    await shore.declare(schema=BUOY, compatibility="NONE")
    await lease(shore, "pier", ["ship"], ["data.depth"])
    await lease(shore, "harbour", ["buoy"], ["data.country"])
    await lease(shore, "mooring", [], ["data.other.depth", "data.depth"])
    failure = await refusal(update(shore, SHORT))
    assert (error_info(failure).reason, pointers(failure)) == ("INCOMPATIBLE_SCHEMA", ["/properties/depth"])
    assert error_info(failure).metadata["rule"] == "FIELD_CONSUMED"
    assert "mooring" in (failure.details() or "")
    await shore.replica.deployment.rows(
        "UPDATE consumer_leases SET expire_time = now() WHERE namespace = %s RETURNING 1", shore.namespace.id
    )
    assert (await update(shore, SHORT)).type.schema_version == 2


async def test_a_field_that_may_still_be_there_is_not_removed(shore: Shore) -> None:
    await shore.declare(schema=BUOY, compatibility="NONE", indexes=[{"fields": ["data.depth"]}])
    opened = {"type": "object", "properties": {"country": TEXT}, "additionalProperties": True}
    assert (await update(shore, opened)).type.schema_version == 2


async def test_of_concurrent_changes_each_is_judged_by_the_version_that_it_follows(
    shore: Shore, other_replica: Replica
) -> None:
    await shore.declare(schema={"type": "object", "properties": {}})
    elsewhere = shore.through(other_replica)

    def wider(n: int) -> dict[str, Any]:
        return {"type": "object", "properties": {f"f{n}": TEXT}}

    calls = [update(shore if n % 2 else elsewhere, wider(n)) for n in range(4)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    # The first one adds a property; each of the others would remove it.
    assert sum(isinstance(answer, type_service_pb2.UpdateTypeResponse) for answer in answers) == 1
    assert {await shore.head()} == {2}


# Plans


@pytest.mark.parametrize(
    ("statement", "condition"),
    [
        (type_store.select_live("ns", "t", "", 500), "(type = 't'::text)"),
        (type_store.select_versions("ns", "t", 0, 51, 1000), "(schema_version > 0)"),
        (operation_store.take_operation(OperationKey("ns", "e", "o")), "(id = 'o'::text)"),
        (operation_store.forget_operations("ns"), "(namespace = 'ns'::text)"),
    ],
    ids=["live entities", "versions", "operation", "forgetting"],
)
async def test_a_look_up_walks_its_keys(deployment: Deployment, statement: Statement, condition: str) -> None:
    async with await psycopg.AsyncConnection.connect(deployment.app_url, options=INDEX_WALKS_ONLY) as connection:
        cursor = psycopg.AsyncClientCursor(connection)
        await cursor.execute(b"EXPLAIN " + statement.sql.encode(), statement.params)
        plan = "\n".join(str(line) for (line,) in await cursor.fetchall())
    conditions = [line for line in plan.splitlines() if "Index Cond" in line]
    assert any(condition in line for line in conditions), plan
    assert "Seq Scan" not in plan, plan
