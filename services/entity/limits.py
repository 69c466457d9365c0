"""What a namespace may hold and how much of it one principal may change at once, counted under the lock.

Quotas bound live entities, bytes and writes per second of a namespace. The mass-change guard refuses the unit that
would take what a principal has changed of a type within ten minutes (an import: altogether) above a fifth of the
type, and above 1,000 entities, until the caller repeats it with the operation id that the refusal names. An entity that
a principal changes again and again counts once, a delete always; creating counts nothing.

Counts are no footprints: units are checked in the order of their arrival, each after what the ones before it add.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple, Protocol

from services.entity import usage_store
from services.entity.usage_store import IMPORT, Budget, Changed, Scope
from services.runtime.call import NO_QUOTA, Namespace, Quota
from services.runtime.database import Row, Statement
from services.runtime.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, invalid_field
from services.runtime.page_tokens import binding_of, open_token, seal

GUARD_FLOOR: Final = 1000
"""Entities of a type that one principal may always change within the window."""
GUARD_SHARE: Final = 0.2
"""The share of a type beyond which more must be confirmed."""
CONFIRM_SECONDS: Final = 600
"""How long an operation id confirms."""
WRITE_BURST: Final = 500
"""Writes that may come at once whatever the quota per second: one unit."""
_NOT_SOON: Final = "3600"
"""Seconds after which to try again what needs a person first."""
_NONE: Final = (0, 0)


@dataclass(frozen=True, slots=True)
class Limits:
    """What applies to one unit. ``confirmed`` are the types whose mass change its caller has confirmed."""

    quota: Quota = NO_QUOTA
    guard: bool = False
    confirmed: frozenset[str] = frozenset()
    import_id: str = ""


UNLIMITED: Final = Limits()


class Delta(NamedTuple):
    """What one entity's change does to the counts; *recount*: revision at which the actor had changed it last, or 0."""

    type: str
    entities: int
    bytes: int
    changed: bool = False
    deleted: bool = False
    recount: int = 0


class LimitedUnit(Protocol):
    """The part of a unit that counts."""

    @property
    def actor(self) -> str: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def changes_stored(self) -> bool:
        """Whether it may change or delete what is stored, and not only create."""
        ...


class Confirmations:
    """Operation ids: sealed, so that no state is kept for what was refused."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def issue(self, namespace: str, epoch: str, actor: str, types: Iterable[str]) -> str:
        """An id that confirms mass changes of *types* by *actor* for ten minutes."""
        payload = f"{int(time.time())} {' '.join(sorted(types))}"
        return seal(self._key, _binding(namespace, epoch, actor), payload.encode())

    def confirmed(self, namespace: Namespace, actor: str, operation_id: str) -> frozenset[str]:
        """The types that *operation_id* confirms; none if it is empty.

        Raises:
            InvalidArgument: INVALID_FIELD, it was not issued to this caller for this namespace, or is too old.
        """
        if not operation_id:
            return frozenset()
        try:
            payload = open_token(self._key, _binding(namespace.id, namespace.epoch, actor), operation_id).decode()
        except InvalidArgument:
            raise _not_confirming() from None
        issued, *types = payload.split(" ")
        if time.time() - int(issued) > CONFIRM_SECONDS:
            raise _not_confirming()
        return frozenset(types)


def _binding(namespace: str, epoch: str, actor: str) -> bytes:
    return binding_of("mass change", namespace, epoch, actor)


def _not_confirming() -> InvalidArgument:
    return invalid_field(
        "confirm_operation_id", "was not given to you for this namespace in the last 10 minutes; repeat without it"
    )


def available_writes(quota: Quota, budget: Budget | None, moment: datetime) -> float:
    """How many writes may come at *moment* at once."""
    capacity = float(max(quota.max_writes_per_second, WRITE_BURST))
    if budget is None:
        return capacity
    elapsed = max(0.0, (moment - budget.update_time).total_seconds())
    return min(capacity, budget.tokens + elapsed * quota.max_writes_per_second)


class Counted(NamedTuple):
    """What a unit does to the counts, and the budget that it leaves."""

    deltas: Sequence[Delta]
    changes: Mapping[Scope, Changed]
    budget: Budget | None


@dataclass
class Counters:
    """The counts of one batch: as they were read, and as the units before this one leave them."""

    namespace: str
    confirmations: Confirmations
    usage: dict[str, tuple[int, int]]
    """Live entities and bytes: under '' of the namespace, for quotas; by type the entities alone, for the guard."""
    changes: dict[Scope, Changed]
    budget: Budget | None
    _added: dict[int, Counted] = field(default_factory=dict)

    @staticmethod
    def reads(namespace: str, types: Sequence[str], units: Sequence[LimitedUnit]) -> list[Statement]:
        """What counting *units* on *types* needs: the rows that ``of`` takes."""
        statements = []
        quotas = _quotas(units)
        if any(quota.max_entities or quota.max_bytes for quota in quotas):
            statements.append(usage_store.select_total(namespace))
        if scopes := _all_scopes(types, units):
            statements.append(usage_store.select_mass_changes(namespace, scopes))
        if any(quota.max_writes_per_second for quota in quotas):
            statements.append(usage_store.select_budget(namespace))
        return statements

    @classmethod
    def of(
        cls,
        namespace: str,
        confirmations: Confirmations,
        types: Sequence[str],
        units: Sequence[LimitedUnit],
        rows: Iterable[list[Row]],
    ) -> Counters:
        """The counts in the *rows* of ``reads`` for *types* and *units*."""
        results = iter(rows)
        usage: dict[str, tuple[int, int]] = {}
        quotas = _quotas(units)
        if any(quota.max_entities or quota.max_bytes for quota in quotas):
            usage[""] = next(((live, stored) for live, stored in next(results)), _NONE)
        changes: dict[Scope, Changed] = {}
        if _all_scopes(types, units):
            for type_, scope, changed, deleted, since, live in next(results):
                usage[type_] = (live, 0)
                if changed is not None:
                    changes[(type_, scope)] = Changed(changed, deleted, since)
        budget = None
        if any(quota.max_writes_per_second for quota in quotas):
            budget = usage_store.budget_of(next(results))
        return cls(namespace, confirmations, usage, changes, budget)

    def count(self, unit: LimitedUnit, epoch: str, deltas: Sequence[Delta], moment: datetime, revision: int) -> Counted:
        """What *unit* does, if it may; nothing is added yet.

        Raises:
            ResourceExhausted: QUOTA_EXCEEDED.
            FailedPrecondition: MASS_CHANGE_REFUSED.
        """
        quota = unit.limits.quota
        if quota.max_entities or quota.max_bytes:
            self._check_size(quota, deltas)
        budget = self._spent(quota, len(deltas), moment) if deltas and quota.max_writes_per_second else self.budget
        counted: dict[Scope, Changed] = {}
        if unit.limits.guard:
            counted = self._counted(unit, deltas, revision)
            self._check_guard(unit, epoch, counted)
        return Counted(deltas, counted, budget)

    def add(self, unit: LimitedUnit, counted: Counted) -> None:
        """Add what *unit* does, now that nothing else refuses it."""
        for scope, more in counted.changes.items():
            self.changes[scope] = _sum(self.changes.get(scope, Changed()), more)
        for delta in counted.deltas:
            live, size = self.usage.get(delta.type, _NONE)
            self.usage[delta.type] = (live + delta.entities, size + delta.bytes)
            live, size = self.usage.get("", _NONE)
            self.usage[""] = (live + delta.entities, size + delta.bytes)
        self.budget = counted.budget
        self._added[id(unit)] = counted

    def statements(self, accepted: Iterable[LimitedUnit], moment: datetime) -> list[Statement]:
        """What the *accepted* units leave to be stored."""
        usage: dict[str, tuple[int, int]] = {}
        changes: dict[Scope, Changed] = {}
        for unit in accepted:
            if (counted := self._added.get(id(unit))) is None:
                continue
            for type_, entities, size, *_ in counted.deltas:
                live, stored = usage.get(type_, _NONE)
                usage[type_] = (live + entities, stored + size)
            for scope, counts in counted.changes.items():
                changes[scope] = _sum(changes.get(scope, Changed()), counts)
        statements = []
        if usage:
            usage[""] = (sum(live for live, _ in usage.values()), sum(stored for _, stored in usage.values()))
            statements.append(usage_store.add_usage(self.namespace, usage))
        if changes:
            statements.append(usage_store.add_mass_changes(self.namespace, int(moment.timestamp() // 60), changes))
        if self.budget is not None:
            statements.append(usage_store.put_budget(self.namespace, self.budget))
        return statements

    def _check_size(self, quota: Quota, deltas: Sequence[Delta]) -> None:
        live, stored = self.usage.get("", _NONE)
        for name, used, growth, limit in (
            ("entities", live, sum(delta.entities for delta in deltas), quota.max_entities),
            # What goes is never refused, although the time of its deletion takes some bytes.
            ("bytes", stored, sum(delta.bytes for delta in deltas if delta.entities >= 0), quota.max_bytes),
        ):
            if limit and growth > 0 and used + growth > limit:
                raise ResourceExhausted(
                    "QUOTA_EXCEEDED",
                    f"the namespace may hold {limit} {name}, it holds {used}, and this adds {growth}",
                    quota=name,
                    limit=str(limit),
                    used=str(used),
                    retry_after=_NOT_SOON,
                )

    def _spent(self, quota: Quota, writes: int, moment: datetime) -> Budget:
        rate = quota.max_writes_per_second
        tokens = available_writes(quota, self.budget, moment)
        if tokens < min(writes, max(rate, WRITE_BURST)):
            raise ResourceExhausted(
                "QUOTA_EXCEEDED",
                f"the namespace may take {rate} writes per second",
                quota="writes_per_second",
                limit=str(rate),
                used=str(rate),
                retry_after=str(math.ceil((writes - tokens) / rate)),
            )
        return Budget(tokens - writes, moment)

    def _counted(self, unit: LimitedUnit, deltas: Sequence[Delta], revision: int) -> dict[Scope, Changed]:
        """What *deltas* add to each scope of *unit*."""
        counted: dict[Scope, Changed] = {}
        for delta in deltas:
            if not delta.changed:
                continue
            for principal in _scopes(unit):
                scope = (delta.type, principal)
                if not delta.deleted and delta.recount >= self.changes.get(scope, Changed()).since:
                    continue  # changed by them before, within the window
                counted[scope] = _sum(counted.get(scope, Changed()), Changed(1, int(delta.deleted), revision))
        return counted

    def _check_guard(self, unit: LimitedUnit, epoch: str, counted: Mapping[Scope, Changed]) -> None:
        exceeded: dict[str, tuple[int, int]] = {}
        for scope, more in counted.items():
            before = self.changes.get(scope, Changed())
            live = self.usage.get(scope[0], _NONE)[0]
            limit = max(GUARD_FLOOR, int(GUARD_SHARE * (live + before.deleted)))
            if before.changed + more.changed > limit and scope[0] not in unit.limits.confirmed:
                exceeded[scope[0]] = (before.changed + more.changed, limit)
        if exceeded:
            type_, (changed, limit) = next(iter(exceeded.items()))
            live = self.usage.get(type_, _NONE)[0]
            raise FailedPrecondition(
                "MASS_CHANGE_REFUSED",
                f"this would be {changed} entities of {type_} changed within {usage_store.WINDOW_MINUTES} minutes, at "
                f"most {limit} may be without confirmation; {live} are there. Repeat it with confirm_operation_id if "
                "you mean it",
                operation_id=self.confirmations.issue(
                    self.namespace, epoch, unit.actor, {*exceeded, *unit.limits.confirmed}
                ),
                type=type_,
                changed=str(changed),
                limit=str(limit),
            )


def _scopes(unit: LimitedUnit) -> Sequence[str]:
    if not unit.limits.guard:
        return ()
    return (unit.actor, IMPORT + unit.limits.import_id) if unit.limits.import_id else (unit.actor,)


def _quotas(units: Sequence[LimitedUnit]) -> list[Quota]:
    """The quotas of *units*; the rows of a batch have one in common."""
    return list({id(unit.limits): unit.limits.quota for unit in units}.values())


def _all_scopes(types: Sequence[str], units: Sequence[LimitedUnit]) -> list[Scope]:
    changing = {(unit.actor, id(unit.limits)): unit for unit in units if unit.changes_stored}
    return sorted({(type_, scope) for unit in changing.values() for type_ in types for scope in _scopes(unit)})


def _sum(before: Changed, more: Changed) -> Changed:
    return Changed(before.changed + more.changed, before.deleted + more.deleted, min(before.since, more.since))
