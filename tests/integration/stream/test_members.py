"""A namespace's slice of ``system``: its record and its members, and not a word about anybody else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Iterable
from typing import Any

import grpc
import pytest
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.runtime.call import Namespace

from .conftest import TIDES, found
from .owner import SYSTEM, Data, Owner
from .service import ANN, Reader, StreamService, access_token

Change = feed_pb2.Change
BEN = "0192f0a0-0000-7000-8000-00000000000b"
EVE = "0192f0a0-0000-7000-8000-00000000000e"
# Before and after it, and beginning with it or it with them.
OTHERS = ("abc", "tide", "tider", "tides-2", "tidesz", "tidet", "zebra")


def record(epoch: str, **more: str) -> Data:
    return {"epoch": epoch, "state": "ACTIVE", "massChangeGuard": "OFF"} | more


def member(namespace: str, user: str, role: str = "VIEWER") -> dict[tuple[str, str], Data]:
    return {("membership", f"{namespace}~{user}"): {"namespace": namespace, "user": user, "role": role}}


def namespace(id: str, epoch: str = "0badcafe", **more: str) -> dict[tuple[str, str], Data]:
    return {("namespace", id): record(epoch, **more)}


async def make_others(owner: Owner) -> None:
    """Namespaces of Eve's, each with more members than fit into a page of a snapshot."""
    for id in OTHERS:
        members = [member(id, f"{EVE}-{number:02}") for number in range(12)]
        await owner.write(SYSTEM, {key: data for each in [namespace(id), *members] for key, data in each.items()})


def assert_only_ours(messages: Iterable[feed_pb2.WatchResponse]) -> None:
    """Nothing in the bytes of *messages* is of others: not a name, not an epoch, not a user."""
    for message in messages:
        raw = message.SerializeToString()
        assert not [stranger for stranger in (EVE, "0badcafe", "11111111") if stranger.encode() in raw]
        assert set(re.findall(rb"/types/[a-z]+/entities/([a-z0-9-]*)", raw)) <= {b"tides"}


def changes_of(units: Iterable[feed_pb2.Unit]) -> list[tuple[str, str]]:
    """Kind and ``{type}/{id}`` of each change."""
    return [
        (Change.Kind.Name(change.kind), f"{change.entity.type}/{change.entity.name.rsplit('/', 1)[1]}")
        for unit in units
        for change in unit.changes
    ]


async def collect(reader: Reader, revision: int) -> list[feed_pb2.WatchResponse]:
    messages = []
    while reader.last is None or reader.last.revision < revision:
        messages.append(await reader.next())
    return messages


async def test_a_member_sees_what_happens_to_the_namespace_and_its_members_and_nothing_else(
    owner: Owner, stream: StreamService
) -> None:
    await make_others(owner)
    async with stream.watch_members(after_revision=0) as reader:
        first = await collect(reader, 1)
        await owner.write(SYSTEM, member("tides", BEN))
        # One unit about several namespaces: of it only what is ours.
        await owner.write(
            SYSTEM, member("tides", BEN, "EDITOR") | member("tides-2", EVE) | namespace("tidet", "11111111")
        )
        await owner.write(SYSTEM, {("revocation", EVE): {"user": EVE, "expiresAt": int(time.time()) + 600}})
        await owner.write(SYSTEM, namespace("tides", TIDES.epoch, quota="none"))
        last = await owner.write(SYSTEM, {("membership", f"tides~{BEN}"): None})
        messages = [*first, *await collect(reader, last)]
    assert_only_ours(messages)
    assert changes_of(reader.units) == [
        ("CREATED", "namespace/tides"),
        ("CREATED", f"membership/tides~{ANN}"),
        ("CREATED", f"membership/tides~{BEN}"),
        ("UPDATED", f"membership/tides~{BEN}"),
        ("UPDATED", "namespace/tides"),
        ("DELETED", f"membership/tides~{BEN}"),
    ]
    updated = reader.units[2].changes[0]
    assert (updated.previous.data["role"], updated.entity.data["role"]) == ("VIEWER", "EDITOR")
    # From the log below the ring it is the same.
    async with stream.watch_members(after_revision=0) as again:
        assert_only_ours(await collect(again, last))
    assert again.units == reader.units


async def test_a_snapshot_of_members_is_theirs_alone_also_in_its_tokens_count_and_hash(
    owner: Owner, stream: StreamService
) -> None:
    await make_others(owner)
    for number in range(15):
        revision = await owner.write(SYSTEM, member("tides", f"{BEN}-{number:02}"))
    await owner.write(SYSTEM, {("membership", f"tides~{BEN}-03"): None})
    revision += 1
    messages: list[feed_pb2.WatchResponse] = []
    token = ""
    while not messages or not messages[-1].HasField("snapshot_done"):
        # Each page by a reader of its own: what a token says is enough to go on.
        async with stream.watch_members(**({"resume_token": token} if token else {"snapshot": True})) as reader:
            messages.append(await reader.next())
        if token := messages[-1].snapshot_page.resume_token:
            position = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[:-16])
            # The second is no name: it comes before ours and after every other.
            assert position[3].startswith("tides~") or position[3] in ("", "tides", "tider\U0010ffff")
    assert_only_ours(messages)
    entities: list[entity_pb2.Entity] = [e for message in messages for e in message.snapshot_page.entities]
    members = [f"membership/tides~{user}" for user in sorted([ANN, *(f"{BEN}-{n:02}" for n in range(15) if n != 3)])]
    assert [f"{e.type}/{e.name.rsplit('/', 1)[1]}" for e in entities] == [*members, "namespace/tides"]
    total = sum(int.from_bytes(hashlib.sha256(f"{e.name} {e.revision}".encode()).digest()) for e in entities)
    done = messages[-1].snapshot_done
    assert (done.count, done.hash) == (len(entities), f"{total % 2**256:064x}")
    assert {message.revision for message in messages} == {revision}


async def test_another_life_of_the_namespace_is_another_namespace(owner: Owner, stream: StreamService) -> None:
    await owner.write(SYSTEM, member("tides", BEN))
    async with stream.watch_members(snapshot=True) as reader:
        token = (await reader.next()).snapshot_page.resume_token
    await owner.write(SYSTEM, namespace("tides", TIDES.epoch, state="DELETING"))
    gone = {("membership", f"tides~{user}"): None for user in (ANN, BEN)}
    await owner.write(SYSTEM, gone)
    await owner.write(SYSTEM, {("namespace", "tides"): None})
    await found(owner, Namespace("tides", "0badcafe"))
    last = await owner.write(SYSTEM, member("tides", EVE))
    await stream.knows(Namespace("tides", "0badcafe"))
    async with stream.watch_members(after_revision=0) as reader:
        await reader.until(last)
    assert changes_of(reader.units) == [
        ("CREATED", "namespace/tides"),
        ("CREATED", f"membership/tides~{ANN}"),
        ("CREATED", f"membership/tides~{EVE}"),
    ]
    assert BEN.encode() not in b"".join(unit.SerializeToString() for unit in reader.units)
    async with stream.watch_members(resume_token=token) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_only_members_may_watch_them(owner: Owner, stream: StreamService) -> None:
    await owner.write(SYSTEM, namespace("tidet") | member("tidet", EVE))
    async with stream.watch_members(snapshot=True) as reader:
        token = (await reader.next()).snapshot_page.resume_token
    refused: list[tuple[str, str, dict[str, object], grpc.StatusCode]] = [
        ("tides", access_token(EVE), {"now": True}, grpc.StatusCode.NOT_FOUND),
        ("tidet", access_token(), {"now": True}, grpc.StatusCode.NOT_FOUND),
        ("tides", access_token(EVE, scope="admin"), {"now": True}, grpc.StatusCode.NOT_FOUND),
        ("tides", "none", {"now": True}, grpc.StatusCode.UNAUTHENTICATED),
        ("tides", access_token(), {}, grpc.StatusCode.INVALID_ARGUMENT),
        ("tides", access_token(), {"after_revision": 99}, grpc.StatusCode.FAILED_PRECONDITION),
        ("tides", access_token(), {"after_revision": 0, "epoch": TIDES.epoch}, grpc.StatusCode.FAILED_PRECONDITION),
        ("tidet", access_token(EVE), {"resume_token": token}, grpc.StatusCode.INVALID_ARGUMENT),
    ]
    for id, bearer, start, code in refused:
        async with stream.watch_members(id, bearer, **start) as reader:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await reader.next()
        assert raised.value.code() == code, (id, start)
    async with stream.watch("system", access_token(scope="admin"), resume_token=token) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_feed_of_a_removed_member_ends(owner: Owner, stream: StreamService) -> None:
    async with stream.watch_members(now=True) as reader:
        await reader.next()
        await owner.write(SYSTEM, {("membership", f"tides~{ANN}"): None})
        end = await reader.end()
    assert end.reason == feed_pb2.End.ACCESS_REVOKED
    assert "tides" not in end.detail


async def test_the_feed_of_a_deleted_namespace_says_so(owner: Owner, stream: StreamService) -> None:
    async with stream.watch_members(now=True) as reader:
        await reader.next()
        await owner.write(SYSTEM, namespace("tides", TIDES.epoch, state="DELETING"))
        assert (await reader.end()).reason == feed_pb2.End.NAMESPACE_DELETED


@pytest.mark.parametrize("start", [{"snapshot": True}, {"after_revision": 0}], ids=str)
async def test_members_can_be_listed_and_that_is_all(
    owner: Owner, stream: StreamService, start: dict[str, Any]
) -> None:
    await make_others(owner)
    await owner.write(SYSTEM, member("tides", BEN))
    async with stream.watch_members(once=True, **start) as reader:
        assert (await reader.end()).reason == feed_pb2.End.COMPLETED
        assert reader.last is not None
        assert reader.last.revision == len(OTHERS) + 2


async def test_over_http_it_is_a_feed_like_any_other(owner: Owner, stream: StreamService) -> None:
    url = "http://stream/v1/namespaces/tides/members:watch"
    async with stream.session() as session:
        async with session.get(f"{url}?after_revision=0", headers={"accept": "text/event-stream"}) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
            event = await response.content.readuntil(b"\n\n")
        assert event.startswith(b"id: 5y57e111.1\n")
        assert b'"kind":"CREATED"' in event
        async with session.get(f"{url}?now=true&types=user") as response:
            assert (response.status, (await response.json(content_type=None))["reason"]) == (400, "UNKNOWN_FIELD")
        async with session.ws_connect(f"{url}?now=true") as socket:
            assert (await socket.receive_json(timeout=15))["progress"]["headRevision"] == "1"
