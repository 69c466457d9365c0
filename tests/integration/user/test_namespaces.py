"""Namespaces and members: who may do what, and that every change is in the log of ``system``."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any
from uuid import uuid4

import grpc
import pytest
from strandline.stream.v1 import feed_pb2, log_service_pb2
from strandline.user.v1 import namespace_service_pb2 as pb
from strandline.user.v1 import user_pb2

from services.runtime.database import Statement
from services.user import snapshots
from tests.integration.user.conftest import Person, Running, error_info, reason_of, refusal

_numbers = itertools.count(1)
VIEWER, EDITOR, OWNER = user_pb2.Member.VIEWER, user_pb2.Member.EDITOR, user_pb2.Member.OWNER


async def create(user: Running, owner: Person, namespace_id: str = "", **fields: Any) -> pb.CreateNamespaceResponse:
    request = pb.CreateNamespaceRequest(namespace_id=namespace_id or f"tides{next(_numbers)}", **fields)
    answer: pb.CreateNamespaceResponse = await user.namespaces.CreateNamespace(request, metadata=owner.credentials)
    return answer


async def add(user: Running, owner: Person, name: str, user_id: str, role: Any, **fields: Any) -> user_pb2.Member:
    request = pb.CreateMemberRequest(parent=name, member=user_pb2.Member(user_id=user_id, role=role), **fields)
    answer = await user.namespaces.CreateMember(request, metadata=owner.credentials)
    member: user_pb2.Member = answer.member
    return member


async def get(user: Running, person: Person, name: str) -> user_pb2.Namespace:
    answer = await user.namespaces.GetNamespace(pb.GetNamespaceRequest(name=name), metadata=person.credentials)
    namespace: user_pb2.Namespace = answer.namespace
    return namespace


async def set_role(user: Running, actor: Person, member: str, role: Any, **fields: Any) -> pb.UpdateMemberResponse:
    request = pb.UpdateMemberRequest(member=user_pb2.Member(name=member, role=role), **fields)
    answer: pb.UpdateMemberResponse = await user.namespaces.UpdateMember(request, metadata=actor.credentials)
    return answer


async def unit_at(user: Running, revision: int) -> feed_pb2.Unit:
    request = log_service_pb2.ReadUnitsRequest(namespace_id="system", after_revision=revision - 1, to_revision=revision)
    (raw,) = (await user.log.ReadUnits(request)).units
    return feed_pb2.Unit.FromString(raw)


def data_of(change: feed_pb2.Change) -> dict[str, str]:
    return {key: value.string_value for key, value in change.entity.data.fields.items()}


async def test_a_new_namespace_belongs_to_its_maker_in_one_unit(user: Running) -> None:
    ann = await user.person()
    call = user.namespaces.CreateNamespace(
        pb.CreateNamespaceRequest(namespace_id="harbour", namespace=user_pb2.Namespace(display_name="Harbour")),
        metadata=(*ann.credentials, ("x-strandline-rest", "1")),
    )
    answer = await call
    assert answer.namespace.name == "namespaces/harbour"
    assert answer.namespace.mass_change_guard == user_pb2.Namespace.ON
    assert len(answer.namespace.epoch) == 8
    assert answer.namespace.etag == f'"{answer.revision}"'
    headers = dict(await call.initial_metadata())
    assert headers["strandline-revision"] == f"{answer.epoch}.{answer.revision}"
    assert headers["location"] == "/v1/namespaces/harbour"
    unit = await unit_at(user, answer.revision)
    assert unit.actor == ann.user_id
    assert [change.entity.type for change in unit.changes] == ["namespace", "membership"]
    assert data_of(unit.changes[0]) == {
        "epoch": answer.namespace.epoch,
        "state": "ACTIVE",
        "massChangeGuard": "ON",
    }
    assert unit.changes[1].entity.name.endswith(f"/membership/entities/harbour~{ann.user_id}")
    assert data_of(unit.changes[1]) == {"namespace": "harbour", "user": ann.user_id, "role": "OWNER"}
    assert await get(user, ann, "namespaces/harbour") == answer.namespace


@pytest.mark.parametrize("namespace_id", ["system", "S", "a", "9tides", "tides_", "t" * 64, ""])
async def test_an_id_that_is_reserved_or_malformed_is_refused(user: Running, namespace_id: str) -> None:
    ann = await user.person()
    request = pb.CreateNamespaceRequest(namespace_id=namespace_id)
    failure = await refusal(user.namespaces.CreateNamespace(request, metadata=ann.credentials))
    assert reason_of(failure) == "INVALID_FIELD"


async def test_of_many_creations_of_one_id_one_wins(user: Running) -> None:
    ann = await user.person()
    outcomes = await asyncio.gather(*(create(user, ann, "contested") for _ in range(20)), return_exceptions=True)
    failures = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert {reason_of(failure) for failure in failures} == {"ALREADY_EXISTS"}
    assert len(failures) == 19


async def test_a_request_id_used_twice_is_one_change_with_the_same_answer(user: Running) -> None:
    ann = await user.person()
    namespace_id = f"tides{next(_numbers)}"
    first = await create(user, ann, namespace_id, request_id="r1")
    head = await user.head()
    assert await create(user, ann, namespace_id, request_id="r1") == first
    assert await user.head() == head
    other = await refusal(create(user, ann, f"tides{next(_numbers)}", request_id="r1"))
    assert reason_of(other) == "REQUEST_ID_REUSED"


async def test_validate_only_checks_and_changes_nothing(user: Running) -> None:
    ann = await user.person()
    head = await user.head()
    namespace_id = f"tides{next(_numbers)}"
    answer = await create(user, ann, namespace_id, validate_only=True)
    assert (answer.namespace.name, answer.revision) == (f"namespaces/{namespace_id}", head.revision)
    assert await user.head() == head
    assert reason_of(await refusal(get(user, ann, f"namespaces/{namespace_id}"))) == "NOT_FOUND"


async def test_a_stranger_finds_nothing_and_a_viewer_may_not_change_anything(user: Running) -> None:
    ann, bob, eve = await user.person("ann"), await user.person("bob"), await user.person("eve")
    namespace = (await create(user, ann)).namespace
    await add(user, ann, namespace.name, bob.user_id, VIEWER)
    missing = await refusal(get(user, eve, "namespaces/no-such-thing"))
    strange = await refusal(get(user, eve, namespace.name))
    assert (strange.code(), strange.details()) == (missing.code(), missing.details())
    assert reason_of(strange) == "NOT_FOUND"
    assert await get(user, bob, namespace.name) == namespace
    for call in (
        add(user, bob, namespace.name, eve.user_id, VIEWER),
        set_role(user, bob, f"{namespace.name}/members/{bob.user_id}", OWNER),
        user.namespaces.DeleteNamespace(pb.DeleteNamespaceRequest(name=namespace.name), metadata=bob.credentials),
    ):
        refused = await refusal(call)
        assert (refused.code(), reason_of(refused)) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT")


async def test_an_update_changes_what_the_mask_names(user: Running) -> None:
    ann = await user.person()
    made = (await create(user, ann, namespace=user_pb2.Namespace(display_name="Before"))).namespace
    wanted = user_pb2.Namespace(name=made.name, display_name="After", mass_change_guard=user_pb2.Namespace.OFF)

    async def update(*mask: str, etag: str = "", **metadata: str) -> pb.UpdateNamespaceResponse:
        request = pb.UpdateNamespaceRequest(namespace=wanted, update_mask=mask, etag=etag)
        headers = (*ann.credentials, *((key.replace("_", "-"), value) for key, value in metadata.items()))
        answer: pb.UpdateNamespaceResponse = await user.namespaces.UpdateNamespace(request, metadata=headers)
        return answer

    first = await update("massChangeGuard")
    assert (first.namespace.display_name, first.namespace.mass_change_guard) == ("Before", user_pb2.Namespace.OFF)
    (change,) = (await unit_at(user, first.revision)).changes
    assert data_of(change)["massChangeGuard"] == "OFF"
    assert change.previous.etag == made.etag
    second = await update()
    assert second.namespace.display_name == "After"
    third = await update("*")
    assert third.namespace == second.namespace
    assert third.revision == second.revision == (await user.head()).revision  # nothing to change: no revision
    stale = await refusal(update(etag=made.etag))
    assert (stale.code(), reason_of(stale)) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert error_info(stale).metadata["etag"] == second.namespace.etag
    by_header = await refusal(update(if_match=made.etag))
    assert dict(by_header.trailing_metadata() or ())["strandline-http-status"] == "412"
    assert reason_of(await refusal(update("epoch"))) == "INVALID_FIELD"


async def test_members_are_added_changed_and_removed(user: Running) -> None:
    ann, bob = await user.person("ann"), await user.person("bob")
    name = (await create(user, ann)).namespace.name
    member = await add(user, ann, name, bob.user_id, VIEWER)
    assert (member.name, member.role) == (f"{name}/members/{bob.user_id}", VIEWER)
    assert reason_of(await refusal(add(user, ann, name, bob.user_id, EDITOR))) == "ALREADY_EXISTS"
    changed = await set_role(user, ann, member.name, EDITOR, update_mask=["role"], etag=member.etag)
    assert changed.member.role == EDITOR
    assert reason_of(await refusal(set_role(user, ann, member.name, OWNER, etag=member.etag))) == "ETAG_MISMATCH"
    assert reason_of(await refusal(set_role(user, ann, member.name, OWNER, update_mask=["user_id"]))) == "INVALID_FIELD"
    request = pb.DeleteMemberRequest(name=member.name)
    removed = await user.namespaces.DeleteMember(request, metadata=ann.credentials)
    assert removed.member == changed.member
    (change,) = (await unit_at(user, removed.revision)).changes
    assert change.kind == feed_pb2.Change.DELETED
    assert change.entity.HasField("delete_time")
    assert data_of(change) == {"namespace": name.split("/")[1], "user": bob.user_id, "role": "EDITOR"}
    assert reason_of(await refusal(get(user, bob, name))) == "NOT_FOUND"
    assert reason_of(await refusal(user.namespaces.DeleteMember(request, metadata=ann.credentials))) == "NOT_FOUND"


async def test_who_does_not_exist_or_is_unverified_cannot_become_a_member(user: Running) -> None:
    ann = await user.person()
    name = (await create(user, ann)).namespace.name
    await user.register("pending@example.com")
    rows = await user.rows("SELECT id::text FROM users WHERE NOT email_verified ORDER BY create_time DESC LIMIT 1")
    for user_id in (str(uuid4()), rows[0][0]):
        assert reason_of(await refusal(add(user, ann, name, user_id, VIEWER))) == "NOT_FOUND"
    assert reason_of(await refusal(add(user, ann, name, "nobody", VIEWER))) == "INVALID_FIELD"
    assert reason_of(await refusal(add(user, ann, name, ann.user_id, 0))) == "INVALID_FIELD"


async def test_the_last_owner_can_be_neither_demoted_nor_removed(user: Running) -> None:
    ann = await user.person()
    name = (await create(user, ann)).namespace.name
    own = f"{name}/members/{ann.user_id}"
    demoted = await refusal(set_role(user, ann, own, EDITOR))
    assert (demoted.code(), reason_of(demoted)) == (grpc.StatusCode.FAILED_PRECONDITION, "LAST_OWNER")
    request = pb.DeleteMemberRequest(name=own)
    assert reason_of(await refusal(user.namespaces.DeleteMember(request, metadata=ann.credentials))) == "LAST_OWNER"


async def test_two_owners_who_remove_each_other_at_once_leave_one(user: Running) -> None:
    for _ in range(5):
        ann, bob = await user.person("ann"), await user.person("bob")
        name = (await create(user, ann)).namespace.name
        await add(user, ann, name, bob.user_id, OWNER)
        outcomes = await asyncio.gather(
            *(
                user.namespaces.DeleteMember(
                    pb.DeleteMemberRequest(name=f"{name}/members/{victim.user_id}"), metadata=actor.credentials
                )
                for actor, victim in ((ann, bob), (bob, ann))
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, grpc.aio.AioRpcError) for outcome in outcomes) == 1
        rows = await user.rows("SELECT count(*) FROM members WHERE namespace = %s AND role = 3", name.split("/")[1])
        assert rows == [(1,)]


async def test_lists_come_in_pages_sealed_for_their_list(user: Running) -> None:
    ann, bob = await user.person("ann"), await user.person("bob")
    names = sorted([(await create(user, ann)).namespace.name for _ in range(5)])

    async def page(token: str = "", size: int = 2, person: Person = ann) -> pb.ListNamespacesResponse:
        request = pb.ListNamespacesRequest(page_size=size, page_token=token)
        answer: pb.ListNamespacesResponse = await user.namespaces.ListNamespaces(request, metadata=person.credentials)
        return answer

    seen = []
    token = ""
    for expected in (2, 2, 1):
        answer = await page(token)
        assert len(answer.namespaces) == expected
        seen += [namespace.name for namespace in answer.namespaces]
        token = answer.next_page_token
    assert (seen, token) == (names, "")
    stolen = (await page()).next_page_token
    assert reason_of(await refusal(page(stolen, person=bob))) == "PAGE_TOKEN_INVALID"
    assert reason_of(await refusal(page(stolen[:-2]))) == "PAGE_TOKEN_INVALID"
    assert reason_of(await refusal(page(size=-1))) == "INVALID_FIELD"
    assert len((await page(size=10**9)).namespaces) == 5


async def test_members_are_listed_by_user_id_in_pages(user: Running) -> None:
    people = [await user.person() for _ in range(4)]
    name = (await create(user, people[0])).namespace.name
    for person in people[1:]:
        await add(user, people[0], name, person.user_id, EDITOR)
    seen: list[str] = []
    token = ""
    while True:
        request = pb.ListMembersRequest(parent=name, page_size=3, page_token=token)
        answer = await user.namespaces.ListMembers(request, metadata=people[1].credentials)
        seen += [member.user_id for member in answer.members]
        if not (token := answer.next_page_token):
            break
    assert seen == sorted(person.user_id for person in people)


async def test_reads_can_demand_a_position(user: Running) -> None:
    ann = await user.person()
    made = await create(user, ann)
    position = f"{made.epoch}.{made.revision}"

    async def read(minimum: str) -> Any:
        metadata = (*ann.credentials, ("strandline-min-revision", minimum))
        return await user.namespaces.GetNamespace(pb.GetNamespaceRequest(name=made.namespace.name), metadata=metadata)

    assert (await read(position)).namespace == made.namespace
    assert reason_of(await refusal(read(str(made.revision + 1000)))) == "FUTURE_REVISION"
    assert reason_of(await refusal(read(f"00000000.{made.revision}"))) == "EPOCH_CHANGED"


async def test_the_log_tells_the_roles_of_everybody(user: Running) -> None:
    """Replaying `system` gives exactly the members table, and so does a snapshot of it."""
    ann, bob = await user.person("ann"), await user.person("bob")
    name = (await create(user, ann)).namespace.name
    await add(user, ann, name, bob.user_id, VIEWER)
    await set_role(user, ann, f"{name}/members/{bob.user_id}", OWNER)
    truth = {
        (namespace, user_id): role
        for namespace, user_id, role in await user.rows(
            "SELECT namespace, user_id::text, (ARRAY['VIEWER', 'EDITOR', 'OWNER'])[role] FROM members"
        )
    }
    replayed: dict[tuple[str, str], str] = {}
    revision, head = 0, await user.head()
    while revision < head.revision:
        request = log_service_pb2.ReadUnitsRequest(namespace_id="system", after_revision=revision, max_bytes=20_000)
        for raw in (await user.log.ReadUnits(request)).units:
            unit = feed_pb2.Unit.FromString(raw)
            assert unit.revision == revision + 1
            revision = unit.revision
            for change in unit.changes:
                if change.entity.type != "membership":
                    continue
                data = data_of(change)
                key = (data["namespace"], data["user"])
                if change.kind == feed_pb2.Change.DELETED:
                    del replayed[key]
                else:
                    replayed[key] = data["role"]
    assert replayed == truth
    snapshot: dict[tuple[str, str], str] = {}
    after_type, after_id = "", ""
    while True:
        page = await user.log.ReadSnapshot(
            log_service_pb2.ReadSnapshotRequest(
                namespace_id="system",
                revision=head.revision,
                types=["membership"],
                after_type=after_type,
                after_id=after_id,
                max_bytes=3000,
            )
        )
        for raw in page.entities:
            entity = feed_pb2.Change(entity=entity_of(raw))
            data = data_of(entity)
            snapshot[data["namespace"], data["user"]] = data["role"]
        after_type, after_id = page.next_type, page.next_id
        if not after_type:
            break
    assert snapshot == truth


def entity_of(raw: bytes) -> Any:
    return feed_pb2.Change().entity.FromString(raw)


async def test_check_access_tells_the_truth(user: Running) -> None:
    ann, bob = await user.person("ann"), await user.person("bob")
    made = await create(user, ann)
    namespace_id = made.namespace.name.split("/")[1]

    async def check(person: Person, namespace: str = namespace_id) -> pb.CheckAccessResponse:
        request = pb.CheckAccessRequest(namespace_id=namespace, user_id=person.user_id)
        answer: pb.CheckAccessResponse = await user.access.CheckAccess(request)
        return answer

    mine = await check(ann)
    assert (mine.role, mine.namespace, mine.revoked) == (OWNER, made.namespace, False)
    assert mine.revision >= made.revision
    assert (await check(bob)).role == user_pb2.Member.ROLE_UNSPECIFIED
    assert not (await check(ann, "no-such-thing")).HasField("namespace")


async def test_a_snapshot_shows_who_belonged_at_its_revision_through_short_and_empty_pages(
    user: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "MAX_WALKED", 2)
    ann, bob = await user.person("ann"), await user.person("bob")
    name = (await create(user, ann)).namespace.name
    await add(user, ann, name, bob.user_id, VIEWER)
    revision = (await user.head()).revision
    await set_role(user, ann, f"{name}/members/{bob.user_id}", EDITOR)
    await user.namespaces.DeleteMember(
        pb.DeleteMemberRequest(name=f"{name}/members/{bob.user_id}"), metadata=ann.credentials
    )
    now = (await user.head()).revision
    namespace_id = name.split("/")[1]
    for moment, roles in ((revision, {"OWNER", "VIEWER"}), (now, {"OWNER"})):
        entities = await snapshot_of(user, moment, ["user", "membership", "unknown"])
        data = [data_of(feed_pb2.Change(entity=entity)) for entity in entities]
        assert {record["role"] for record in data if record.get("namespace") == namespace_id} == roles
        names = [(entity.type, entity.name) for entity in entities]
        assert names == sorted(set(names))
        assert {entity.type for entity in entities} == {"user", "membership"}


async def snapshot_of(user: Running, revision: int, types: list[str]) -> list[Any]:
    """Every entity of a snapshot, page by page."""
    entities: list[Any] = []
    after = ("", "")
    while True:
        request = log_service_pb2.ReadSnapshotRequest(
            namespace_id="system", revision=revision, types=types, after_type=after[0], after_id=after[1]
        )
        page = await user.log.ReadSnapshot(request)
        entities += map(entity_of, page.entities)
        after = (page.next_type, page.next_id)
        if not any(after):
            return entities


async def test_a_page_of_a_snapshot_reads_two_versions_for_each_record_however_often_it_changed(user: Running) -> None:
    ann = await user.person()
    name = (await create(user, ann)).namespace.name
    for number in range(40):
        wanted = user_pb2.Namespace(name=name, display_name=f"name {number}")
        request = pb.UpdateNamespaceRequest(namespace=wanted, update_mask=["displayName"])
        await user.namespaces.UpdateNamespace(request, metadata=ann.credentials)
    revision = (await user.head()).revision
    page = snapshots.select_page("system", revision, ("namespace", ""), "namespace")
    explained = Statement("EXPLAIN (ANALYZE, FORMAT JSON) " + page.sql, page.params)
    (((plan,),),) = await user.service.database.read("system", explained)
    (keys,) = await user.rows("SELECT count(DISTINCT id) FROM versions WHERE type = 'namespace'")
    assert scanned_versions(plan[0]["Plan"]) <= 2 * keys[0]


def scanned_versions(node: dict[str, Any]) -> int:
    own = round(node["Actual Rows"] * node["Actual Loops"]) if node.get("Relation Name") == "versions" else 0
    return own + sum(map(scanned_versions, node.get("Plans", ())))


@pytest.mark.parametrize("key", ["with a space", "x" * 65, "a/b"])
async def test_an_idempotency_key_in_a_header_obeys_the_rule_of_the_field(user: Running, key: str) -> None:
    ann = await user.person()
    request = pb.CreateNamespaceRequest(namespace_id="refused")
    headers = (*ann.credentials, ("idempotency-key", key))
    failure = await refusal(user.namespaces.CreateNamespace(request, metadata=headers))
    assert reason_of(failure) == "INVALID_FIELD"


async def test_a_snapshot_of_another_life_or_of_the_future_is_refused(user: Running) -> None:
    head = await user.head()
    for epoch, revision, reason in (
        ("00000000", head.revision, "EPOCH_CHANGED"),
        (head.epoch, head.revision + 1000, "FUTURE_REVISION"),
    ):
        request = log_service_pb2.ReadSnapshotRequest(namespace_id="system", epoch=epoch, revision=revision)
        assert reason_of(await refusal(user.log.ReadSnapshot(request))) == reason


async def administrator(user: Running) -> Person:
    """Somebody whose tokens carry the scope ``admin``."""
    person = await user.person("root")
    await user.execute("UPDATE users SET administrator = true WHERE id = %s", person.user_id)
    await user.sign_in(person)
    return person


async def set_quota(user: Running, actor: Person, name: str, **limits: int) -> pb.UpdateQuotaResponse:
    request = pb.UpdateQuotaRequest(quota=user_pb2.Quota(name=f"{name}/quota", **limits))
    answer: pb.UpdateQuotaResponse = await user.namespaces.UpdateQuota(request, metadata=actor.credentials)
    return answer


async def test_an_administrator_sets_a_quota_and_everybody_learns_of_it(user: Running) -> None:
    ann, root = await user.person(), await administrator(user)
    made = (await create(user, ann)).namespace
    answer = await set_quota(user, root, made.name, max_entities=10, max_writes_per_second=5)
    quota = user_pb2.Quota(name=f"{made.name}/quota", max_entities=10, max_writes_per_second=5)
    assert answer.quota == quota
    assert (await get(user, ann, made.name)).quota == quota
    (change,) = (await unit_at(user, answer.revision)).changes
    limits = change.entity.data.fields["quota"].struct_value.fields
    assert {name: value.number_value for name, value in limits.items()} == {
        "maxEntities": 10,
        "maxBytes": 0,
        "maxWritesPerSecond": 5,
    }
    checked = await user.access.CheckAccess(
        pb.CheckAccessRequest(namespace_id=made.name.split("/")[1], user_id=ann.user_id)
    )
    assert checked.namespace.quota == quota
    assert (
        await set_quota(user, root, made.name, max_entities=10, max_writes_per_second=5)
    ).revision == answer.revision
    await set_quota(user, root, made.name)
    assert (await get(user, ann, made.name)).quota == user_pb2.Quota(name=f"{made.name}/quota")


async def test_nobody_else_sets_a_quota_not_even_the_owner(user: Running) -> None:
    ann, root = await user.person(), await administrator(user)
    made = (await create(user, ann)).namespace
    for name in (made.name, "namespaces/nowhere"):
        refused = await refusal(set_quota(user, ann, name, max_entities=1))
        assert (refused.code(), reason_of(refused)) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_INSUFFICIENT")
    assert reason_of(await refusal(set_quota(user, root, "namespaces/nowhere", max_entities=1))) == "NOT_FOUND"
    assert reason_of(await refusal(set_quota(user, root, made.name, max_entities=-1))) == "INVALID_FIELD"
    request = pb.UpdateQuotaRequest(quota=user_pb2.Quota(name=made.name))
    refused = await refusal(user.namespaces.UpdateQuota(request, metadata=root.credentials))
    assert reason_of(refused) == "INVALID_FIELD"
