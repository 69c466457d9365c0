"""Deleting a namespace: at once for everybody, then step by step, by whichever process takes the job up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from strandline.stream.v1 import feed_pb2
from strandline.user.v1 import namespace_service_pb2 as pb
from strandline.user.v1 import user_pb2

from services.user import deletions
from services.user.deletions import Deletions
from services.user.upstream import PurgeError
from tests.integration.user.conftest import Person, Running, reason_of, refusal
from tests.integration.user.test_namespaces import OWNER, VIEWER, add, create, data_of, get, set_role, unit_at


async def delete(user: Running, owner: Person, name: str, request_id: str = "") -> pb.DeleteNamespaceResponse:
    request = pb.DeleteNamespaceRequest(name=name, request_id=request_id)
    answer: pb.DeleteNamespaceResponse = await user.namespaces.DeleteNamespace(request, metadata=owner.credentials)
    return answer


@asynccontextmanager
async def worker(user: Running, purge: Callable[[str, str], Awaitable[bool]]) -> AsyncIterator[Deletions]:
    """A process that completes deletions; its entity service is *purge*."""
    made = Deletions(user.service.database, user.service.system, purge)
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def until_free(user: Running, owner: Person, name: str) -> user_pb2.Namespace:
    async with asyncio.timeout(60):
        while True:
            with suppress(Exception):
                return (await create(user, owner, name.split("/")[1])).namespace
            await asyncio.sleep(0.05)


async def purged(namespace_id: str, epoch: str) -> bool:
    return True


async def test_a_deleted_namespace_is_gone_at_once_and_its_id_is_not_free_before_its_data_are(user: Running) -> None:
    ann, bob = await user.person("ann"), await user.person("bob")
    made = (await create(user, ann)).namespace
    await add(user, ann, made.name, bob.user_id, VIEWER)
    answer = await delete(user, ann, made.name)
    assert answer.namespace.state == user_pb2.Namespace.DELETING
    (change,) = (await unit_at(user, answer.revision)).changes
    assert (change.kind, data_of(change)["state"]) == (feed_pb2.Change.UPDATED, "DELETING")
    for person in (ann, bob):
        assert reason_of(await refusal(get(user, person, made.name))) == "NOT_FOUND"
    assert reason_of(await refusal(add(user, ann, made.name, bob.user_id, OWNER))) == "NOT_FOUND"
    assert reason_of(await refusal(set_role(user, ann, f"{made.name}/members/{bob.user_id}", OWNER))) == "NOT_FOUND"
    answered = await user.access.CheckAccess(
        pb.CheckAccessRequest(namespace_id=made.name.split("/")[1], user_id=ann.user_id)
    )
    assert not answered.HasField("namespace")
    assert reason_of(await refusal(create(user, ann, made.name.split("/")[1]))) == "ALREADY_EXISTS"


async def test_a_repeated_deletion_finds_its_answer(user: Running) -> None:
    ann = await user.person()
    name = (await create(user, ann)).namespace.name
    assert await delete(user, ann, name, "once") == await delete(user, ann, name, "once")
    assert reason_of(await refusal(delete(user, ann, name, "twice"))) == "NOT_FOUND"


async def test_a_new_life_of_an_id_has_a_new_epoch_and_no_old_members(user: Running) -> None:
    ann, bob = await user.person("ann"), await user.person("bob")
    made = (await create(user, ann)).namespace
    await add(user, ann, made.name, bob.user_id, OWNER)
    await delete(user, ann, made.name)
    async with worker(user, purged):
        again = await until_free(user, ann, made.name)
    assert again.epoch != made.epoch
    assert reason_of(await refusal(get(user, bob, made.name))) == "NOT_FOUND"


async def test_a_deletion_goes_on_through_failures_and_steps(user: Running) -> None:
    ann = await user.person()
    made = (await create(user, ann)).namespace
    asked: list[tuple[str, str]] = []

    async def purge(namespace_id: str, epoch: str) -> bool:
        if namespace_id == made.name.split("/")[1]:
            asked.append((namespace_id, epoch))
            if len(asked) < 3:
                raise PurgeError("UNAVAILABLE")
        return len(asked) != 4

    async with worker(user, purge) as process:
        await delete(user, ann, made.name)
        process.wake()
        await until_free(user, ann, made.name)
    assert set(asked) == {(made.name.split("/")[1], made.epoch)}
    assert len(asked) >= 5


async def test_many_members_leave_in_units_of_bounded_size(user: Running) -> None:
    ann = await user.person()
    made = (await create(user, ann)).namespace
    people = [await user.person() for _ in range(5)]
    for person in people:
        await add(user, ann, made.name, person.user_id, VIEWER)
    before, at_once = await user.head(), deletions.MEMBERS_PER_UNIT
    deletions.MEMBERS_PER_UNIT = 4
    try:
        await delete(user, ann, made.name)
        async with worker(user, purged):
            await until_free(user, ann, made.name)
    finally:
        deletions.MEMBERS_PER_UNIT = at_once
    sizes = []
    for revision in range(before.revision + 1, (await user.head()).revision):
        unit = await unit_at(user, revision)
        if any(made.name.split("/")[1] in change.entity.name for change in unit.changes):
            sizes.append((unit.actor == "service:user", len(unit.changes)))
    assert sizes == [(False, 1), (True, 4), (True, 2), (True, 1)]


async def test_two_processes_that_do_the_same_job_do_no_harm(user: Running) -> None:
    ann = await user.person()
    made = [(await create(user, ann)).namespace for _ in range(5)]
    async with worker(user, purged) as one, worker(user, purged) as other:
        for namespace in made:
            await delete(user, ann, namespace.name)
            one.wake()
            other.wake()
        for namespace in made:
            assert (await until_free(user, ann, namespace.name)).epoch != namespace.epoch
