"""Handler of ``AccessService``: the truth, for services whose copy may be behind."""

from __future__ import annotations

from strandline.user.v1 import namespace_service_pb2 as pb
from strandline.user.v1 import user_pb2

from services.runtime.call import Call
from services.runtime.changelog import head_of
from services.runtime.database import Database
from services.user import ledger_sql as sql
from services.user.model import SYSTEM, check_user_id
from services.user.render import namespace_message


class AccessHandlers:
    """Answers about one caller, from one snapshot."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check_access(self, request: pb.CheckAccessRequest, call: Call) -> pb.CheckAccessResponse:
        user_id = check_user_id(request.user_id, "user_id")
        session_id = check_user_id(request.session_id or sql.NOBODY, "session_id")
        _, head_rows, access_rows, session_rows = await self._database.read(
            SYSTEM,
            sql.act_for([request.namespace_id]),
            sql.HEAD,
            sql.select_access(request.namespace_id, user_id),
            sql.select_living_session(session_id),
        )
        answer = pb.CheckAccessResponse(
            revoked=bool(request.session_id) and not session_rows, revision=head_of(SYSTEM, head_rows, "").revision
        )
        for *columns, role in access_rows:
            if not (namespace := sql.namespace_of(tuple(columns))).deleting:
                answer.namespace.CopyFrom(namespace_message(namespace))
                answer.role = user_pb2.Member.Role.ValueType(role or 0)
        return answer
