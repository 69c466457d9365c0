"""How a type's schema may change: by the compatibility that the type promises, and by who names its fields.

Comparing schemas can take a second, so it is done before the lock is taken, on a thread; under the lock only the
judgement is looked at, and whether it is still about what is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

from services.entity.compatibility import Comparison, Difference, Mode, NotASchema, absent_fields, as_type
from services.entity.model import EntityType
from services.entity.retention_store import Lease
from services.runtime.errors import Aborted, FailedPrecondition, Violation, invalid_field
from services.runtime.filters.ast import Path
from services.runtime.filters.paths import parse_path, render_path
from services.runtime.wire import JsonObject

T = TypeVar("T")
FIELD: Final = "type.schema"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found about a schema as the successor of ``schema_version`` under ``mode``.

    ``keeps_old``: no stored entity can become invalid. Of ``asked`` fields, ``removed`` cannot be there any more.
    """

    schema_version: int
    mode: Mode
    refusal: FailedPrecondition | None
    keeps_old: bool
    asked: frozenset[Path]
    removed: frozenset[Path]


class FieldUse(NamedTuple):
    """Somebody names the fields at *paths*; *user* says who, *rule* what kind of user that is."""

    rule: str
    user: str
    paths: tuple[Path, ...]


def index_uses(type_: EntityType) -> list[FieldUse]:
    """The fields that the indexes of *type_* name."""
    return [
        FieldUse(
            "FIELD_INDEXED",
            f"the index ({', '.join(index.fields)}); remove it in the same update, with indexes in the update_mask",
            tuple(part.path for part in index.spec.fields),
        )
        for index in type_.indexes
    ]


def lease_uses(type_id: str, leases: Iterable[Lease]) -> list[FieldUse]:
    """The fields that filters of consumers of the type name."""
    return [
        FieldUse(
            "FIELD_CONSUMED",
            f"the filter of the consumer {lease.name}",
            tuple(parse_path(text, field="fields") for text in lease.fields),
        )
        for lease in leases
        if not lease.types or type_id in lease.types
    ]


class Comparer:
    """Compares schemas on one thread of its own: a second of work delays the next comparison, and nothing else much."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "comparer")

    async def run(self, work: Callable[[], T]) -> T:
        """The result of *work*; not begun if the caller gives up before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


class StaleJudgement(Aborted):
    """The judgement is not about what is stored now: judge again. No caller ever sees this."""

    def __init__(self) -> None:
        super().__init__("STALE", "judge again")


def compare(versions: Sequence[JsonObject], schema: JsonObject, field: str) -> Comparison:
    """*schema* as the successor of *versions* of a type, oldest first.

    Raises:
        InvalidArgument: ``INVALID_FIELD`` for *field*: *schema* cannot be compared.
    """
    try:
        return Comparison([as_type(version) for version in versions], as_type(schema))
    except NotASchema as failure:
        raise invalid_field(field, failure.message, failure.pointer) from None


def judge(
    schema_version: int, versions: Sequence[JsonObject], schema: JsonObject, mode: Mode, fields: Iterable[Path]
) -> Judgement:
    """Judge *schema* as the successor of *versions*, of which the last is in force; somebody names *fields*."""
    comparison = compare(versions, schema, FIELD)
    differences = comparison.differences(mode)
    asked = frozenset(fields)
    return Judgement(
        schema_version=schema_version,
        mode=mode,
        refusal=_incompatible(mode, differences, comparison.allowed_by()) if differences else None,
        keeps_old=not comparison.differences(Mode.BACKWARD),
        asked=asked,
        removed=removed_fields(versions[-1], schema, asked),
    )


def removed_fields(old: JsonObject, new: JsonObject, paths: Iterable[Path]) -> frozenset[Path]:
    """Those of *paths* at which data of a type may have something by *old*, and nothing by *new*."""
    absent = absent_fields(as_type(new), paths)
    return frozenset(absent - absent_fields(as_type(old), absent))


def check_fields(removed: Collection[Path], uses: Iterable[FieldUse]) -> None:
    """Refuse to remove a field that somebody uses.

    Raises:
        FailedPrecondition: ``INCOMPATIBLE_SCHEMA``, naming each of *uses*.
    """
    violations = [
        Violation(FIELD, f"{use.rule}: {render_path(path)} is removed, but named by {use.user}", _pointer(path))
        for use in uses
        for path in use.paths
        if path in removed
    ]
    if violations:
        first = violations[0]
        rule, _, _ = first.message.partition(":")
        raise FailedPrecondition(
            "INCOMPATIBLE_SCHEMA", f"the schema is refused: {first.message}", violations=violations, rule=rule
        )


def _pointer(path: Path) -> str:
    return "".join(f"/properties/{key.replace('~', '~0').replace('/', '~1')}" for key in path)


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
