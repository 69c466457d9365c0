"""What a reader may ask of a feed besides its start: which entities, how much of them, and when it ends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from strandline.stream.v1 import feed_pb2

from .conftest import TIDES
from .owner import Owner
from .service import Reader, StreamService, reason
from .test_snapshots import snapshot

Change = feed_pb2.Change
COMPLETED = feed_pb2.End.COMPLETED


async def test_a_feed_of_ids_brings_these_entities_and_the_ranges_of_all_others(
    owner: Owner, stream: StreamService
) -> None:
    everyone = {(type_id, f"e{n}"): {"n": n} for type_id in ("buoy", "ship") for n in range(9)}
    await owner.write(TIDES, everyone)
    async with stream.watch(snapshot=True, ids=["ship/e7", "buoy/e3", "buoy/none"]) as reader:
        entities, done = await snapshot(reader)
        assert [entity.name.split("/", 3)[3] for entity in entities] == ["buoy/entities/e3", "ship/entities/e7"]
        assert done.snapshot_done.count == 2
        await owner.write(TIDES, {key: {"n": 0} for key in everyone})
        await owner.put(TIDES, "none", n=1)
        units = await reader.until(3)
    assert [[change.entity.name.rsplit("/", 1)[1] for change in unit.changes] for unit in units] == [
        ["e3", "e7"],
        ["none"],
    ]


async def test_a_read_mask_hides_content_in_snapshot_and_tail_but_no_change(
    owner: Owner, stream: StreamService
) -> None:
    await owner.put(TIDES, "a", n=1, country="CH", port={"size": 7, "depth": 1})
    async with stream.watch(snapshot=True, filter="data.n > 0", read_mask=["data.country", "data.port.size"]) as reader:
        (entity,), _ = await snapshot(reader)
        await owner.put(TIDES, "a", n=2, country="CH", port={"size": 7, "depth": 1})
        (unit,) = await reader.until(2)
    (change,) = unit.changes
    for shown in (entity, change.entity, change.previous):
        assert json_format.MessageToDict(shown.data) == {"country": "CH", "port": {"size": 7}}
    assert (change.kind, change.entity.revision, change.entity.etag) == (Change.UPDATED, 2, '"2"')


async def test_previous_content_can_be_left_out(owner: Owner, stream: StreamService) -> None:
    async with (
        stream.watch(now=True, include_previous=False) as without,
        stream.watch(now=True, include_previous=True) as with_,
    ):
        await asyncio.gather(without.next(), with_.next())
        await owner.put(TIDES, "a", n=1)
        await owner.put(TIDES, "a", n=2)
        brief, full = (await without.until(2))[1], (await with_.until(2))[1]
    assert full.changes[0].HasField("previous")
    full.changes[0].ClearField("previous")
    assert brief == full


async def finished(reader: Reader) -> tuple[feed_pb2.End.Reason.ValueType, int]:
    end = await reader.end()
    return end.reason, end.resume_after_revision


async def test_once_sends_what_there_is_and_ends(owner: Owner, stream: StreamService) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:02}"): {"n": n} for n in range(25)})
    for n in range(5):
        await owner.put(TIDES, "b00", n=n + 1)
    async with stream.watch(snapshot=True, once=True) as reader:
        entities, _ = await snapshot(reader)
        assert len(entities) == 25
        assert await finished(reader) == (COMPLETED, 6)
    async with stream.watch(after_revision=2, once=True) as reader:
        assert await finished(reader) == (COMPLETED, 6)
        assert [unit.revision for unit in reader.units] == [3, 4, 5, 6]
    # A filter that nothing matches: the range is covered all the same, by a Progress.
    for request in ({"after_revision": 0}, {"now": True}, {"after_revision": 6}):
        async with stream.watch(once=True, types=["whale"], **request) as reader:
            first = await reader.next()
            assert (first.HasField("progress"), first.revision) == (True, 6)
            assert await finished(reader) == (COMPLETED, 6)


async def test_once_ends_at_the_revision_that_was_the_newest_at_its_start(owner: Owner, stream: StreamService) -> None:
    await owner.put(TIDES, "a", n=1)
    async with stream.watch(now=True) as warm:
        await warm.next()
        writing = asyncio.gather(*(owner.put(TIDES, f"b{n}", n=n) for n in range(30)))
        ends = []
        for _ in range(5):
            async with stream.watch(after_revision=0, once=True) as reader:
                ends.append((await finished(reader))[1])
                assert [unit.revision for unit in reader.units] == list(range(1, ends[-1] + 1))
        await writing
    assert ends == sorted(ends)


async def test_once_ends_with_the_snapshot_that_is_gone_on_with(owner: Owner, stream: StreamService) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:02}"): {"n": n} for n in range(25)})
    async with stream.watch(snapshot=True) as reader:
        token = (await reader.next()).snapshot_page.resume_token
    await owner.put(TIDES, "b00", n=7)
    async with stream.watch(resume_token=token, once=True) as reader:
        assert await finished(reader) == (COMPLETED, 1)


async def test_a_reader_chooses_how_long_its_feed_is_silent(owner: Owner, stream: StreamService) -> None:
    async with stream.watch(now=True, progress_interval=Duration(seconds=1)) as reader:
        for _ in range(3):
            assert (await reader.next()).HasField("progress")
    for seconds in (0, 6):
        async with stream.watch(now=True, progress_interval=Duration(seconds=seconds)) as reader:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await reader.next()
        assert reason(raised.value)[0] == "INVALID_FIELD"


@pytest.mark.parametrize(
    "other",
    [
        {"ids": ["buoy/b01"]},
        {"read_mask": ["data.n"]},
        {"include_previous": False},
        {"types": ["buoy"]},
    ],
)
async def test_a_snapshot_is_gone_on_with_as_it_was_begun(
    owner: Owner, stream: StreamService, other: dict[str, Any]
) -> None:
    await owner.write(TIDES, {("buoy", f"b{n:02}"): {"n": n} for n in range(25)})
    async with stream.watch(snapshot=True) as reader:
        token = (await reader.next()).snapshot_page.resume_token
    async with stream.watch(resume_token=token, **other) as reader:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await reader.next()
    assert reason(raised.value)[0] == "INVALID_FIELD"


async def test_every_option_has_its_parameter_in_a_url(owner: Owner, stream: StreamService) -> None:
    await owner.put(TIDES, "a", n=1, m=1)
    await owner.put(TIDES, "b", n=1, m=1)
    await owner.put(TIDES, "a", n=2, m=2)
    query = "afterRevision=1&ids=buoy/a&ids=ship/x&readMask=data.n&include_previous=false&once=true&progressInterval=1s"
    async with stream.get(query) as response:
        assert response.status == 200
        messages = [json.loads(line) for line in (await response.text()).splitlines()]
    assert [next(iter(message.keys() - {"afterRevision", "revision", "epoch"})) for message in messages] == [
        "units",
        "end",
    ]
    (change,) = messages[0]["units"]["units"][0]["changes"]
    assert (change["entity"]["data"], "previous" in change) == ({"n": 2}, False)
    assert messages[1]["end"]["reason"] == "COMPLETED"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("now=true&once=yes", "once"),
        ("now=true&once=true&once=true", "once"),
        ("now=true&include_previous=1", "include_previous"),
        ("now=true&progress_interval=1", "progress_interval"),
        ("now=true&progress_interval=9s", "progress_interval"),
        ("now=true&ids=buoy", "ids[0]"),
        ("now=true&ids=buoy/a&types=buoy", "types"),
        ("now=true&read_mask=n", "read_mask"),
    ],
)
async def test_a_parameter_that_makes_no_sense_is_refused(stream: StreamService, query: str, field: str) -> None:
    async with stream.get(query) as response:
        assert response.status == 400
        problem = await response.json(content_type="application/problem+json")
    assert problem["reason"] == "INVALID_FIELD"
    assert problem["violations"][0]["field"] == field
