"""The end of an import: what a set is replaced by is compared with what there is, and what is missing is deleted.

Each step is a transaction that goes on from where the import is, in whichever process, and does nothing if another
call has been there: so a call that is repeated, or broken off, finishes what was begun.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from services.entity import import_store
from services.entity.decisions import Made
from services.entity.import_rows import Mode
from services.entity.import_store import ImportKey, Missing, State, StoredImport
from services.entity.limits import GUARD_FLOOR, GUARD_SHARE, Confirmations, Limits
from services.entity.model import EntityKey, entity_name, etag_of
from services.entity.mutations import Kind, Mutation
from services.entity.writes import Writer, Writing, Written
from services.runtime.call import Namespace
from services.runtime.database import Database
from services.runtime.errors import Aborted, FailedPrecondition, NotFound

METHOD: Final = "ImportEntities"
FINISH_SECONDS: Final = 2.0
"""How long one call compares and deletes."""
WALKED_AT_ONCE: Final = 5000
DELETED_AT_ONCE: Final = 500


class _Guarded(NamedTuple):
    """Types with missing entities, those of them that no row named, and how many may be missing unconfirmed."""

    affected: list[str]
    emptied: list[str]
    limit: int


class Finisher:
    """Finishes imports whose rows have all been taken."""

    def __init__(self, database: Database, writer: Writer, confirmations: Confirmations) -> None:
        self._database = database
        self._writer = writer
        self._confirmations = confirmations

    async def finish(self, key: ImportKey, namespace: Namespace, actor: str, lines: int) -> StoredImport:
        """Do what is left after *lines* lines, as far as one call is meant to go."""
        deadline = time.monotonic() + FINISH_SECONDS
        state = await self._state(key, namespace)
        if state.next_offset != lines:
            raise wrong_offset(state.next_offset)
        while state.state != State.FINISHED and time.monotonic() < deadline:
            if state.state == State.RUNNING:
                await self._end_rows(key, namespace, state)
            elif state.state == State.COMPARING:
                await self._compare(key, namespace, actor, state)
            else:
                await self._delete_missing(key, namespace, actor, state)
            state = await self._state(key, namespace)
        return state

    async def needs_confirmation(self, key: ImportKey, namespace: Namespace, state: StoredImport) -> bool:
        """Whether the import that a finished dry run stands for would have to be confirmed."""
        is_a_finished_trial = state.dry_run and (state.mode, state.state) == (Mode.REPLACE_SET, State.FINISHED)
        return is_a_finished_trial and await self._guarded(key, namespace, state) is not None

    async def _state(self, key: ImportKey, namespace: Namespace) -> StoredImport:
        (rows,) = await self._database.read(namespace.id, import_store.select_import(key))
        state = import_store.import_of(rows)
        if state is None:
            raise wrong_offset(0)
        return state

    async def _end_rows(self, key: ImportKey, namespace: Namespace, state: StoredImport) -> None:
        if state.mode == Mode.REPLACE_SET and state.unnamed:
            raise FailedPrecondition(
                "IMPORT_INCOMPLETE",
                f"{state.unnamed} rows do not say which entity they are about, so what is missing is not known; mend "
                "them and import again",
                rejected=str(state.unnamed),
            )
        after = State.COMPARING if state.mode == Mode.REPLACE_SET else State.FINISHED
        await self._database.write(
            namespace.id, import_store.change_state(key, State.RUNNING, after, state.next_offset)
        )

    async def _compare(self, key: ImportKey, namespace: Namespace, actor: str, state: StoredImport) -> None:
        """Look at some live entities of the replaced types; behind the last one, decide whether to delete."""
        types = [
            type_id for type_id in sorted(state.replaced_types or state.named_types) if type_id >= state.compared_type
        ]
        place = (state.compared_type, state.compared_id)
        for type_id in types:
            (rows,) = await self._database.write(
                namespace.id, import_store.compare(key, type_id, place, WALKED_AT_ONCE)
            )
            if rows[0][0]:
                return
            place = (type_id, place[1] if place[0] == type_id else "")
        if not state.dry_run:
            await self._check_guard(key, namespace, actor, state)
        after = State.FINISHED if state.dry_run else State.DELETING
        await self._database.write(
            namespace.id, import_store.change_state(key, State.COMPARING, after, state.next_offset)
        )

    async def _delete_missing(self, key: ImportKey, namespace: Namespace, actor: str, state: StoredImport) -> None:
        """Delete some of the missing entities. One that has changed since it was found is left alone."""
        (rows,) = await self._database.read(namespace.id, import_store.select_missing(key, DELETED_AT_ONCE))
        missing = [Missing(EntityKey(type_id, entity_id), revision) for type_id, entity_id, revision in rows]
        if not missing:
            await self._database.write(
                namespace.id, import_store.change_state(key, State.DELETING, State.FINISHED, state.next_offset)
            )
            return
        mutations = [
            Mutation(Kind.DELETE, entity_name(namespace.id, item.key), item.key, "name", etag=etag_of(item.revision))
            for item in missing
        ]
        # The first of them has the same number in every try, so that one that was deleted before a crash is counted.
        limits = limits_of(namespace, key.id, state)
        writing = Writing(namespace, actor, METHOD, f"{key.id}.delete", limits=limits)
        deleted = 0
        for outcome in await self._writer.batch(writing, mutations, first=state.handled):
            if isinstance(outcome, Written):
                deleted += outcome.outcomes[0].made == Made.DELETED
            elif not isinstance(outcome, (Aborted, NotFound)):
                raise outcome
        await self._database.write(
            namespace.id, import_store.record_handled(key, state.handled, [item.key for item in missing], deleted)
        )

    async def _guarded(self, key: ImportKey, namespace: Namespace, state: StoredImport) -> _Guarded | None:
        """What must be confirmed before the missing are deleted: a great part of what there is, or all of a type that
        no row named. None if nothing must."""
        types = state.replaced_types or state.named_types
        if not namespace.mass_change_guard or set(types) <= set(state.confirmed_types):
            return None
        (rows,) = await self._database.read(namespace.id, import_store.select_missing_types(key, types))
        affected = [str(type_id) for (type_id,) in rows]
        emptied = [type_id for type_id in affected if type_id not in state.named_types]
        limit = max(GUARD_FLOOR, int(state.compared * GUARD_SHARE))
        return _Guarded(affected, emptied, limit) if emptied or state.missing > limit else None

    async def _check_guard(self, key: ImportKey, namespace: Namespace, actor: str, state: StoredImport) -> None:
        """Refuse to delete what must be confirmed and was not; nothing is deleted yet."""
        if (guarded := await self._guarded(key, namespace, state)) is None:
            return
        why = f"no row names any {' or '.join(guarded.emptied)}: " if guarded.emptied else ""
        raise FailedPrecondition(
            "MASS_CHANGE_REFUSED",
            f"{why}the import would delete {state.missing} of {state.compared} entities, of "
            f"{', '.join(guarded.affected)}; repeat it with confirm_operation_id if you mean it",
            operation_id=self._confirmations.issue(
                key.namespace, key.epoch, actor, state.replaced_types or state.named_types
            ),
            type=",".join(guarded.affected),
            changed=str(state.missing),
            limit="0" if guarded.emptied else str(guarded.limit),
        )


def wrong_offset(next_offset: int) -> FailedPrecondition:
    return FailedPrecondition(
        "IMPORT_OFFSET", f"the import goes on at offset {next_offset}", next_offset=str(next_offset)
    )


def limits_of(namespace: Namespace, import_id: str, state: StoredImport) -> Limits:
    return Limits(namespace.quota, namespace.mass_change_guard, frozenset(state.confirmed_types), import_id)
