"""How a type's schema may change: judged by the compatibility that the type promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from services.entity.compatibility import Comparison, Difference, Mode, NotASchema, as_type
from services.runtime.errors import FailedPrecondition, InvalidArgument, Violation, invalid_field
from services.runtime.wire import JsonObject

FIELD: Final = "type.schema"


def compare(versions: Sequence[JsonObject], schema: JsonObject, field: str) -> Comparison:
    """*schema* as the successor of *versions* of a type, oldest first.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` for *field*: *schema* cannot be compared.
    """
    try:
        return Comparison([as_type(version) for version in versions], as_type(schema))
    except NotASchema as failure:
        raise _invalid(failure, field) from None


def check_compatible(mode: Mode, versions: Sequence[JsonObject], schema: JsonObject) -> None:
    """Refuse *schema* as the successor of *versions*, of which the last one is in force.

    Raises:
        FailedPrecondition: ``INCOMPATIBLE_SCHEMA`` with each difference, its rule first, and the modes that would allow
            the change.
    """
    comparison = compare(versions, schema, FIELD)
    if differences := comparison.differences(mode):
        raise _incompatible(mode, differences, comparison.allowed_by())


def _incompatible(mode: Mode, differences: Sequence[Difference], allowed_by: Sequence[Mode]) -> FailedPrecondition:
    first, allowed = differences[0], ", ".join(other.name for other in allowed_by)
    return FailedPrecondition(
        "INCOMPATIBLE_SCHEMA",
        f"the schema is not {mode.name} compatible: {first.path or '/'}: {first.rule}: {first.message}; "
        f"allowed by {allowed}",
        violations=[Violation(FIELD, f"{one.rule}: {one.message}", one.path) for one in differences],
        rule=first.rule,
        allowed_by=allowed,
    )


def _invalid(failure: NotASchema, field: str) -> InvalidArgument:
    return invalid_field(field, failure.message, failure.pointer)
