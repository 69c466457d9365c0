"""Blanking takes the content and nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from strandline.entity.v1 import entity_pb2
from strandline.stream.v1 import feed_pb2

from services.entity.blanking import blank_change, is_blank
from services.runtime import changelog
from services.runtime.changelog import CREATED, UPDATED, Change
from services.runtime.wire import EPOCH

SECRET = "the wreck lies at 54.3 N"
data = st.dictionaries(st.text(max_size=5), st.text(max_size=300) | st.floats(allow_nan=False) | st.none(), max_size=4)


def entity(content: dict[str, Any], revision: int) -> entity_pb2.Entity:
    message = entity_pb2.Entity(name="namespaces/n/types/t/entities/e", type="t", uid="u", etag=f'"{revision}"')
    message.revision = revision
    message.data.SetInParent()
    message.data.update(content)
    message.update_time.seconds = revision
    message.created_by = "z" * (revision % 7)
    return message


@given(first=data, second=data, other=data, revision=st.integers(1, 2**40))
def test_a_blanked_change_keeps_everything_but_data_and_its_neighbours_keep_that_too(
    first: dict[str, Any], second: dict[str, Any], other: dict[str, Any], revision: int
) -> None:
    before, after, neighbour = entity(first, revision), entity({**second, "s": SECRET}, revision + 1), entity(other, 7)
    changes = [
        Change(UPDATED, "t", "e", after.SerializeToString(), before.SerializeToString()),
        Change(CREATED, "t", "f", neighbour.SerializeToString()),
    ]
    unit = changelog.encode_unit(revision + 1, EPOCH, "ann", "r", changes)
    slice_ = unit.versions[0]
    stored = unit.body[slice_.start :]
    blank = blank_change(stored, slice_.length)
    assert SECRET.encode() not in blank
    blanked = unit.body[: slice_.start] + blank + unit.body[slice_.start + len(blank) :]
    assert len(blanked) == len(unit.body)
    parsed = feed_pb2.Unit.FromString(blanked)
    assert parsed.changes[1].entity == neighbour
    for message, original in ((parsed.changes[0].entity, after), (parsed.changes[0].previous, before)):
        assert not message.HasField("data")
        assert is_blank(message.SerializeToString())
        assert not is_blank(original.SerializeToString())
        message.data.CopyFrom(original.data)
        message.DiscardUnknownFields()
        assert message == original
    assert blank_change(blank, slice_.length) == blank
