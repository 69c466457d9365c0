"""Who may do what, from the tables themselves: always the truth."""

from __future__ import annotations

from services.runtime.call import Namespace as Life
from services.runtime.call import Principal
from services.runtime.database import Database
from services.runtime.errors import NotFound, PermissionDenied, Unauthenticated
from services.user import ledger_sql as sql
from services.user.model import SYSTEM


class LocalAccess:
    """``runtime.gate.Access`` for the service that owns the memberships."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def authorize(self, principal: Principal, namespace_id: str, role: int, *, write: bool) -> Life:
        """See ``gate.Access``.

        An owner's write to a namespace that is being deleted passes here and is refused under the lock, for a repeated
        ``DeleteNamespace`` must find its answer.
        """
        _, rows = await self._database.read(
            SYSTEM, sql.act_for([namespace_id]), sql.select_access(namespace_id, principal.user_id)
        )
        namespace, held = (sql.namespace_of(rows[0][:-1]), rows[0][-1] or 0) if rows else (None, 0)
        if namespace is None or not held or (namespace.deleting and not (write and held >= role)):
            raise NotFound("NOT_FOUND", "there is no such namespace, or you are not a member of it")
        if held < role:
            raise PermissionDenied("ROLE_INSUFFICIENT", "your role in the namespace does not allow this")
        return Life(namespace.id, namespace.epoch, namespace.mass_change_guard, namespace.quota)

    async def check_session(self, principal: Principal) -> None:
        """Raises ``Unauthenticated`` if the session was ended."""
        (rows,) = await self._database.read(SYSTEM, sql.select_living_session(principal.session_id))
        if not rows:
            raise Unauthenticated("TOKEN_INVALID", "the access token is not valid")
