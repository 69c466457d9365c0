"""The way of a write through the service: prepare it outside the lock, have it decided and committed, answer it.

What was prepared can be overtaken: the type moves on, or an update turns out to take another unique value than it
looked like. Then the unit comes back ``Stale``, and is prepared again. Where many write to one entity nearly all would
be overtaken again and again, so those that were overtaken once take turns.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

from strandline.entity.v1 import entity_service_pb2

from services.entity import store
from services.entity.as_of import select_states, state_of
from services.entity.cascades import NOTHING, Claim, Explorer
from services.entity.catalog import Catalog
from services.entity.content import CompiledType, Entry
from services.entity.decisions import Outcome, Prepared, Stale
from services.entity.ledger import MAX_READ_BYTES, EntityUnit, Write, refusal_in
from services.entity.limits import UNLIMITED, Limits
from services.entity.model import MAX_STORED_BYTES, EntityKey, StoredEntity, parse_entity_name
from services.entity.mutations import Kind, Mutation, fingerprint
from services.entity.operations import apply
from services.entity.preconditions import Precondition
from services.entity.turns import Turns
from services.runtime.call import Namespace
from services.runtime.changelog import select_versions
from services.runtime.committer import Committer
from services.runtime.database import Database
from services.runtime.errors import Error, InvalidArgument, Unavailable
from services.runtime.request_ids import Share
from services.runtime.units import Outcomes, Receipt

MAX_ATTEMPTS: Final = 50
"""Beside another replica's writers about two attempts in five fail; all of these together take some seconds."""
MAX_PAUSE: Final = 0.002
"""Seconds before the second attempt in a turn, at random; twice as many before each further one, up to 2**5 times."""
PREPARED_AT_ONCE: Final = 128
"""Rows of a batch that are prepared before anybody else has a turn."""


class Writing(NamedTuple):
    """Who writes what for, and how a repetition is known."""

    namespace: Namespace
    actor: str
    method: str
    request_id: str
    validate_only: bool = False
    limits: Limits = UNLIMITED
    remembers_refusals: bool = False
    """Whether a write that is refused for its content is answered with that for as long as one that succeeded."""


class Written(NamedTuple):
    """An acknowledged unit: the namespace's revision, and what each mutation left. A repetition has no ``message``s.

    ``refusal`` is the serialized ``google.rpc.Status`` of a unit whose refusal is remembered.
    """

    revision: int
    outcomes: Sequence[Outcome]
    repeated: bool = False
    refusal: bytes = b""


class Writer:
    """Writes entities."""

    def __init__(self, database: Database, types: Catalog, committer: Committer[EntityUnit]) -> None:
        self._database = database
        self._types = types
        self._committer = committer
        self._turns = Turns()

    async def write_one(self, writing: Writing, mutation: Mutation) -> tuple[int, Outcome]:
        """Commit one mutation; the namespace's revision and what it left, as the first time if it is a repetition."""
        written = await self.transact(writing, [mutation])
        (outcome,) = written.outcomes
        if written.repeated and outcome.revision:
            outcome = await self._as_it_was(writing.namespace, outcome, written.revision)
        return written.revision, outcome

    async def transact(
        self,
        writing: Writing,
        mutations: Sequence[Mutation],
        preconditions: Sequence[Precondition] = (),
        *,
        indexed: bool = False,
    ) -> Written:
        """Commit *mutations*, of different entities, as one unit; *indexed*: refusals name the mutation.

        Raises:
            Error: it was refused as a whole.
        """
        body_hash = fingerprint(mutations, preconditions)
        namespace, keys = writing.namespace, [mutation.key for mutation in mutations]

        async def attempt() -> Written:
            (prepared,) = await self._prepare(namespace.id, [mutations])
            if preconditions:
                # What is known of their types need not be read under the lock.
                known = self._types.recall(namespace.id, {condition.key.type for condition in preconditions})
                prepared = prepared._replace(types={**known, **prepared.types})
            unit = _unit(writing, writing.request_id, body_hash, prepared, indexed, preconditions)
            return _written(await self._committer.commit(namespace, unit))

        with suppress(Stale):
            if not self._turns.any:
                return await attempt()
            async with self._turns.at(namespace.id, keys, only_in_queues=True):
                return await attempt()
        async with self._turns.at(namespace.id, keys):
            for number in range(MAX_ATTEMPTS - 1):
                with suppress(Stale):
                    return await attempt()
                await _pause(number)
        raise _contended()

    async def draft(self, writing: Writing, mutations: Sequence[Mutation | Error], *, first: int) -> Draft:
        """What of ``batch`` can be done before it is the turn of *mutations*, which have a request id."""
        waves = _waves(mutations)
        units: list[Write] = []
        for block in _blocks(waves[0]) if waves else ():
            units += await self._units(writing, writing.request_id, first, block)
            await asyncio.sleep(0)
        return Draft(waves, units)

    async def batch(
        self, writing: Writing, mutations: Sequence[Mutation | Error], *, first: int = 0, draft: Draft | None = None
    ) -> list[Written | BaseException]:
        """Commit each of *mutations* as a unit of its own; an ``Error`` among them is its own outcome.

        Writes to one entity are committed in the given order, because each waits for the one before it. They are
        remembered under the numbers from *first* on. A *draft* of the same mutations may be older than what is stored,
        and know other limits.
        """
        base = writing.request_id or uuid.uuid4().hex
        contended = _contended()
        outcomes: list[Written | BaseException] = [item if isinstance(item, Error) else contended for item in mutations]
        waves, units = draft or Draft(_waves(mutations), [])
        for unit in units:
            unit.limits = writing.limits
        for wave in waves:
            pending = await self._settle(writing, base, first, wave, outcomes, units)
            units = []
            if not pending:
                continue
            async with self._turns.at(writing.namespace.id, [mutation.key for _, mutation in pending]):
                for number in range(MAX_ATTEMPTS - 1):
                    pending = await self._settle(writing, base, first, pending, outcomes)
                    if not pending:
                        break
                    await _pause(number)
        return outcomes

    async def _settle(
        self,
        writing: Writing,
        base: str,
        first: int,
        pending: Sequence[tuple[int, Mutation]],
        outcomes: list[Written | BaseException],
        units: Sequence[Write] = (),
    ) -> list[tuple[int, Mutation]]:
        """Put what became of *pending* into *outcomes*; those that have to be tried again.

        *units* are those of all of them, or none.
        """
        stale = []
        for item, result in zip(pending, await self._attempt(writing, base, first, pending, units), strict=True):
            if isinstance(result, Stale):
                stale.append(item)
            else:
                outcomes[item[0]] = result
        return stale

    async def _attempt(
        self,
        writing: Writing,
        base: str,
        first: int,
        pending: Sequence[tuple[int, Mutation]],
        units: Sequence[Write],
    ) -> list[Written | BaseException]:
        parts: list[asyncio.Future[Outcomes]] = []
        # The first rows are committed while the last ones are prepared; what is ready goes together.
        for block in [pending] if units else _blocks(pending):
            try:
                ready = units or await self._units(writing, base, first, block)
                part = self._committer.submit(writing.namespace, *ready)
            except Exception as failure:
                # Rows of other blocks may be on disk by now: their answers must not be lost with it.
                part = asyncio.get_running_loop().create_future()
                part.set_result([failure] * len(block))
            parts.append(part)
            await asyncio.sleep(0)
        outcomes = chain.from_iterable(await asyncio.gather(*parts))
        return [outcome if isinstance(outcome, Exception) else _written(outcome) for outcome in outcomes]

    async def _units(
        self, writing: Writing, base: str, first: int, block: Sequence[tuple[int, Mutation]]
    ) -> list[Write]:
        prepared = await self._prepare(writing.namespace.id, [[mutation] for _, mutation in block])
        shares = [Share(base, first + place) for place, _ in block]
        return [
            _unit(writing, share.request_id, fingerprint([mutation]), item, False, share=share)
            for (_, mutation), item, share in zip(block, prepared, shares, strict=True)
        ]

    async def _prepare(self, namespace: str, units: Sequence[Sequence[Mutation]]) -> list[_Preparation]:
        mutations = [mutation for unit in units for mutation in unit]
        types = await self._types.learn(namespace, dict.fromkeys(mutation.key.type for mutation in mutations))
        uncertain: list[EntityKey] = []
        if any(compiled.concerns_others for compiled in types.values()):
            uncertain = [item.key for item in mutations if _takes_unknown(item, types.get(item.key.type))]
        # What one unit reads beyond this is not needed: it is refused for it under the lock.
        stored = await self._stored(namespace, uncertain, to_the_end=len(units) > 1)
        claims = await self._claims(namespace, units, types)
        return [
            _Preparation(
                [_prepare(mutation, types.get(mutation.key.type), stored.get(mutation.key)) for mutation in unit],
                types,
                claims.get(place, NOTHING),
            )
            for place, unit in enumerate(units)
        ]

    async def _stored(
        self, namespace: str, keys: Sequence[EntityKey], *, to_the_end: bool
    ) -> dict[EntityKey, StoredEntity]:
        """Those of *keys* that exist, read in statements of ``MAX_READ_BYTES``; without *to_the_end* in one."""
        stored: dict[EntityKey, StoredEntity] = {}
        while keys:
            (rows,) = await self._database.read(namespace, store.select_some_entities(namespace, keys, MAX_READ_BYTES))
            stored.update(store.entity_of(row) for row in rows if row[-1] is not None)
            keys = [EntityKey(row[0], row[1]) for row in rows if row[-1] is None] if to_the_end else ()
        return stored

    async def _claims(
        self, namespace: str, units: Sequence[Sequence[Mutation]], types: Mapping[str, CompiledType]
    ) -> dict[int, Claim]:
        """What removals lead to, by the place of those units that remove what others may refer to."""
        referred = {type_id for type_id, compiled in types.items() if compiled.type.referrers}
        if not referred:
            return {}
        removals: dict[int, set[EntityKey]] = {}
        for place, unit in enumerate(units):
            if removed := {mutation.key for mutation in unit if mutation.removes and mutation.key.type in referred}:
                removals[place] = removed
        explorer = Explorer(self._database, self._types, namespace, types)
        claims = await explorer.claims(
            [(removed, {mutation.key for mutation in units[place]}) for place, removed in removals.items()]
        )
        return dict(zip(removals, claims, strict=True))

    async def _as_it_was(self, namespace: Namespace, outcome: Outcome, revision: int) -> Outcome:
        key = parse_entity_name(outcome.name, namespace.id, "name")
        (rows,) = await self._database.read(namespace.id, select_versions(namespace.id, [key], revision))
        if rows:
            return Outcome(outcome.name, outcome.revision, rows[0][3])
        # It changed nothing, and the version that it found is no longer in the log.
        states = select_states(namespace.id, [key], revision, MAX_STORED_BYTES, show_deleted=True)
        (rows,) = await self._database.read(namespace.id, states)
        return Outcome(outcome.name, outcome.revision, state_of(rows[0])[1] or b"")


class _Preparation(NamedTuple):
    """A unit's writes with what could be worked out before the lock, from *types* as they are known."""

    writes: list[Prepared]
    types: Mapping[str, CompiledType]
    claim: Claim


class Draft(NamedTuple):
    """A batch before its turn: which mutations are the first on their entity, the second, ...; units of the first."""

    waves: list[list[tuple[int, Mutation]]]
    units: list[Write]


async def _pause(number: int) -> None:
    """Let another process have its turn, after the attempt with *number* from 0."""
    await asyncio.sleep(random.uniform(0, MAX_PAUSE * 2 ** min(number, 5)))


def _contended() -> Unavailable:
    """The last resort: nothing was written, and the same request, with its request id, may well work."""
    return Unavailable("OVERLOADED", "the entity is being changed by many others; retry")


def _waves(mutations: Sequence[Mutation | Error]) -> list[list[tuple[int, Mutation]]]:
    """The mutations with their places: all that are the first on their entity, then all that are the second, ..."""
    waves: list[list[tuple[int, Mutation]]] = []
    seen: dict[EntityKey, int] = {}
    for place, mutation in enumerate(mutations):
        if isinstance(mutation, Error):
            continue
        number = seen.get(mutation.key, 0)
        seen[mutation.key] = number + 1
        if number == len(waves):
            waves.append([])
        waves[number].append((place, mutation))
    return waves


def _blocks(pending: Sequence[tuple[int, Mutation]]) -> Iterator[Sequence[tuple[int, Mutation]]]:
    """*pending* in blocks that are prepared before anybody else has a turn."""
    return (pending[begin : begin + PREPARED_AT_ONCE] for begin in range(0, len(pending), PREPARED_AT_ONCE))


def _takes_unknown(mutation: Mutation, compiled: CompiledType | None) -> bool:
    """Whether the unique values that *mutation* takes, or what it refers to anew, depend on what is stored."""
    if compiled is None:
        return False
    if mutation.kind == Kind.UNDELETE:
        return bool(compiled.unique or compiled.references)
    return bool(compiled.unique) and mutation.kind == Kind.UPDATE and not mutation.replaces


def _prepare(mutation: Mutation, compiled: CompiledType | None, current: StoredEntity | None) -> Prepared:
    prepared = Prepared(mutation)
    if compiled is None:
        return prepared
    if mutation.content is not None and (mutation.replaces or mutation.allow_missing):
        # With operations this is not what is stored; it is only used if they turn out to change nothing.
        try:
            prepared.rendered = compiled.render(mutation.content, mutation.json, mutation.field)
            prepared.unique = prepared.rendered.unique
        except Error as failure:
            prepared.failure, prepared.refused_by = failure, compiled.generation
    if compiled.concerns_others and _takes_unknown(mutation, compiled) and (current is not None or mutation.operations):
        prepared.unique += _expected_unique(mutation, compiled, current)
    if compiled.references:
        prepared.targets = _expected_targets(mutation, compiled, current)
    return prepared


def _expected_unique(mutation: Mutation, compiled: CompiledType, current: StoredEntity | None) -> tuple[Entry, ...]:
    stored = current.data if current is not None else None
    try:
        if mutation.content is not None:
            return compiled.unique_entries(mutation.applied(stored if current is not None and current.live else None))
        return compiled.unique_entries(stored) if stored is not None else ()
    except InvalidArgument:
        return ()  # refused under the lock, if nothing changes


def _expected_targets(mutation: Mutation, compiled: CompiledType, current: StoredEntity | None) -> frozenset[EntityKey]:
    """All that the entity may come to refer to: what is new can only come from the content and the operations."""
    if mutation.content is not None:
        targets = compiled.targets(mutation.content)
        return targets | compiled.targets(apply({}, mutation.operations)) if mutation.operations else targets
    if mutation.kind == Kind.UNDELETE and current is not None:
        return compiled.targets(current.data)
    return frozenset()


def _lives(writes: Sequence[Prepared], types: Mapping[str, CompiledType]) -> Iterator[Hashable]:
    """The lives that *writes* may begin or end, as far as anything can refer to them.

    That an entity lives is a thing of its own: who refers to it does not mind that its content changes.
    """
    for write in writes:
        key = write.mutation.key
        if write.mutation.may_end_or_begin_life and key.type in types and types[key.type].type.referrers:
            yield _life(key)


def _life(key: EntityKey) -> Hashable:
    return ("life", key)


def _unit(
    writing: Writing,
    request_id: str,
    body_hash: bytes,
    prepared: _Preparation,
    indexed: bool,
    preconditions: Sequence[Precondition] = (),
    *,
    share: Share | None = None,
) -> Write:
    writes, types, claim = prepared
    keys = [write.mutation.key for write in writes]
    unique = frozenset([entry for write in writes for entry in write.unique])
    type_ids = _one(keys[0].type) if len(keys) == 1 else frozenset([key.type for key in keys])
    targets = frozenset([target for write in writes for target in write.targets])
    exclusive: frozenset[Hashable] = frozenset((*keys, *unique)) if unique else frozenset(keys)
    shared: frozenset[Hashable] = type_ids
    known = types
    if preconditions:
        shared = shared.union(*((condition.key, condition.key.type) for condition in preconditions))
    if targets:
        shared = shared.union(map(_life, targets))
    if [compiled for compiled in types.values() if compiled.type.referrers]:
        exclusive = exclusive.union(_lives(writes, types))
    if claim is not NOTHING:
        known = {**types, **claim.types}
        unique |= claim.unique
        exclusive = exclusive.union(claim.unique, claim.touched, map(_life, claim.touched))
        shared = shared.union(claim.types, claim.holding)
    return Write(
        actor=writing.actor,
        method=writing.method,
        request_id=request_id,
        body_hash=body_hash,
        exclusive=exclusive,
        shared=shared,
        size=sum([2 * len(write.mutation.json) + 500 for write in writes]) + 2000 * len(claim.touched),
        validate_only=writing.validate_only,
        writes=writes,
        known=known,
        unique=unique,
        preconditions=tuple(preconditions),
        targets=targets,
        claim=claim,
        limits=writing.limits,
        indexed=indexed,
        remembers_refusal=writing.remembers_refusals,
        share=share,
        field="mutations" if indexed else writes[0].mutation.field,
    )


@lru_cache(maxsize=1000)
def _one(type_id: str) -> frozenset[str]:
    return frozenset((type_id,))


def _written(receipt: Receipt) -> Written:
    if refusal := refusal_in(receipt.answer):
        return Written(receipt.revision, (), receipt.result is None, refusal)
    if receipt.result is not None:
        return Written(receipt.revision, receipt.result)
    answer = entity_service_pb2.TransactResponse.FromString(receipt.answer)
    outcomes = [
        Outcome(result.name, int(result.etag.strip('"') or 0), made=result.outcome) for result in answer.results
    ]
    return Written(receipt.revision, outcomes, repeated=True)
