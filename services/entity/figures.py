"""Aggregates on the wire: which figures a request asks for, and how they are answered."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from google.protobuf import struct_pb2
from strandline.entity.v1 import entity_service_pb2 as pb

from services.entity.aggregates import Aggregates, Aggregation, Function, Request, Scalar
from services.entity.index_keys import parse_plain_field
from services.entity.model import MAX_ANSWER_BYTES, parse_type_name
from services.runtime.errors import FailedPrecondition


def parse_aggregates(request: pb.AggregateEntitiesRequest) -> Request:
    """What is asked for; ``INVALID_FIELD`` for what names no type or field."""
    return Request(
        parse_type_name(request.parent, "parent"),
        request.filter,
        tuple(_aggregation(message, f"aggregations[{place}]") for place, message in enumerate(request.aggregations)),
        tuple(parse_plain_field(text, f"group_by[{place}]") for place, text in enumerate(request.group_by)),
    )


def _aggregation(message: pb.Aggregation, field: str) -> Aggregation:
    function = cast("Function", message.WhichOneof("function"))
    if function == "count":
        return Aggregation(function)
    return Aggregation(function, parse_plain_field(getattr(message, function).field, f"{field}.{function}.field"))


def render_aggregates(found: Aggregates) -> pb.AggregateEntitiesResponse:
    """The answer; ``AGGREGATE_TOO_LARGE`` if it would be larger than one may be."""
    groups = (
        pb.AggregateEntitiesResponse.Group(key=_values(group.key), values=_values(group.values))
        for group in found.groups
    )
    answer = pb.AggregateEntitiesResponse(groups=groups, revision=found.head.revision, epoch=found.head.epoch)
    if answer.ByteSize() > MAX_ANSWER_BYTES:
        problem = f"the answer is larger than {MAX_ANSWER_BYTES} bytes: ask for fewer groups or figures"
        raise FailedPrecondition("AGGREGATE_TOO_LARGE", problem, limit=str(MAX_ANSWER_BYTES))
    return answer


def _values(values: Iterable[Scalar]) -> list[struct_pb2.Value]:
    return [_value(value) for value in values]


def _value(value: Scalar) -> struct_pb2.Value:
    match value:
        case None:
            return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
        case bool():
            return struct_pb2.Value(bool_value=value)
        case str():
            return struct_pb2.Value(string_value=value)
        case _:
            return struct_pb2.Value(number_value=value)
