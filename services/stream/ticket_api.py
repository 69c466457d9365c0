"""``TicketService``: how a page gets the cookie that opens its feeds."""

from __future__ import annotations

import time
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp
from strandline.stream.v1 import ticket_service_pb2 as pb

from services.runtime.call import Call
from services.runtime.database import Database
from services.runtime.errors import Unauthenticated
from services.runtime.gate import Access
from services.stream.origins import check_origin, check_own_page
from services.stream.passes import Passes, invalid_ticket
from services.stream.ticket_store import redeem

# Set by the edge on what it made of a REST request: the host that the browser has asked.
HOST: Final = "x-strandline-host"


class TicketHandlers:
    """The handlers of ``TicketService``."""

    def __init__(self, passes: Passes, database: Database, access: Access) -> None:
        self._passes = passes
        self._database = database
        self._access = access

    async def issue_ticket(self, request: pb.IssueTicketRequest, call: Call) -> pb.IssueTicketResponse:
        host = call.metadata.get(HOST, "")
        check_origin(call.metadata.get("origin"), host)
        ticket, expires = self._passes.issue(call.identified(), request.parent, host)
        return pb.IssueTicketResponse(ticket=ticket, expire_time=Timestamp(seconds=expires))

    async def redeem_ticket(self, request: pb.RedeemTicketRequest, call: Call) -> pb.RedeemTicketResponse:
        host = call.metadata.get(HOST, "")
        check_own_page(call.metadata, host)
        ticket = self._passes.open_ticket(request.ticket)
        if ticket.host not in ("", host):
            raise invalid_ticket()
        try:
            await self._access.check_session(ticket.principal)
        except Unauthenticated:
            raise invalid_ticket() from None
        if not await redeem(self._database, ticket.id, ticket.principal.expires_at, time.time()):
            raise invalid_ticket()
        call.response_headers["set-cookie"], path, expires = self._passes.cookie(ticket)
        return pb.RedeemTicketResponse(path=path, expire_time=Timestamp(seconds=expires))
