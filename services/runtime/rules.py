"""The rules that stand in the protos, applied to requests."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import protovalidate
from buf.validate import validate_pb2
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.runtime.errors import InvalidArgument, Violation, invalid_field

MAX_LISTED: Final = 100


def check_rules(request: Message) -> None:
    """Refuse a request that breaks the rules written in its proto, naming each field."""
    if not _rules_of(type(request)).concern(request):
        return
    violations = _validator().collect_violations(request)
    if violations:
        listed = [
            Violation(_field_path(violation.proto.field), _in_our_words(violation.proto.message))
            for violation in violations[:MAX_LISTED]
        ]
        raise InvalidArgument("INVALID_FIELD", f"{listed[0].field}: {listed[0].message}", violations=listed)


def time_of(timestamp: Timestamp, field: str) -> datetime:
    """*timestamp*, or ``INVALID_FIELD`` for *field*."""
    try:
        return timestamp.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid_field(field, "is no time between the years 1 and 9999") from None


class _Rules:
    """Which fields of a message class have rules: most requests set none, and asking costs less than checking."""

    def __init__(self, message: type[Message]) -> None:
        descriptor = message.DESCRIPTOR
        ruled = [field for field in descriptor.fields if _field_has_rules(field, set())]
        # What must be there and has no other rule is kept by being there.
        self._required = tuple(field.name for field in ruled if _is_only_required(field))
        self._oneofs = tuple(oneof.name for oneof in descriptor.oneofs if _is_required(oneof))
        self._lists = tuple(_list_rule(field) for field in ruled if _is_only_counted(field))
        self._inside = tuple(field.name for field in ruled if _has_rules_only_inside(field))
        told_apart = {*self._required, *(name for name, *_ in self._lists), *self._inside}
        others = [field for field in ruled if field.name not in told_apart]
        self._with_presence = tuple(field.name for field in others if field.has_presence)
        self._without = tuple(field.name for field in others if not field.has_presence)
        # Rules of the whole, or of what else is absent, concern every request.
        absent = {_field_path(violation.proto.field) for violation in _validator().collect_violations(message())}
        self._all = descriptor.GetOptions().HasExtension(validate_pb2.message) or not absent <= {
            *self._required,
            *self._oneofs,
            *(name for name, *_ in self._lists),
        }

    def concern(self, request: Message) -> bool:
        """Whether *request* sets anything that has a rule; what is absent keeps those that there are."""
        if self._all:
            return True
        for name in self._required:
            if not request.HasField(name):
                return True
        for name in self._oneofs:
            if request.WhichOneof(name) is None:
                return True
        for name, least, most, of_messages in self._lists:
            items = getattr(request, name)
            if not least <= len(items) <= most:
                return True
            if of_messages and items and any(map(_rules_of(type(items[0])).concern, items)):
                return True
        for name in self._inside:
            if request.HasField(name):
                inner = getattr(request, name)
                if _rules_of(type(inner)).concern(inner):
                    return True
        for name in self._without:
            if getattr(request, name):
                return True
        return any(map(request.HasField, self._with_presence))


_RULES: Final[dict[type[Message], _Rules]] = {}


def _rules_of(message: type[Message]) -> _Rules:
    rules = _RULES.get(message)
    if rules is None:
        rules = _RULES[message] = _Rules(message)
    return rules


def _field_has_rules(field: Any, above: set[str]) -> bool:
    if field.GetOptions().HasExtension(validate_pb2.field):
        return True
    inner = field.message_type
    if inner is None or inner.full_name in above:
        return False
    above.add(inner.full_name)
    return _has_own_rules(inner) or any(_field_has_rules(field, above) for field in inner.fields)


def _is_only_required(field: Any) -> bool:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    inner = field.message_type
    return (
        inner is not None
        and not field.is_repeated
        and rules == validate_pb2.FieldRules(required=True)
        and not _has_own_rules(inner)
        and not any(_field_has_rules(each, {inner.full_name}) for each in inner.fields)
    )


def _list_rule(field: Any) -> tuple[str, int, int, bool]:
    """Name, least and greatest length of a list, and whether it is one of messages."""
    rules = field.GetOptions().Extensions[validate_pb2.field].repeated
    most = rules.max_items if rules.HasField("max_items") else sys.maxsize
    return field.name, rules.min_items, most, field.message_type is not None


def _is_only_counted(field: Any) -> bool:
    """Whether the only rules of a list are about its length and, if it is one of messages, inside them."""
    if not field.is_repeated or (field.message_type is not None and field.message_type.GetOptions().map_entry):
        return False
    rules = field.GetOptions().Extensions[validate_pb2.field]
    counted = validate_pb2.FieldRules(repeated=validate_pb2.RepeatedRules())
    for bound in ("min_items", "max_items"):
        if rules.repeated.HasField(bound):
            setattr(counted.repeated, bound, getattr(rules.repeated, bound))
    return rules in (counted, validate_pb2.FieldRules())


def _has_rules_only_inside(field: Any) -> bool:
    return (
        field.message_type is not None
        and not field.is_repeated
        and not field.GetOptions().HasExtension(validate_pb2.field)
    )


def _has_own_rules(descriptor: Any) -> bool:
    return descriptor.GetOptions().HasExtension(validate_pb2.message) or any(map(_is_required, descriptor.oneofs))


def _is_required(oneof: Any) -> bool:
    return bool(oneof.GetOptions().HasExtension(validate_pb2.oneof))


@cache
def _validator() -> protovalidate.Validator:
    return protovalidate.Validator()


def _in_our_words(message: str) -> str:
    return message.replace("does not match regex pattern", "must match") or "is not valid"


def _field_path(path: Any) -> str:
    return ".".join(
        element.field_name + (f"[{element.subscript.value}]" if element.subscript else "") for element in path.elements
    )
