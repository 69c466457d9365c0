"""The rules that stand in the protos, applied to requests."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import protovalidate
from buf.validate import validate_pb2
from google.protobuf.message import Message

from services.runtime.errors import InvalidArgument, Violation

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


class _Rules:
    """Which fields of a message class have rules: most requests set none, and asking costs less than checking."""

    def __init__(self, message: type[Message]) -> None:
        descriptor = message.DESCRIPTOR
        ruled = [field for field in descriptor.fields if _field_has_rules(field, set())]
        # What must be there and has no other rule is kept by being there.
        self._required = tuple(field.name for field in ruled if _is_only_required(field))
        others = [field for field in ruled if field.name not in self._required]
        self._with_presence = tuple(field.name for field in others if field.has_presence)
        self._without = tuple(field.name for field in others if not field.has_presence)
        # Rules of the whole, or of what else is absent, concern every request.
        absent = {_field_path(violation.proto.field) for violation in _validator().collect_violations(message())}
        self._all = _has_own_rules(descriptor) or not absent <= set(self._required)

    def concern(self, request: Message) -> bool:
        """Whether *request* sets anything that has a rule; what is absent keeps those that there are."""
        if self._all:
            return True
        for name in self._required:
            if not request.HasField(name):
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


def _has_own_rules(descriptor: Any) -> bool:
    return descriptor.GetOptions().HasExtension(validate_pb2.message) or any(
        oneof.GetOptions().HasExtension(validate_pb2.oneof) for oneof in descriptor.oneofs
    )


@cache
def _validator() -> protovalidate.Validator:
    return protovalidate.Validator()


def _in_our_words(message: str) -> str:
    return message.replace("does not match regex pattern", "must match") or "is not valid"


def _field_path(path: Any) -> str:
    return ".".join(
        element.field_name + (f"[{element.subscript.value}]" if element.subscript else "") for element in path.elements
    )
