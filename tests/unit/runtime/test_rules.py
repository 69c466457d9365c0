"""Rules written in the protos hold, also where they are not asked for."""

from __future__ import annotations

from typing import Any

import protovalidate
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from strandline.entity.v1 import entity_pb2
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.user.v1 import namespace_service_pb2

from services.runtime.errors import InvalidArgument
from services.runtime.rules import check_rules


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GetEntityRequest(name="x", min_revision=-1), "min_revision"),
        (pb.GetEntityRequest(read_mask=["data.a"] * 101), "read_mask"),
        (pb.ListEntitiesRequest(page_size=-1), "page_size"),
        (namespace_service_pb2.CreateMemberRequest(), "member"),
        (pb.BatchWriteRequest(writes=[entity_pb2.Mutation()]), "writes[0].operation"),
    ],
    ids=["a number", "a list", "another number", "what is absent", "inside a list"],
)
def test_a_request_that_breaks_a_rule_is_refused_with_the_field(request_: Message, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_rules(request_)
    assert refused.value.reason == "INVALID_FIELD"
    assert field in [violation.field for violation in refused.value.violations]


REQUESTS = [
    message_factory.GetMessageClass(method.input_type)
    for service in ("strandline.entity.v1.EntityService", "strandline.user.v1.NamespaceService")
    for method in descriptor_pool.Default().FindServiceByName(service).methods
]


TEXTS = st.sampled_from(["", "a", "no id!", "x" * 65, "x" * 5000])
NUMBERS = st.sampled_from([-1, 0, 1, 1000])
SETTINGS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: TEXTS.map(str.encode),
    FieldDescriptor.TYPE_INT32: NUMBERS,
    FieldDescriptor.TYPE_INT64: NUMBERS,
    FieldDescriptor.TYPE_ENUM: st.integers(0, 9),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: st.sampled_from([0.0, -1.5, float("nan")]),
}


@given(st.data())
def test_no_request_is_let_through_that_the_validator_refuses(data: st.DataObject) -> None:
    request = data.draw(st.sampled_from(REQUESTS))()
    _fill(request, data, depth=3)
    refused = bool(protovalidate.collect_violations(request))
    try:
        check_rules(request)
    except InvalidArgument:
        assert refused
    else:
        assert not refused


def _fill(message: Any, data: st.DataObject, depth: int) -> None:
    """Set some of the fields of *message*, often to what a rule forbids."""
    for field in message.DESCRIPTOR.fields:
        if not data.draw(st.booleans()):
            continue
        if field.message_type is not None:
            if field.message_type.file.package.startswith("strandline") and depth:
                value = getattr(message, field.name)
                inner = value.add() if field.is_repeated else value
                if not field.is_repeated:
                    inner.SetInParent()
                _fill(inner, data, depth - 1)
            continue
        drawn = data.draw(SETTINGS[field.type])
        if field.is_repeated:
            getattr(message, field.name).extend([drawn] * data.draw(st.sampled_from([1, 2, 600])))
        else:
            setattr(message, field.name, drawn)
